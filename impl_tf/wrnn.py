"""Two sigmoid layers with a skip through time: the first layer's last state reaches the second one directly."""

from typing import NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array


class WRNNState(NamedTuple):
    hidden: Array  # [B, H], b: the second layer
    first: Array  # [B, H], a: the first layer


class WRNNWeights(NamedTuple):
    weight_ih: Array  # [H, I], U: inputs to the first layer
    weight_hh: Array  # [H, H], W: first layer, through time
    bias: Array  # [H]
    weight_ab: Array  # [H, H], V: first to second layer
    weight_skip: Array  # [H, H], R: first layer to second, through time
    weight_bb: Array  # [H, H], T: second layer, through time
    bias_b: Array  # [H]


class WRNNGates(NamedTuple):
    pass


def wrnn_step(projected: Array, state: WRNNState, weights: WRNNWeights) -> tuple[WRNNState, WRNNGates]:
    """One time step; projected [B, H] is U x + s1.

    a' = sigmoid(U x + s1 + W a)     b' = sigmoid(V a' + R a + T b + s2)
    """
    recurrent = tf.linalg.matmul(state.first, weights.weight_hh, transpose_b=True)
    skipped = tf.linalg.matmul(state.first, weights.weight_skip, transpose_b=True)
    kept = tf.linalg.matmul(state.hidden, weights.weight_bb, transpose_b=True)
    first = tf.sigmoid(projected + recurrent)
    passed = tf.linalg.matmul(first, weights.weight_ab, transpose_b=True)
    return WRNNState(tf.sigmoid(passed + skipped + kept + weights.bias_b), first), WRNNGates()
