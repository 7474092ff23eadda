"""Plain recurrent cell (Elman 1990), as torch.nn.RNN."""

from typing import NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array


class RNNState(NamedTuple):
    hidden: Array  # [B, H]


class RNNWeights(NamedTuple):
    weight_ih: Array  # [H, I]
    weight_hh: Array  # [H, H]
    bias: Array  # [H]


class RNNGates(NamedTuple):
    pass


def tanh_step(projected: Array, state: RNNState, weights: RNNWeights) -> tuple[RNNState, RNNGates]:
    """One time step; projected [B, H] is W x + b.

    h' = tanh(W x + b + U h)
    """
    recurrent = tf.linalg.matmul(state.hidden, weights.weight_hh, transpose_b=True)
    return RNNState(tf.tanh(projected + recurrent)), RNNGates()


def relu_step(projected: Array, state: RNNState, weights: RNNWeights) -> tuple[RNNState, RNNGates]:
    """The same with max(0, x) for tanh."""
    recurrent = tf.linalg.matmul(state.hidden, weights.weight_hh, transpose_b=True)
    return RNNState(tf.nn.relu(projected + recurrent)), RNNGates()
