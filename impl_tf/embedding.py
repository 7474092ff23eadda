"""Tokens to vectors, with an activation if asked for."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from impl_tf.arrays import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "tanh": tf.tanh,
    "relu": tf.nn.relu,
    "sigmoid": tf.sigmoid,
}


def embed(tokens: Array, parameters: Mapping[str, Array], activation: str) -> Array:
    """tokens [T, B] -> vectors [T, B, E]; without an embedding, the tokens, which stand for one-hot vectors."""
    if "embedding.weight" not in parameters:
        return tokens
    return ACTIVATIONS[activation](rows(parameters["embedding.weight"], tokens))


@tf.custom_gradient
def rows(table: Array, tokens: Array) -> tuple[Array, Callable[[Array], tuple[Array, None]]]:
    """table[tokens]. TensorFlow's own gradient would be slices, one an occurrence, whose norm is not the gradient's;
    here they are added up, bfloat16 in float32, where a sum does not stand still once it is 256 times what is added."""

    def backward(d_rows: Array) -> tuple[Array, None]:
        wide = tf.cast(d_rows, tf.float32) if table.dtype == tf.bfloat16 else d_rows
        d_table = tf.math.unsorted_segment_sum(wide, tokens, table.shape[0])
        return tf.cast(d_table, table.dtype), None

    return tf.gather(table, tokens), backward
