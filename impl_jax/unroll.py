"""A cell over time, and layers over a stack. Time stands first here, [T, B, ...]: a step is then a contiguous slice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from impl_jax.arrays import Array
from impl_jax.dropout import Dropout, drop
from impl_jax.gru import (
    GRUGates,
    GRUState,
    GRUWeights,
    ResetBeforeGates,
    ResetBeforeWeights,
    gru_step,
    reset_before_step,
)
from impl_jax.lstm import LSTMGates, LSTMState, LSTMWeights, lstm_step
from impl_jax.rnn import RNNGates, RNNState, RNNWeights, relu_step, tanh_step
from impl_jax.wrnn import WRNNGates, WRNNState, WRNNWeights, wrnn_step
from shared.config import ModelConfig
from shared.parameters import cell_variant


class Cell(NamedTuple):
    """What unrolling needs to know of a cell."""

    name: str
    state: Any
    weights: Any
    gates: Any
    step: Callable[..., Any]


CELLS = {
    cell.name: cell
    for cell in (
        Cell("rnn-tanh", RNNState, RNNWeights, RNNGates, tanh_step),
        Cell("rnn-relu", RNNState, RNNWeights, RNNGates, relu_step),
        Cell("lstm", LSTMState, LSTMWeights, LSTMGates, lstm_step),
        Cell("gru-after", GRUState, GRUWeights, GRUGates, gru_step),
        Cell("gru-before", GRUState, ResetBeforeWeights, ResetBeforeGates, reset_before_step),
        Cell("wrnn", WRNNState, WRNNWeights, WRNNGates, wrnn_step),
    )
}


class Record(NamedTuple):
    """What happened in a layer, step by step."""

    states: Any  # the cell's State, each field [T, B, H], after each step
    gates: Any  # the cell's Gates, each field [T, B, H]


Engine = Callable[[Cell, Array, Any, Any, bool], tuple[Array, Any, Record | None]]
"""One layer over time: `unroll`, or `impl_jax.native.unroll_native`."""


def cell_of(model: ModelConfig) -> Cell:
    """The cell that the model's options describe."""
    return CELLS[cell_variant(model)]


def layer_weights(cell: Cell, parameters: Mapping[str, Array], layer: int) -> Any:
    """The canonical parameters of a layer as the cell's weights."""
    return cell.weights(*(parameters[f"rnn.{field}_l{layer}"] for field in cell.weights._fields))


def multiply(inputs: Array, weight: Array) -> Array:
    """W x of every step in one product: inputs [T, B, I], or tokens [T, B] for one-hot vectors, -> [T, B, out]."""
    # Written `@ weight.T`, the product of a single row would copy the transposed weight each time.
    return weight.T[inputs] if inputs.ndim == 2 else jnp.einsum("tbi,oi->tbo", inputs, weight)


def unroll(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and the record if asked for."""

    def advance(before: Any, projected: Array) -> tuple[Any, Record]:
        after, gates = cell.step(projected, before, weights)
        return after, Record(after, gates)

    # XLA drops what nobody reads of the record.
    state, steps = lax.scan(advance, state, multiply(inputs, weights.weight_ih) + weights.bias)
    return steps.states.hidden, state, steps if record else None


def unroll_layers(
    model: ModelConfig,
    parameters: Mapping[str, Array],
    inputs: Array,
    states: tuple[Any, ...],
    dropout: Dropout | None,
    record: bool,
    engine: Engine,
) -> tuple[Array, tuple[Any, ...], list[Record | None]]:
    """All layers -> outputs of the top one, states after the last step, records."""
    cell = cell_of(model)
    finals, records = [], []
    for k, state in enumerate(states):
        outputs, final, steps = engine(cell, inputs, state, layer_weights(cell, parameters, k), record)
        if model.residual:
            outputs = outputs + shortcut(inputs, parameters.get(f"rnn.residual_l{k}"))
        if dropout and dropout.rates[k]:
            outputs = drop(outputs, k, dropout)
        finals.append(final)
        records.append(steps)
        inputs = outputs
    return inputs, tuple(finals), records


def shortcut(inputs: Array, weight: Array | None) -> Array:
    """What a residual connection adds: the inputs, projected if there is a weight."""
    return inputs if weight is None else multiply(inputs, weight)
