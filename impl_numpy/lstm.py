"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000), as torch.nn.LSTM."""

from typing import NamedTuple

import numpy as np

from impl_numpy.arrays import Array, product, sigmoid


class LSTMState(NamedTuple):
    hidden: Array  # [B, H]
    cell: Array  # [B, H]


class LSTMWeights(NamedTuple):
    weight_ih: Array  # [4H, I], row blocks: input, forget, candidate, output
    weight_hh: Array  # [4H, H]
    bias: Array  # [4H]


class LSTMGates(NamedTuple):
    input_gate: Array  # each [B, H]
    forget_gate: Array
    candidate: Array
    output_gate: Array


def lstm_step(projected: Array, state: LSTMState, weights: LSTMWeights) -> tuple[LSTMState, LSTMGates]:
    """One time step; projected [B, 4H] is W x + b.

    i, f, o = sigmoid(W x + b + U h)     g = tanh(W x + b + U h)
    c' = f * c + i * g                   h' = o * tanh(c')
    """
    i, f, g, o = np.split(projected + state.hidden @ weights.weight_hh.T, 4, axis=-1)
    gates = LSTMGates(sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o))
    cell = gates.forget_gate * state.cell + gates.input_gate * gates.candidate
    return LSTMState(gates.output_gate * np.tanh(cell), cell), gates


def lstm_step_backward(
    d_after: LSTMState, after: LSTMState, gates: LSTMGates, before: LSTMState, weights: LSTMWeights
) -> tuple[Array, Array, LSTMState]:
    """Gradients at W x + b, at U h (both [B, 4H]), and at the state before."""
    i, f, g, o = gates
    tanh_cell = np.tanh(after.cell)
    d_cell = d_after.cell + d_after.hidden * o * (1 - tanh_cell**2)
    d_i = d_cell * g * i * (1 - i)
    d_f = d_cell * before.cell * f * (1 - f)
    d_g = d_cell * i * (1 - g**2)
    d_o = d_after.hidden * tanh_cell * o * (1 - o)
    d_sum = np.concatenate([d_i, d_f, d_g, d_o], axis=-1)
    return d_sum, d_sum, LSTMState(d_sum @ weights.weight_hh, d_cell * f)


def lstm_weights_backward(
    d_projected: Array, d_recurrent: Array, before: LSTMState, after: LSTMState, gates: LSTMGates
) -> dict[str, Array]:
    """Gradients of the recurrent weights, from all steps [T, B, ...] in one product."""
    return {"weight_hh": product(d_recurrent, before.hidden)}
