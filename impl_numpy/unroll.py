"""A cell over time, and layers over a stack. Time stands first here, [T, B, ...]: a step is then a contiguous slice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from impl_numpy.arrays import Array, add_rows, product
from impl_numpy.dropout import Dropout, drop
from impl_numpy.gru import (
    GRUGates,
    GRUState,
    GRUWeights,
    ResetBeforeGates,
    ResetBeforeWeights,
    gru_step,
    gru_step_backward,
    gru_weights_backward,
    reset_before_step,
    reset_before_step_backward,
    reset_before_weights_backward,
)
from impl_numpy.lstm import LSTMGates, LSTMState, LSTMWeights, lstm_step, lstm_step_backward, lstm_weights_backward
from impl_numpy.rnn import (
    RNNGates,
    RNNState,
    RNNWeights,
    relu_step,
    relu_step_backward,
    rnn_weights_backward,
    tanh_step,
    tanh_step_backward,
)
from impl_numpy.wrnn import WRNNGates, WRNNState, WRNNWeights, wrnn_step, wrnn_step_backward, wrnn_weights_backward
from shared.config import ModelConfig
from shared.parameters import cell_variant


class Cell(NamedTuple):
    """What unrolling needs to know of a cell."""

    name: str
    state: Any
    weights: Any
    gates: Any
    step: Callable[..., Any]
    step_backward: Callable[..., Any]
    weights_backward: Callable[..., Any]


CELLS = {
    cell.name: cell
    for cell in (
        Cell("rnn-tanh", RNNState, RNNWeights, RNNGates, tanh_step, tanh_step_backward, rnn_weights_backward),
        Cell("rnn-relu", RNNState, RNNWeights, RNNGates, relu_step, relu_step_backward, rnn_weights_backward),
        Cell("lstm", LSTMState, LSTMWeights, LSTMGates, lstm_step, lstm_step_backward, lstm_weights_backward),
        Cell("gru-after", GRUState, GRUWeights, GRUGates, gru_step, gru_step_backward, gru_weights_backward),
        Cell(
            "gru-before",
            GRUState,
            ResetBeforeWeights,
            ResetBeforeGates,
            reset_before_step,
            reset_before_step_backward,
            reset_before_weights_backward,
        ),
        Cell("wrnn", WRNNState, WRNNWeights, WRNNGates, wrnn_step, wrnn_step_backward, wrnn_weights_backward),
    )
}


class Record(NamedTuple):
    """What happened in a layer, step by step."""

    states: Any  # the cell's State, each field [T, B, H], after each step
    gates: Any  # the cell's Gates, each field [T, B, H]


class Layer(NamedTuple):
    """What the way back needs to know of a layer."""

    inputs: Array  # [T, B, I], or tokens [T, B]
    record: Any  # the engine's
    factors: Array | None  # of the dropout behind it, [T, B, H]


class Engine(NamedTuple):
    """One layer over time, and back: `unroll` and `unroll_backward`, or those of `impl_numpy.fused`."""

    unroll: Callable[[Cell, Array, Any, Any, bool], tuple[Array, Any, Any]]
    unroll_backward: Callable[[Cell, Array, Array, Any, Any, Any], tuple[Array | None, Any, dict[str, Array]]]


def cell_of(model: ModelConfig) -> Cell:
    """The cell that the model's options describe."""
    return CELLS[cell_variant(model)]


def layer_weights(cell: Cell, parameters: Mapping[str, Array], layer: int) -> Any:
    """The canonical parameters of a layer as the cell's weights."""
    return cell.weights(*(parameters[f"rnn.{field}_l{layer}"] for field in cell.weights._fields))


def multiply(inputs: Array, weight: Array) -> Array:
    """W x of every step in one product: inputs [T, B, I], or tokens [T, B] for one-hot vectors, -> [T, B, out]."""
    return weight.T[inputs] if inputs.ndim == 2 else inputs @ weight.T


