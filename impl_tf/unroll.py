"""A cell over time, and layers over a stack. Time stands first here, [T, B, ...]: a step is then a contiguous slice."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array
from impl_tf.gru import GRUGates, GRUState, GRUWeights, gru_step
from impl_tf.lstm import LSTMGates, LSTMState, LSTMWeights, lstm_step
from impl_tf.rnn import RNNGates, RNNState, RNNWeights, rnn_step


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
    if inputs.shape.rank == 2:
        return tf.gather(tf.transpose(weights.weight_ih), inputs) + weights.bias
    return tf.linalg.matmul(inputs, weights.weight_ih, transpose_b=True) + weights.bias


def unroll(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and the record if asked for."""
    projected = project(inputs, weights)
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
    cell: Cell, inputs: Array, states: tuple[Any, ...], weights: list[Any], record: bool
) -> tuple[Array, tuple[Any, ...], list[Record | None]]:
    """All layers -> outputs of the top one, states after the last step, records."""
    finals, records = [], []
    for state, each in zip(states, weights, strict=True):
        inputs, final, layer_record = unroll(cell, inputs, state, each, record)
        finals.append(final)
        records.append(layer_record)
    return inputs, tuple(finals), records


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
