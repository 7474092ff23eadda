"""Tokens to vectors, with an activation if asked for."""

from collections.abc import Callable, Mapping

import numpy as np

from impl_numpy.arrays import Array, add_rows, sigmoid

Function = Callable[[Array], Array]
ACTIVATIONS: dict[str, Function] = {
    "none": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
}
SLOPES: dict[str, Function] = {
    "none": np.ones_like,
    "tanh": lambda y: 1 - y**2,
    "relu": lambda y: (y > 0).astype(y.dtype),
    "sigmoid": lambda y: y * (1 - y),
}
"""Derivative of each activation, given its output."""


def embed(tokens: Array, parameters: Mapping[str, Array], activation: str) -> Array:
    """tokens [T, B] -> vectors [T, B, E]; without an embedding, the tokens, which stand for one-hot vectors."""
    if "embedding.weight" not in parameters:
        return tokens
    return ACTIVATIONS[activation](parameters["embedding.weight"][tokens])


def embed_backward(d_vectors: Array, vectors: Array, tokens: Array, table: Array, activation: str) -> Array:
    """Gradient at the embedding's table."""
    d_rows = (d_vectors * SLOPES[activation](vectors)).reshape(tokens.size, -1)
    d_table = np.zeros_like(table)
    add_rows(d_table, tokens.reshape(-1), d_rows)
    return d_table
