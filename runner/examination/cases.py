"""What is examined: models, optimizers, and batches for them.

They are made so that a mistake shows: every axis has another size, weights are asymmetric, biases are not zero,
rows end at different steps, one is empty, some start anew, clipping bites in some steps only, the learning rate
changes, and epsilon is large enough for its place to matter. `CASES` cover every option of the models, every optimizer,
and every formula that a dialect writes differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from runner.examination.near_ties import Writing
from shared.config import Dtype, Engine, ModelConfig, OptimizerConfig, layer_limit
from shared.contract import Batch
from shared.errors import ConfigError
from shared.parameters import parameter_shapes, state_shapes
from shared.random_bits import normals, permutation, uniforms
from shared.sampling import SamplingRule

Arrays = Mapping[str, np.ndarray]
K, B, T, V, H, E = 50, 3, 6, 11, 7, 5
PROMPT, WRITTEN = 4, 24
RATES = np.where(np.arange(K) < K // 3, 0.02, 0.01)
"""Learning rates of the training."""
CALMER = {"rmsprop, centered, momentum": 0.2}
"""Of these rates: where momentum comes on top of a division by a spread near zero, rounding grows a millionfold within
50 steps of some rnn, in float64 as in float32."""
OPTIMIZERS = {
    "sgd": OptimizerConfig(optimizer="sgd"),
    "sgd, clipped by value": OptimizerConfig(optimizer="sgd", clip_norm=0.0, clip_value=0.02),
    "momentum": OptimizerConfig(optimizer="momentum", clip_layers=("l0=0.3", "decoder=0.2"), clip_norm=0.0),
    "momentum, keras": OptimizerConfig(optimizer="momentum", dialect="keras"),
    "nesterov": OptimizerConfig(optimizer="nesterov"),
    "nesterov, keras": OptimizerConfig(
        optimizer="nesterov", dialect="keras", clip_norm=0.25, clip_value=0.05, clip_layers=("l0=0.2",)
    ),
    "adagrad": OptimizerConfig(optimizer="adagrad", initial_accumulator=0.1),
    "adagrad, keras": OptimizerConfig(optimizer="adagrad", dialect="keras"),
    "rmsprop": OptimizerConfig(optimizer="rmsprop"),
    "rmsprop, centered, momentum": OptimizerConfig(optimizer="rmsprop", centered=True, rmsprop_momentum=0.7),
    "rmsprop, keras, centered": OptimizerConfig(optimizer="rmsprop", dialect="keras", centered=True),
    "rmsprop, optax, momentum": OptimizerConfig(optimizer="rmsprop", dialect="optax", rmsprop_momentum=0.7),
    "adam": OptimizerConfig(optimizer="adam"),
    "adam, keras": OptimizerConfig(optimizer="adam", dialect="keras"),
    "adamw": OptimizerConfig(optimizer="adamw", weight_decay=0.3),
    "adamw, keras": OptimizerConfig(optimizer="adamw", dialect="keras", weight_decay=0.3),
}
"""Every optimizer; in another dialect where its formula differs from PyTorch's."""
WHOLE = ("forward", "evaluation", "gradients", "training", "tokens", "traced")
BRIEF = ("forward", "evaluation", "gradients", "training")
SPOKEN = (*BRIEF, "tokens")
TRAINED = ("forward", "training")
"""Parts of an examination. JAX and TensorFlow compile each of them, so only the plainest cases repeat them all."""


class Design(NamedTuple):
    """A case before its numbers."""

    model: ModelConfig
    optimizers: tuple[str, ...]
    parts: tuple[str, ...] = BRIEF
    native: tuple[str, ...] = ()
    """The parts that are repeated with the framework's own layer; none where no framework has one."""
    again: tuple[str, ...] = TRAINED
    """The parts that are repeated in other precisions."""


def small(cell: Any, layers: int = 2, **options: Any) -> ModelConfig:
    """A model of the examination's sizes."""
    return ModelConfig(**{"cell": cell, "hidden_size": H, "num_layers": layers, "embedding_size": E, **options})


