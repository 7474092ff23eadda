"""A cell over time, and layers over a stack. Time stands first here, [T, B, ...]: a step is then a contiguous slice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from impl_numpy.arrays import Array, add_rows
from impl_numpy.gru import GRUGates, GRUState, GRUWeights, gru_step, gru_step_backward
from impl_numpy.lstm import LSTMGates, LSTMState, LSTMWeights, lstm_step, lstm_step_backward
from impl_numpy.rnn import RNNGates, RNNState, RNNWeights, rnn_step, rnn_step_backward


class Cell(NamedTuple):
    """What unrolling needs to know of a cell."""

    state: Any
    weights: Any
    gates: Any
    step: Callable[..., Any]
    step_backward: Callable[..., Any]


CELLS = {
    "rnn": Cell(RNNState, RNNWeights, RNNGates, rnn_step, rnn_step_backward),
    "lstm": Cell(LSTMState, LSTMWeights, LSTMGates, lstm_step, lstm_step_backward),
    "gru": Cell(GRUState, GRUWeights, GRUGates, gru_step, gru_step_backward),
}


class Record(NamedTuple):
    """What happened in a layer, step by step."""

    states: Any  # the cell's State, each field [T, B, H], after each step
    gates: Any  # the cell's Gates, each field [T, B, H]


def layer_weights(cell: Cell, parameters: Mapping[str, Array], layer: int) -> Any:
    """The canonical parameters of a layer as the cell's weights."""
    return cell.weights(*(parameters[f"rnn.{field}_l{layer}"] for field in cell.weights._fields))


def project(inputs: Array, weights: Any) -> Array:
    """W x + b of every step in one product: inputs [T, B, I], or tokens [T, B] for one-hot input, -> [T, B, G*H]."""
    if inputs.ndim == 2:
        return weights.weight_ih.T[inputs] + weights.bias
    return inputs @ weights.weight_ih.T + weights.bias


def unroll(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and the record if asked for."""
    states, gates = [], []
    for projected in project(inputs, weights):
        state, gate = cell.step(projected, state, weights)
        states.append(state)
        gates.append(gate)
    outputs = np.stack([each.hidden for each in states])
    return outputs, state, Record(stack(cell.state, states), stack(cell.gates, gates)) if record else None


def unroll_layers(
    cell: Cell, inputs: Array, states: tuple[Any, ...], weights: list[Any], record: bool
) -> tuple[Array, tuple[Any, ...], list[Any]]:
    """All layers -> outputs of the top one, states after the last step, records."""
    finals, records = [], []
    for state, each in zip(states, weights, strict=True):
        inputs, final, layer_record = unroll(cell, inputs, state, each, record)
        finals.append(final)
        records.append(layer_record)
    return inputs, tuple(finals), records


def stack(kind: Any, steps: list[Any]) -> Any:
    """Named tuples of [B, H] to one of [T, B, H]."""
    return kind(*(np.stack(field) for field in zip(*steps, strict=True)))


def unroll_backward(
    cell: Cell, d_outputs: Array, inputs: Array, state: Any, weights: Any, record: Record
) -> tuple[Array | None, Any, Any]:
    """Gradients at the inputs (None for one-hot), at the state before the first step, and of the weights.

    Only the recurrence goes step by step; the weights' gradients are one product over all steps.
    """
    befores = cell.state(*map(shift, state, record.states))
    d_state = cell.state(*map(np.zeros_like, state))
    d_projected, d_recurrent = [], []
    for t in reversed(range(len(d_outputs))):
        d_after = d_state._replace(hidden=d_state.hidden + d_outputs[t])
        after, gates, before = at(record.states, t), at(record.gates, t), at(befores, t)
        d_x, d_h, d_state = cell.step_backward(d_after, after, gates, before, weights)
        d_projected.append(d_x)
        d_recurrent.append(d_h)
    d_x, d_h = np.stack(d_projected[::-1]), np.stack(d_recurrent[::-1])  # [T, B, G*H]
    d_inputs, d_weight_ih = project_backward(d_x, inputs, weights)
    d_weights = {"weight_ih": d_weight_ih, "weight_hh": product(d_h, befores.hidden), "bias": d_x.sum((0, 1))}
    if "bias_hn" in weights._fields:
        d_weights["bias_hn"] = d_h.sum((0, 1))[-len(weights.bias_hn) :]
    return d_inputs, d_state, cell.weights(**d_weights)


def project_backward(d_projected: Array, inputs: Array, weights: Any) -> tuple[Array | None, Array]:
    """Gradients at the inputs of `project` (None for tokens) and of weight_ih."""
    if inputs.ndim == 2:
        d_weight_ih = np.zeros_like(weights.weight_ih)
        add_rows(d_weight_ih.T, inputs.reshape(-1), d_projected.reshape(-1, d_projected.shape[-1]))
        return None, d_weight_ih
    return d_projected @ weights.weight_ih, product(d_projected, inputs)


def product(left: Array, right: Array) -> Array:
    """Outer products summed over time and batch: [T, B, M], [T, B, N] -> [M, N]."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


def shift(first: Array, rest: Array) -> Array:
    """The field before each step: [B, H] and [T, B, H] after each step -> [T, B, H]."""
    return np.concatenate([first[None], rest[:-1]])


def at(steps: Any, t: int) -> Any:
    """One step out of a stacked named tuple."""
    return type(steps)(*(field[t] for field in steps))
