"""Tokens to vectors, with an activation if asked for."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from impl_jax.arrays import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}


def embed(tokens: Array, parameters: Mapping[str, Array], activation: str) -> Array:
    """tokens [T, B] -> vectors [T, B, E]; without an embedding, the tokens, which stand for one-hot vectors."""
    if "embedding.weight" not in parameters:
        return tokens
    return ACTIVATIONS[activation](parameters["embedding.weight"][tokens])