CASES = {
    "rnn": Design(small("rnn"), ("sgd", "adam"), WHOLE, BRIEF),
    "rnn one-hot": Design(small("rnn", 1, embedding_size=0), ("momentum", "rmsprop", "adagrad, keras")),
    "rnn relu, activation": Design(
        small("rnn", 1, nonlinearity="relu", embedding_activation="tanh"),
        ("rmsprop, centered, momentum",),
        native=BRIEF,
    ),
    "lstm": Design(small("lstm"), ("adam", "sgd, clipped by value"), WHOLE, BRIEF, SPOKEN),
    "lstm one-hot, residual": Design(
        small("lstm", embedding_size=0, residual=True), ("nesterov", "adam, keras"), native=BRIEF
    ),
    "lstm dropout, tied": Design(
        small("lstm", 3, dropout=0.4, output_dropout=0.2, tied_weights=True, embedding_size=H), ("adamw",)
    ),
    "lstm many-to-one": Design(
        small("lstm", 1, many_to_one=True, embedding_activation="relu"), ("rmsprop, keras, centered",)
    ),
    "gru": Design(small("gru"), ("momentum, keras",), WHOLE, BRIEF),
    "gru residual, dropout": Design(
        small("gru", 3, residual=True, dropout=0.3), ("adagrad", "rmsprop, optax, momentum")
    ),
    "gru reset before": Design(small("gru", 1, gru_reset="before"), ("nesterov, keras",), native=BRIEF),
    "wrnn": Design(small("wrnn"), ("adamw, keras",), WHOLE),
    "wrnn one-hot, many-to-one": Design(small("wrnn", 1, embedding_size=0, many_to_one=True), ("sgd",)),
    "wrnn residual, sigmoid": Design(small("wrnn", residual=True, embedding_activation="sigmoid"), ("rmsprop",)),
}
CELLS = ("rnn", "lstm", "gru", "wrnn")
"""Names of the cells; the case of a cell's name is its plainest."""
VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn"},
    "rnn relu": {"cell": "rnn", "nonlinearity": "relu"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "gru reset before": {"cell": "gru", "gru_reset": "before"},
    "wrnn": {"cell": "wrnn"},
}
INPUTS: dict[str, dict[str, Any]] = {
    "one-hot": {"embedding_size": 0},
    "embedding": {},
    **{f"embedding {name}": {"embedding_activation": name} for name in ("tanh", "relu", "sigmoid")},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "residual": {"residual": True},
    "dropout": {"dropout": 0.3, "output_dropout": 0.2},
    "tied": {"tied_weights": True},
    "many-to-one": {"many_to_one": True},
}


class Case(NamedTuple):
    """One examination: a model, its weights, and what it is fed. Values are exact in float32."""

    name: str
    model: ModelConfig
    optimizers: dict[str, OptimizerConfig]
    parts: tuple[str, ...]
    native: tuple[str, ...]
    again: tuple[str, ...]
    parameters: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    batches: Batch  # [K, B, T]


def designs(cell: str, full: bool) -> dict[str, Design]:
    """What is examined of a cell, or of "all": the covering selection and, with `full`, the whole grid."""
    selection = {name: CASES[name] for each in CELLS for name in CASES if CASES[name].model.cell == each}
    found = selection | (whole_grid() if full else {})
    return {name: design for name, design in found.items() if cell in ("all", design.model.cell)}


def whole_grid() -> dict[str, Design]:
    """Every combination of cell, depth, input and switches that `ModelConfig` allows, each with one optimizer, in an
    order that is random and always the same: any part of it is a fair sample."""
    found: dict[str, ModelConfig] = {}
    for cell, layers, given, on in product(VARIANTS, (1, 2, 3), INPUTS, product((False, True), repeat=len(SWITCHES))):
        switches = [name for name, chosen in zip(SWITCHES, on, strict=True) if chosen]
        options = {key: value for name in switches for key, value in SWITCHES[name].items()}
        size = {"embedding_size": H if "tied" in switches else E}
        if layers == 1:  # nothing lies between layers
            options.pop("dropout", None)
        try:
            model = small(layers=layers, **VARIANTS[cell], **{**size, **INPUTS[given]}, **options)
        except ConfigError:  # tied weights without an embedding
            continue
        found[", ".join((cell, counted(layers), given, *switches))] = model
    names, labels = list(found), list(OPTIMIZERS)
    shuffled = [names[place] for place in permutation(7, "check.grid", len(names))]
    return {
        name: Design(
            found[name], (labels[place % len(labels)],), BRIEF, () if found[name].cell == "wrnn" else BRIEF, BRIEF
        )
        for place, name in enumerate(shuffled)
    }


def counted(layers: int) -> str:
    """As words: "1 layer", "2 layers"."""
    return f"{layers} layer" if layers == 1 else f"{layers} layers"


def small_copy(model: ModelConfig, optimizer: OptimizerConfig, engine: Engine) -> Case:
    """A case with a user's options, in the examination's sizes."""
    embedding_size = (H if model.tied_weights else E) if model.embedding_size else 0
    layers = min(model.num_layers, 3)
    copied = replace(model, hidden_size=H, num_layers=layers, embedding_size=embedding_size)
    case = make_case(model.cell, Design(copied, (), WHOLE, BRIEF if engine != "scratch" else ()))
    present = ("embedding", "decoder", *(f"l{k}" for k in range(layers)))
    limits = tuple(each for each in optimizer.clip_layers if layer_limit(each)[0] in present)
    strong = replace(strengthened(optimizer), clip_layers=limits)
    return case._replace(optimizers={optimizer.optimizer: strong})


