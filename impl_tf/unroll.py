"""A cell over time, and layers over a stack. Time stands first here, [T, B, ...]: a step is then a contiguous slice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array
from impl_tf.dropout import Dropout, drop
from impl_tf.embedding import rows
from impl_tf.gru import (
    GRUGates,
    GRUState,
    GRUWeights,
    ResetBeforeGates,
    ResetBeforeWeights,
    gru_step,
    reset_before_step,
)
from impl_tf.lstm import LSTMGates, LSTMState, LSTMWeights, lstm_step
from impl_tf.rnn import RNNGates, RNNState, RNNWeights, relu_step, tanh_step
from impl_tf.wrnn import WRNNGates, WRNNState, WRNNWeights, wrnn_step
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
"""One layer over time: `unroll`, impl_tf.fused's, or one of impl_tf.native."""


def cell_of(model: ModelConfig) -> Cell:
    """The cell that the model's options describe."""
    return CELLS[cell_variant(model)]


def layer_weights(cell: Cell, parameters: Mapping[str, Array], layer: int) -> Any:
    """The canonical parameters of a layer as the cell's weights."""
    return cell.weights(*(parameters[f"rnn.{field}_l{layer}"] for field in cell.weights._fields))


def multiply(inputs: Array, weight: Array) -> Array:
    """W x of every step in one product: inputs [T, B, I], or tokens [T, B] for one-hot vectors, -> [T, B, out]."""
    if inputs.shape.rank == 2:
        return rows(tf.transpose(weight), inputs)
    return times(inputs, weight)


def times(inputs: Array, weight: Array) -> Array:
    """W x of vectors [..., I] as one product of two axes: of more, the gradient of W would be T products and a sum."""
    flat = tf.linalg.matmul(tf.reshape(inputs, (-1, inputs.shape[-1])), weight, transpose_b=True)
    return tf.reshape(flat, (*inputs.shape[:-1], weight.shape[0]))


def unroll(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and the record if asked for."""
    projected = multiply(inputs, weights.weight_ih) + weights.bias
    length = projected.shape[0]
    columns = tf.TensorArray(projected.dtype, length).unstack(projected)

    def advance(t: Array, before: Any, lists: list[Array]) -> tuple[Array, Any, list[Array]]:
        after, gates = cell.step(columns.read(t), before, weights)
        return t + 1, after, list(map(push, lists, kept(after, gates)))

    def kept(after: Any, gates: Any) -> tuple[Array, ...]:
        return (*after, *gates) if record else (after.hidden,)

    lists = [empty_list(state.hidden, length) for _ in kept(state, cell.gates._fields)]
    start = tf.constant(0), state, lists
    _, final, lists = tf.while_loop(lambda t, *_: t < length, advance, start, maximum_iterations=length)
    steps = [stack(each, state.hidden, length) for each in lists]
    fields = len(state)
    return steps[0], final, Record(cell.state(*steps[:fields]), cell.gates(*steps[fields:])) if record else None


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


# Lists that only grow: the gradient of TensorArray.write zeroes what it has read, for which XLA copies the whole array
# at every step, a third of the time that training takes.


def empty_list(like: Array, length: int) -> Array:
    """A list with room for `length` tensors of the shape [B, H]."""
    return tf.raw_ops.EmptyTensorList(element_shape=tf.shape(like), max_num_elements=length, element_dtype=like.dtype)


def push(steps: Array, value: Array) -> Array:
    """The list, longer by one."""
    return tf.raw_ops.TensorListPushBack(input_handle=steps, tensor=value)


def stack(steps: Array, like: Array, length: int) -> Array:
    """A list of [B, H] to one [T, B, H]."""
    return tf.raw_ops.TensorListStack(
        input_handle=steps, element_shape=tf.shape(like), element_dtype=like.dtype, num_elements=length
    )
