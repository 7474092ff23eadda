"""Gated recurrent unit (Cho et al. 2014): the reset gate acts after the product, as in torch.nn.GRU and cuDNN,
or before it, as in the paper."""

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


class ResetBeforeWeights(NamedTuple):
    weight_ih: Array  # [3H, I], row blocks: reset, update, candidate
    weight_hh: Array  # [3H, H]
    bias: Array  # [3H]


class ResetBeforeGates(NamedTuple):
    reset_gate: Array  # each [B, H]
    update_gate: Array
    candidate: Array


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


def reset_before_step(
    projected: Array, state: GRUState, weights: ResetBeforeWeights
) -> tuple[GRUState, ResetBeforeGates]:
    """One time step; projected [B, 3H] is W x + b.

    r, z = sigmoid(W x + b + U h)     n = tanh(W x + b + U (r * h))
    h' = (1 - z) * n + z * h
    """
    size = state.hidden.shape[-1]
    gates_hh, candidate_hh = tf.split(weights.weight_hh, [2 * size, size])
    x_r, x_z, x_n = tf.split(projected, 3, axis=-1)
    h_r, h_z = tf.split(tf.linalg.matmul(state.hidden, gates_hh, transpose_b=True), 2, axis=-1)
    reset, update = tf.sigmoid(x_r + h_r), tf.sigmoid(x_z + h_z)
    candidate = tf.tanh(x_n + tf.linalg.matmul(reset * state.hidden, candidate_hh, transpose_b=True))
    hidden = (1 - update) * candidate + update * state.hidden
    return GRUState(hidden), ResetBeforeGates(reset, update, candidate)
