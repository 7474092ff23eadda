"""A layer whose way back is written by hand: it computes the gates' gradients step by step and leaves the weights'
gradients to one product over all steps, where TensorFlow's own gradient multiplies and adds at every step."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from impl_tf.arrays import Array
from impl_tf.embedding import ACTIVATIONS, rows
from impl_tf.optimizer import Arrays
from impl_tf.unroll import Cell, Record, times, unroll
from shared.config import ModelConfig

Backward = Callable[..., tuple[Array, ...]]
"""Gradients of a layer's results -> those of its arguments."""


def unroll_fused(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and no record: there is none."""
    if inputs.shape[0] == 1:
        return unroll(cell, inputs, state, weights, record)  # nothing to gain: XLA has no loop for a single step
    projected = project(inputs, weights.weight_ih, weights.bias)
    outputs, *after = LAYERS[cell.name](projected, *state, weights.weight_hh, *weights[3:])
    return outputs, cell.state(*after), None


def fold_embedding(model: ModelConfig, parameters: Arrays, count: int) -> Arrays:
    """The parameters for `count` tokens. Where they are more than the vocabulary, there is no embedding any more, and
    W_ih @ act(embedding)^T [G*H, V] is the weight_ih of layer 0, which then reads one-hot vectors."""
    table = parameters.get("embedding.weight")
    if table is None or model.residual or table.shape[0] >= count:
        return parameters
    first, every = "rnn.weight_ih_l0", ACTIVATIONS[model.embedding_activation](table)
    others = {name: value for name, value in parameters.items() if name != "embedding.weight"}
    return others | {first: tf.linalg.matmul(parameters[first], every, transpose_b=True)}


def project(inputs: Array, weight: Array, bias: Array) -> Array:
    """W x + b of every step: inputs [T, B, I], or tokens [T, B] for one-hot vectors, -> [T, B, out]."""
    return rows(tf.transpose(weight) + bias, inputs) if inputs.shape.rank == 2 else affine(inputs, weight, bias)


@tf.custom_gradient
def affine(inputs: Array, weight: Array, bias: Array) -> tuple[Array, Backward]:
    """`project` of vectors."""

    def backward(d_products: Array) -> tuple[Array, ...]:
        return times(d_products, tf.transpose(weight)), *over_steps(d_products, inputs)

    return times(inputs, weight) + bias, backward


@tf.custom_gradient
def lstm_layer(projected: Array, hidden: Array, cell: Array, weight_hh: Array) -> tuple[tuple[Array, ...], Backward]:
    """projected [T, B, 4H] is W x + b of every step; state [B, H] -> outputs [T, B, H], the state after them."""
    read, turned = reader(projected), tf.transpose(weight_hh)
    # All gates in one tanh, since sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.
    half = tf.repeat(tf.constant([0.5, 0.5, 1, 0.5], projected.dtype), hidden.shape[-1])

    def step(t: Array, hidden: Array, cell: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        gates = half * tf.tanh(half * (read(t) + tf.linalg.matmul(hidden, turned))) + (1 - half)
        i, f, g, o = tf.split(gates, 4, axis=-1)
        after = f * cell + i * g
        hidden = o * tf.tanh(after)
        return (hidden, after), (hidden, cell, gates)

    (last, last_cell), (outputs, cells, gates) = loop(step, projected.shape[0], (hidden, cell), (1, 1, 4))

    def backward(d_outputs: Array, d_last: Array, d_last_cell: Array) -> tuple[Array, ...]:
        read_gates, read_cell, read_output = map(reader, (gates, cells, d_outputs))

        def step_back(t: Array, d_hidden: Array, d_cell: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            (i, f, g, o), before = tf.split(read_gates(t), 4, axis=-1), read_cell(t)
            bent = tf.tanh(f * before + i * g)
            d_hidden = d_hidden + read_output(t)
            d_cell = d_cell + d_hidden * o * (1 - bent * bent)
            d_i, d_f = d_cell * g * i * (1 - i), d_cell * before * f * (1 - f)
            d_g, d_o = d_cell * i * (1 - g * g), d_hidden * bent * o * (1 - o)
            d_gates = tf.concat([d_i, d_f, d_g, d_o], axis=-1)
            return (tf.linalg.matmul(d_gates, weight_hh), d_cell * f), (d_gates,)

        carry, (d_gates,) = loop(step_back, projected.shape[0], (d_last, d_last_cell), (4,), backwards=True)
        d_weight, _ = over_steps(d_gates, befores(hidden, outputs))
        return d_gates, *carry, d_weight

    return (outputs, last, last_cell), backward


@tf.custom_gradient
def gru_layer(projected: Array, hidden: Array, weight_hh: Array, bias_hn: Array) -> tuple[tuple[Array, ...], Backward]:
    """projected [T, B, 3H] is W x + b of every step; state [B, H] -> outputs [T, B, H], the state after them."""
    read, turned = reader(projected), tf.transpose(weight_hh)
    pair = [2 * hidden.shape[-1], hidden.shape[-1]]

    def step(t: Array, hidden: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        x_rz, x_n = tf.split(read(t), pair, axis=-1)
        h_rz, h_n = tf.split(tf.linalg.matmul(hidden, turned), pair, axis=-1)
        rz, recurrent = tf.sigmoid(x_rz + h_rz), h_n + bias_hn
        r, z = tf.split(rz, 2, axis=-1)
        n = tf.tanh(x_n + r * recurrent)
        after = (1 - z) * n + z * hidden
        return (after,), (after, rz, n, recurrent)

    (last,), (outputs, *kept) = loop(step, projected.shape[0], (hidden,), (1, 2, 1, 1))

    def backward(d_outputs: Array, d_last: Array) -> tuple[Array, ...]:
        states = befores(hidden, outputs)
        readers = [*map(reader, (*kept, states, d_outputs))]

        def step_back(t: Array, d_hidden: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            rz, n, recurrent, before, d_output = (read(t) for read in readers)
            r, z = tf.split(rz, 2, axis=-1)
            d_hidden = d_hidden + d_output
            d_n = d_hidden * (1 - z) * (1 - n * n)
            d_z, d_r = d_hidden * (before - n) * z * (1 - z), d_n * recurrent * r * (1 - r)
            d_products = tf.concat([d_r, d_z, d_n * r], axis=-1)
            return (d_hidden * z + tf.linalg.matmul(d_products, weight_hh),), (d_products, d_n)

        carry, (d_products, d_n) = loop(step_back, projected.shape[0], (d_last,), (3, 1), backwards=True)
        d_weight, d_bias = over_steps(d_products, states)
        d_projected = tf.concat([d_products[..., : pair[0]], d_n], axis=-1)
        return d_projected, *carry, d_weight, d_bias[pair[0] :]

    return (outputs, last), backward


LAYERS: dict[str, Callable[..., Any]] = {"lstm": lstm_layer, "gru-after": gru_layer}
"""Of a cell's name: W x + b of every step, the state, and the other weights -> outputs, and the state after them."""


def reader(steps: Array) -> Callable[[Array], Array]:
    """t -> one step [B, ...] of [T, B, ...]."""
    return tf.TensorArray(steps.dtype, steps.shape[0]).unstack(steps).read


def loop(
    step: Callable[..., Any], length: int, carry: tuple[Array, ...], widths: tuple[int, ...], backwards: bool = False
) -> tuple[tuple[Array, ...], list[Array]]:
    """step(t, *carry) -> carry, kept; the last carry, and what the steps kept: of each [T, B, width * H]."""
    B, H = carry[0].shape
    lists = [tf.TensorArray(carry[0].dtype, length, element_shape=(B, width * H)) for width in widths]

    def advance(k: Array, carry: tuple[Array, ...], lists: list[Array]) -> tuple[Any, ...]:
        t = length - 1 - k if backwards else k
        carry, kept = step(t, *carry)
        return k + 1, carry, [each.write(t, value) for each, value in zip(lists, kept, strict=True)]

    start = tf.constant(0), carry, lists
    _, carry, lists = tf.while_loop(lambda k, *_: k < length, advance, start, maximum_iterations=length)
    return carry, [each.stack() for each in lists]


def befores(start: Array, steps: Array) -> Array:
    """The state [T, B, H] that each step starts from."""
    return tf.concat([start[None], steps[:-1]], axis=0)


def over_steps(d_products: Array, inputs: Array) -> tuple[Array, Array]:
    """The gradients of W [out, in] and b [out], of all steps in one product: [T, B, out], [T, B, in]. A bias is the
    weight of an input that is always one; and with it XLA leaves the product in the faster of its two orders."""
    extended = tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1)
    flat = [tf.reshape(each, (-1, each.shape[-1])) for each in (extended, d_products)]
    both = tf.linalg.matmul(flat[0], flat[1], transpose_a=True)
    return tf.transpose(both[:-1]), both[-1]