def unroll(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and the record if asked for."""
    states, gates = [], []
    for projected in multiply(inputs, weights.weight_ih) + weights.bias:
        state, gate = cell.step(projected, state, weights)
        states.append(state)
        gates.append(gate)
    outputs = np.stack([each.hidden for each in states])
    return outputs, state, Record(stack(cell.state, states), stack(cell.gates, gates)) if record else None


def unroll_layers(
    model: ModelConfig,
    parameters: Mapping[str, Array],
    inputs: Array,
    states: tuple[Any, ...],
    dropout: Dropout | None,
    record: bool,
    engine: Engine,
) -> tuple[Array, tuple[Any, ...], list[Layer]]:
    """All layers -> outputs of the top one, states after the last step, what happened in each."""
    cell = cell_of(model)
    finals, layers = [], []
    for k, state in enumerate(states):
        outputs, final, steps = engine.unroll(cell, inputs, state, layer_weights(cell, parameters, k), record)
        if model.residual:
            outputs = outputs + shortcut(inputs, parameters.get(f"rnn.residual_l{k}"))
        factors = None
        if dropout and dropout.rates[k]:
            outputs, factors = drop(outputs, k, dropout)
        finals.append(final)
        layers.append(Layer(inputs, steps, factors))
        inputs = outputs
    return inputs, tuple(finals), layers


def shortcut(inputs: Array, weight: Array | None) -> Array:
    """What a residual connection adds: the inputs, projected if there is a weight."""
    return inputs if weight is None else multiply(inputs, weight)


def stack(kind: Any, steps: list[Any]) -> Any:
    """Named tuples of [B, H] to one of [T, B, H]."""
    return kind(*(np.stack(field) for field in zip(*steps, strict=True)))


def unroll_backward(
    cell: Cell, d_outputs: Array, inputs: Array, state: Any, weights: Any, record: Record
) -> tuple[Array | None, Any, dict[str, Array]]:
    """Gradients at the inputs (None for tokens), at the state before the first step, and of the weights.

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
    d_inputs, d_weight_ih = multiply_backward(d_x, inputs, weights.weight_ih)
    d_weights = cell.weights_backward(d_x, d_h, befores, record.states, record.gates)
    return d_inputs, d_state, {"weight_ih": d_weight_ih, "bias": d_x.sum((0, 1))} | d_weights


def unroll_layers_backward(
    model: ModelConfig,
    parameters: Mapping[str, Array],
    d_outputs: Array,
    states: tuple[Any, ...],
    layers: list[Layer],
    engine: Engine,
) -> tuple[Array | None, tuple[Any, ...], dict[str, Array]]:
    """Down the stack -> gradients at the inputs (None for tokens), at the states before, of the layers' parameters."""
    cell = cell_of(model)
    d_states: list[Any] = []
    gradients: dict[str, Array] = {}
    for k in reversed(range(model.num_layers)):
        inputs, record, factors = layers[k]
        if factors is not None:
            d_outputs = d_outputs * factors
        weights = layer_weights(cell, parameters, k)
        d_inputs, d_state, d_weights = engine.unroll_backward(cell, d_outputs, inputs, states[k], weights, record)
        if f"rnn.residual_l{k}" in parameters:
            d_added, d_weights["residual"] = multiply_backward(d_outputs, inputs, parameters[f"rnn.residual_l{k}"])
            d_inputs = None if d_added is None else d_inputs + d_added
        elif model.residual:
            d_inputs = d_inputs + d_outputs
        d_outputs = d_inputs
        d_states.append(d_state)
        gradients |= {f"rnn.{field}_l{k}": value for field, value in d_weights.items()}
    return d_outputs, tuple(reversed(d_states)), gradients


SCRATCH = Engine(unroll, unroll_backward)


def multiply_backward(d_product: Array, inputs: Array, weight: Array) -> tuple[Array | None, Array]:
    """Gradients at the inputs of `multiply` (None for tokens) and of its weight."""
    if inputs.ndim == 2:
        d_weight = np.zeros_like(weight)
        add_rows(d_weight.T, inputs.reshape(-1), d_product.reshape(-1, d_product.shape[-1]))
        return None, d_weight
    return d_product @ weight, product(d_product, inputs)


def shift(first: Array, rest: Array) -> Array:
    """The field before each step: [B, H] and [T, B, H] after each step -> [T, B, H]."""
    return np.concatenate([first[None], rest[:-1]])


def at(steps: Any, t: int) -> Any:
    """One step out of a stacked named tuple."""
    return type(steps)(*(field[t] for field in steps))
