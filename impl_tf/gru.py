"""Gated recurrent unit (Cho et al. 2014), the reset gate applied after the product, as torch.nn.GRU and cuDNN."""

from typing import NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array


class GRUState(NamedTuple):
    hidden: Array  # [B, H]


class GRUWeights(NamedTuple):
    weight_ih: Array  # [3H, I], row blocks: reset, update, candidate
    weight_hh: Array  # [3H, H]
    bias: Array  # [3H]
    bias_hn: Array  # [H], inside the reset product


class GRUGates(NamedTuple):
    reset_gate: Array  # each [B, H]
    update_gate: Array
    candidate: Array
    recurrent: Array  # U h + b_hn of the candidate, before the reset gate


def gru_step(projected: Array, state: GRUState, weights: GRUWeights) -> tuple[GRUState, GRUGates]:
    """One time step; projected [B, 3H] is W x + b.

    r, z = sigmoid(W x + b + U h)     n = tanh(W x + b + r * (U h + b_hn))
    h' = (1 - z) * n + z * h
    """
    x_r, x_z, x_n = tf.split(projected, 3, axis=-1)
    h_r, h_z, h_n = tf.split(tf.linalg.matmul(state.hidden, weights.weight_hh, transpose_b=True), 3, axis=-1)
    reset, update, recurrent = tf.sigmoid(x_r + h_r), tf.sigmoid(x_z + h_z), h_n + weights.bias_hn
    candidate = tf.tanh(x_n + reset * recurrent)
    hidden = (1 - update) * candidate + update * state.hidden
    return GRUState(hidden), GRUGates(reset, update, candidate, recurrent)
