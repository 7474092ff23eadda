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


def rnn_step(projected: Array, state: RNNState, weights: RNNWeights) -> tuple[RNNState, RNNGates]:
    """One time step; projected [B, H] is W x + b.

    h' = tanh(W x + b + U h)
    """
    recurrent = tf.linalg.matmul(state.hidden, weights.weight_hh, transpose_b=True)
    return RNNState(tf.tanh(projected + recurrent)), RNNGates()
