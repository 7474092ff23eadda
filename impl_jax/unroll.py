"""A cell over time, and layers over a stack. Time stands first here, [T, B, ...]: a step is then a contiguous slice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from impl_jax.arrays import Array
from impl_jax.gru import GRUGates, GRUState, GRUWeights, gru_step
from impl_jax.lstm import LSTMGates, LSTMState, LSTMWeights, lstm_step
from impl_jax.rnn import RNNGates, RNNState, RNNWeights, rnn_step


class Cell(NamedTuple):
    """What unrolling needs to know of a cell."""

    state: Any
    weights: Any
    gates: Any
    step: Callable[..., Any]


CELLS = {
    "rnn": Cell(RNNState, RNNWeights, RNNGates, rnn_step),
    "lstm": Cell(LSTMState, LSTMWeights, LSTMGates, lstm_step),
    "gru": Cell(GRUState, GRUWeights, GRUGates, gru_step),
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
    # Written `@ weight_ih.T`, the product of a single row would copy the transposed weight each time.
    return jnp.einsum("tbi,gi->tbg", inputs, weights.weight_ih) + weights.bias


def unroll(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and the record if asked for."""

    def advance(before: Any, projected: Array) -> tuple[Any, Record]:
        after, gates = cell.step(projected, before, weights)
        return after, Record(after, gates)

    # XLA drops what nobody reads of the record.
    state, steps = lax.scan(advance, state, project(inputs, weights))
    return steps.states.hidden, state, steps if record else None


def unroll_layers(
    cell: Cell, inputs: Array, states: tuple[Any, ...], weights: list[Any], record: bool
) -> tuple[Array, tuple[Any, ...], list[Record | None]]:
    """All layers -> outputs of the top one, states after the last step, records."""
    finals, records = [], []
    for state, each in zip(states, weights, strict=True):
        inputs, final, layer_record = unroll(cell, inputs, state, each, record)
        finals.append(final)
        records.append(layer_record)
    return inputs, tuple(finals), records