def make_case(name: str, design: Design) -> Case:
    """Random weights, state and batches."""
    model = design.model
    # The last two tokens are never read, so their rows of the embedding must have a gradient of exactly zero.
    tokens, targets = (integers(place, limit, (K, B, T)) for place, limit in (("tokens", V - 2), ("targets", V)))
    # About half of the rows go on in the next batch; in every second batch they stand longest first.
    lengths = np.where(integers("whole", 2, (K, B, 1)) == 0, T, 1 + integers("lengths", T, (K, B, 1)))
    lengths[::2] = -np.sort(-lengths[::2], axis=1)
    # Two batches with as many tokens, one with an empty row: whoever compiles for a number of tokens does so once.
    lengths[:2, :, 0] = [[6, 3, 1], [4, 6, 0]]
    reset = integers("reset", 4, (K, B)) == 0
    reset[0] = [False, True, False]
    optimizers = {label: strengthened(OPTIMIZERS[label]) for label in design.optimizers}
    return Case(
        name,
        model,
        optimizers,
        design.parts,
        design.native,
        design.again,
        {name: numbers(name, 0.4, shape) for name, shape in parameter_shapes(model, V).items()},
        {name: numbers(name, 0.7, shape) for name, shape in state_shapes(model, B).items()},
        Batch(tokens, targets[:, :, 0] if model.many_to_one else targets, np.arange(T) < lengths, reset),
    )


def abridged(case: Case, engine: Engine = "scratch", again: bool = True) -> Case:
    """What engine and precision decide, with the first optimizer only; `again`: in a precision after the first."""
    label, optimizer = next(iter(case.optimizers.items()))
    asked = ("training",) if again else ("forward", "gradients", "training")  # what they have of their own
    parts = case.again if engine == "scratch" else tuple(part for part in case.native if part in asked)
    return case._replace(parts=parts, optimizers={label: optimizer})


def precisions(case: Case, engine: Engine, dtypes: Sequence[Dtype]) -> Sequence[Dtype]:
    """Those a case is examined in. How other engines round, each cell's plainest case says for the covering selection:
    its further cases ask which options an engine knows."""
    return dtypes[:1] if engine != "scratch" and case.name in CASES and case.name not in CELLS else dtypes


def strengthened(optimizer: OptimizerConfig) -> OptimizerConfig:
    """With numbers that make a mistake visible within 50 steps."""
    clip_norm = min(optimizer.clip_norm, 0.7)
    return replace(optimizer, betas=(0.8, 0.95), alpha=0.9, momentum=0.8, epsilon=1e-2, clip_norm=clip_norm)


def numbers(place: str, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers, exact in float32."""
    values = scale * normals(7, f"check.{place}", int(np.prod(shape))).reshape(shape)
    return values.astype(np.float32).astype(np.float64)


def integers(place: str, limit: int, shape: tuple[int, ...]) -> np.ndarray:
    """int32 below a limit."""
    return (uniforms(7, f"check.{place}", int(np.prod(shape))).reshape(shape) * limit).astype(np.int32)


def writings(case: Case) -> dict[str, Writing]:
    """What is written after ragged prompts; some tokens forced, some forbidden, rows that end."""
    prompt, lengths = case.batches.tokens[2][:, :PROMPT], np.array([2, PROMPT, 1], np.int32)
    draws = uniforms(7, "check.draws", B * WRITTEN).reshape(B, WRITTEN)
    forced = np.where(integers("forced", 8, (B, WRITTEN)) == 0, 4, -1).astype(np.int32)
    allowed = integers("allowed", 5, (WRITTEN, V)) > 0
    allowed[:, 0] = True
    return {
        "greedy": Writing(prompt, lengths, draws, SamplingRule(temperature=0.0)),
        "sampled": Writing(prompt, lengths, draws, SamplingRule(temperature=0.8)),
        "top-k and top-p": Writing(prompt, lengths, draws, SamplingRule(temperature=1.3, top_k=6, top_p=0.8)),
        "forced and forbidden": Writing(prompt, lengths, draws, SamplingRule(1.1, end=3), forced, allowed),
    }


def rates_of(optimizer: str) -> np.ndarray:
    """The learning rates [K] of an optimizer's training."""
    return RATES * CALMER.get(optimizer, 1.0)
