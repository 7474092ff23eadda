"""Plain recurrent cell (Elman 1990), as torch.nn.RNN."""

from typing import NamedTuple

import numpy as np

from impl_numpy.arrays import Array, product


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
    return RNNState(np.tanh(projected + state.hidden @ weights.weight_hh.T)), RNNGates()


def relu_step(projected: Array, state: RNNState, weights: RNNWeights) -> tuple[RNNState, RNNGates]:
    """The same with max(0, x) for tanh."""
    return RNNState(np.maximum(projected + state.hidden @ weights.weight_hh.T, 0)), RNNGates()


def tanh_step_backward(
    d_after: RNNState, after: RNNState, gates: RNNGates, before: RNNState, weights: RNNWeights
) -> tuple[Array, Array, RNNState]:
    """Gradients at W x + b, at U h (both [B, H]), and at the state before."""
    d_sum = d_after.hidden * (1 - after.hidden**2)
    return d_sum, d_sum, RNNState(d_sum @ weights.weight_hh)


def relu_step_backward(
    d_after: RNNState, after: RNNState, gates: RNNGates, before: RNNState, weights: RNNWeights
) -> tuple[Array, Array, RNNState]:
    """Gradients at W x + b, at U h (both [B, H]), and at the state before."""
    d_sum = d_after.hidden * (after.hidden > 0)
    return d_sum, d_sum, RNNState(d_sum @ weights.weight_hh)


def rnn_weights_backward(
    d_projected: Array, d_recurrent: Array, before: RNNState, after: RNNState, gates: RNNGates
) -> dict[str, Array]:
    """Gradients of the recurrent weights, from all steps [T, B, ...] in one product."""
    return {"weight_hh": product(d_recurrent, before.hidden)}
