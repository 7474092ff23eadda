"""Canonical parameters: names, shapes, and initial values computed once in NumPy for every implementation.
Conventions: the table at the end of `shared.contract`."""

from collections.abc import Callable, Mapping

import numpy as np

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.random_bits import normals, uniforms

Array = np.ndarray
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""G, the blocks stacked along axis 0 of a recurrent weight."""
STATES = {"rnn": ("hidden",), "lstm": ("hidden", "cell"), "gru": ("hidden",)}
"""Fields of a cell's state."""


def parameter_shapes(model: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape, in canonical order."""
    hidden, gates = model.hidden_size, GATES[model.cell] * model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if model.embedding_size:
        shapes["embedding.weight"] = (vocabulary_size, model.embedding_size)
    for layer in range(model.num_layers):
        inputs = hidden if layer else model.embedding_size or vocabulary_size
        shapes[f"rnn.weight_ih_l{layer}"] = (gates, inputs)
        shapes[f"rnn.weight_hh_l{layer}"] = (gates, hidden)
        shapes[f"rnn.bias_l{layer}"] = (gates,)
        if model.cell == "gru":
            shapes[f"rnn.bias_hn_l{layer}"] = (hidden,)
    shapes["decoder.weight"] = (vocabulary_size, hidden)
    shapes["decoder.bias"] = (vocabulary_size,)
    return shapes


def state_shapes(model: ModelConfig, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the recurrent state."""
    fields = [f"{field}_l{layer}" for layer in range(model.num_layers) for field in STATES[model.cell]]
    return dict.fromkeys(fields, (batch_size, model.hidden_size))


def initial_parameters(model: ModelConfig, vocabulary_size: int, seed: int) -> dict[str, Array]:
    """float64 initial values; each depends on (seed, name, shape) alone, so that options do not disturb each other."""
    initialize = INITIALIZERS[model.initializer]
    shapes = parameter_shapes(model, vocabulary_size)
    return {name: initialize(seed, name, shape, model.hidden_size) for name, shape in shapes.items()}


def uniform(seed: int, name: str, shape: tuple[int, ...], hidden_size: int) -> Array:
    """uniform(-1/sqrt(H), 1/sqrt(H)), biases too, as PyTorch's recurrent layers; the embedding normal(0, 0.1)."""
    if name == "embedding.weight":
        return 0.1 * draw(normals, seed, name, shape)
    return (2 * draw(uniforms, seed, name, shape) - 1) / np.sqrt(hidden_size)


def normal(seed: int, name: str, shape: tuple[int, ...], hidden_size: int) -> Array:
    """normal(0, 0.01), biases zero (d2l and min-char-rnn)."""
    return np.zeros(shape) if len(shape) == 1 else 0.01 * draw(normals, seed, name, shape)


def xavier(seed: int, name: str, shape: tuple[int, ...], hidden_size: int) -> Array:
    """Uniform with variance 2 / (in + out) (Glorot and Bengio 2010), in and out counted for each gate's block, not for
    the stack of gates; biases zero."""
    if len(shape) == 1:
        return np.zeros(shape)
    fan_out = hidden_size if name.startswith("rnn.") else shape[0]
    return (2 * draw(uniforms, seed, name, shape) - 1) * np.sqrt(6 / (shape[1] + fan_out))


def draw(source: Callable[[int, str, int], Array], seed: int, name: str, shape: tuple[int, ...]) -> Array:
    """Numbers of a source in a shape."""
    return source(seed, name, int(np.prod(shape))).reshape(shape)


INITIALIZERS = {"uniform": uniform, "normal": normal, "xavier": xavier}


def check_arrays(what: str, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ParameterError unless the arrays have exactly these names and shapes."""
    problems = [f"missing {name} {list(shape)}" for name, shape in shapes.items() if name not in arrays]
    problems += [f"unexpected {name}" for name in arrays if name not in shapes]
    for name in shapes.keys() & arrays.keys():
        if tuple(arrays[name].shape) != tuple(shapes[name]):
            problems.append(f"{name} has shape {list(arrays[name].shape)}, expected {list(shapes[name])}")
    if problems:
        raise ParameterError(f"{what} do not fit the model: {'; '.join(sorted(problems))}.")
