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


def fold(parameters: Mapping[str, Array], activation: str) -> dict[str, Array]:
    """The parameters of the same layers without an embedding, for a small vocabulary: a token picks a column of
    W_ih act(embedding)^T [G*H, V]."""
    vectors = ACTIVATIONS[activation](parameters["embedding.weight"])
    return {**parameters, "rnn.weight_ih_l0": parameters["rnn.weight_ih_l0"] @ vectors.T}


def fold_backward(d_folded: Array, parameters: Mapping[str, Array], activation: str) -> dict[str, Array]:
    """Gradients of the embedding and of W_ih from that of their product [G*H, V]."""
    vectors, weight = ACTIVATIONS[activation](parameters["embedding.weight"]), parameters["rnn.weight_ih_l0"]
    d_table = (d_folded.T @ weight) * SLOPES[activation](vectors)
    return {"embedding.weight": d_table, "rnn.weight_ih_l0": d_folded @ vectors}
