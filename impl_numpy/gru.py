"""Gated recurrent unit (Cho et al. 2014): the reset gate acts after the product, as in torch.nn.GRU and cuDNN,
or before it, as in the paper."""

from typing import NamedTuple

import numpy as np

from impl_numpy.arrays import Array, product, sigmoid


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
    x_r, x_z, x_n = np.split(projected, 3, axis=-1)
    h_r, h_z, h_n = np.split(state.hidden @ weights.weight_hh.T, 3, axis=-1)
    reset, update, recurrent = sigmoid(x_r + h_r), sigmoid(x_z + h_z), h_n + weights.bias_hn
    candidate = np.tanh(x_n + reset * recurrent)
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
    x_r, x_z, x_n = np.split(projected, 3, axis=-1)
    h_r, h_z = np.split(state.hidden @ weights.weight_hh[: 2 * size].T, 2, axis=-1)
    reset, update = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    candidate = np.tanh(x_n + (reset * state.hidden) @ weights.weight_hh[2 * size :].T)
    hidden = (1 - update) * candidate + update * state.hidden
    return GRUState(hidden), ResetBeforeGates(reset, update, candidate)


def gru_step_backward(
    d_after: GRUState, after: GRUState, gates: GRUGates, before: GRUState, weights: GRUWeights
) -> tuple[Array, Array, GRUState]:
    """Gradients at W x + b, at U h + b_hn (both [B, 3H]), and at the state before."""
    r, z, n, recurrent = gates
    d_n = d_after.hidden * (1 - z) * (1 - n**2)
    d_z = d_after.hidden * (before.hidden - n) * z * (1 - z)
    d_r = d_n * recurrent * r * (1 - r)
    d_projected = np.concatenate([d_r, d_z, d_n], axis=-1)
    d_recurrent = np.concatenate([d_r, d_z, d_n * r], axis=-1)
    return d_projected, d_recurrent, GRUState(d_recurrent @ weights.weight_hh + d_after.hidden * z)


def reset_before_step_backward(
    d_after: GRUState, after: GRUState, gates: ResetBeforeGates, before: GRUState, weights: ResetBeforeWeights
) -> tuple[Array, Array, GRUState]:
    """Gradients at W x + b, the same at the recurrent sums ([B, 3H]), and at the state before."""
    r, z, n = gates
    size = before.hidden.shape[-1]
    d_n = d_after.hidden * (1 - z) * (1 - n**2)
    d_z = d_after.hidden * (before.hidden - n) * z * (1 - z)
    d_kept = d_n @ weights.weight_hh[2 * size :]  # at r * h
    d_r = d_kept * before.hidden * r * (1 - r)
    d_sum = np.concatenate([d_r, d_z, d_n], axis=-1)
    d_hidden = d_sum[:, : 2 * size] @ weights.weight_hh[: 2 * size] + d_kept * r + d_after.hidden * z
    return d_sum, d_sum, GRUState(d_hidden)


def gru_weights_backward(
    d_projected: Array, d_recurrent: Array, before: GRUState, after: GRUState, gates: GRUGates
) -> dict[str, Array]:
    """Gradients of the recurrent weights, from all steps [T, B, ...] in one product."""
    size = before.hidden.shape[-1]
    d_bias_hn = d_recurrent[..., 2 * size :].sum((0, 1))
    return {"weight_hh": product(d_recurrent, before.hidden), "bias_hn": d_bias_hn}


def reset_before_weights_backward(
    d_projected: Array, d_recurrent: Array, before: GRUState, after: GRUState, gates: ResetBeforeGates
) -> dict[str, Array]:
    """Gradients of the recurrent weights, from all steps [T, B, ...] in two products."""
    size = before.hidden.shape[-1]
    d_gates, d_candidate = d_recurrent[..., : 2 * size], d_recurrent[..., 2 * size :]
    kept = gates.reset_gate * before.hidden
    return {"weight_hh": np.concatenate([product(d_gates, before.hidden), product(d_candidate, kept)])}
