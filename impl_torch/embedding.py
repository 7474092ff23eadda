"""Tokens to vectors, with an activation if asked for."""

from collections.abc import Callable, Mapping

import torch

from impl_torch.arrays import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


def embed(tokens: Array, parameters: Mapping[str, Array], activation: str) -> Array:
    """tokens [T, B] -> vectors [T, B, E]; without an embedding, the tokens, which stand for one-hot vectors."""
    if "embedding.weight" not in parameters:
        return tokens
    return ACTIVATIONS[activation](torch.nn.functional.embedding(tokens, parameters["embedding.weight"]))
