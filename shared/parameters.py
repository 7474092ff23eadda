"""Canonical parameters: names and shapes. Conventions: the table at the end of `shared.contract`; initial values:
`shared.initializers`."""

from collections.abc import Mapping

import numpy as np

from shared.config import ModelConfig
from shared.errors import ParameterError

Array = np.ndarray
GATES = {"rnn": 1, "lstm": 4, "gru": 3, "wrnn": 1}
"""G, the blocks stacked along axis 0 of weight_ih."""
STATES = {"rnn": ("hidden",), "lstm": ("hidden", "cell"), "gru": ("hidden",), "wrnn": ("hidden", "first")}
"""Fields of a cell's state."""


def cell_variant(model: ModelConfig) -> str:
    """The cell and how it is varied: rnn-tanh, rnn-relu, lstm, gru-after, gru-before or wrnn."""
    variants = {"rnn": f"rnn-{model.nonlinearity}", "gru": f"gru-{model.gru_reset}"}
    return variants.get(model.cell, model.cell)


def parameter_shapes(model: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape, in canonical order."""
    shapes: dict[str, tuple[int, ...]] = {}
    if model.embedding_size:
        shapes["embedding.weight"] = (vocabulary_size, model.embedding_size)
    for layer in range(model.num_layers):
        tokens = not layer and not model.embedding_size
        inputs = model.hidden_size if layer else model.embedding_size or vocabulary_size
        fields = cell_shapes(model, inputs, tokens)
        shapes |= {f"rnn.{field}_l{layer}": shape for field, shape in fields.items()}
    if not model.tied_weights:
        shapes["decoder.weight"] = (vocabulary_size, model.hidden_size)
    shapes["decoder.bias"] = (vocabulary_size,)
    return shapes


def cell_shapes(model: ModelConfig, inputs: int, tokens: bool) -> dict[str, tuple[int, ...]]:
    """Field -> shape of one layer that reads `inputs` numbers, or one of so many tokens."""
    hidden, gates = model.hidden_size, GATES[model.cell] * model.hidden_size
    square = (hidden, hidden)
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (gates, inputs),
        "weight_hh": (gates, hidden),
        "bias": (gates,),
    }
    if model.cell == "gru" and model.gru_reset == "after":
        shapes["bias_hn"] = (hidden,)
    if model.cell == "wrnn":
        shapes |= {"weight_ab": square, "weight_skip": square, "weight_bb": square, "bias_b": (hidden,)}
    if model.residual and (tokens or inputs != hidden):
        shapes["residual"] = (hidden, inputs)
    return shapes


def state_shapes(model: ModelConfig, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the recurrent state."""
    fields = [f"{field}_l{layer}" for layer in range(model.num_layers) for field in STATES[model.cell]]
    return dict.fromkeys(fields, (batch_size, model.hidden_size))


def check_arrays(what: str, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ParameterError unless the arrays have exactly these names and shapes."""
    problems = [f"missing {name} {list(shape)}" for name, shape in shapes.items() if name not in arrays]
    problems += [f"unexpected {name}" for name in arrays if name not in shapes]
    for name in shapes.keys() & arrays.keys():
        if tuple(arrays[name].shape) != tuple(shapes[name]):
            problems.append(f"{name} has shape {list(arrays[name].shape)}, expected {list(shapes[name])}")
    if problems:
        raise ParameterError(f"{what} do not fit the model: {'; '.join(sorted(problems))}.")
