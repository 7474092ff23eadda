"""What the effects of `runner.differences` are measured with: sizes and configurations, made-up data from fixed seeds,
distances, and runs of the NumPy implementation, of the second reference with mistakes made on purpose, and of formulas
written out by hand. The effects themselves: `model` and `optimizer`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from runner.diagnosis.mistaken_model import MistakenModel
from runner.registry import create_model
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.initializers import initial_parameters
from shared.random_bits import normals, uniforms

Array = np.ndarray
Arrays = dict[str, Array]
Clip = Callable[[Arrays], Arrays]
Effect = tuple[float, float | None]
"""Before the option and after it; None where there is no option and the project always does one thing."""
STEPS, B, T, V, E, H = 50, 8, 16, 41, 24, 64
LSTM = ModelConfig(hidden_size=H, embedding_size=E)
GRU = ModelConfig(cell="gru", hidden_size=H, embedding_size=E)
DEEP = ModelConfig(hidden_size=H, embedding_size=E, num_layers=2, dropout=0.3)
SGD = OptimizerConfig(optimizer="sgd", clip_norm=0)
FLOAT64 = RuntimeConfig(dtype="float64", device="cpu")
ROUNDING = 1e-12
"""Below, a relative distance is rounding, and its digits are those of one machine."""
LOGITS, MOVED = "of the logits", "of the parameters, 50 steps"
"""Relative L2 distances."""

# Made-up data, and runs over them.


def random_parameters(model: ModelConfig, seed: int = 3) -> Arrays:
    """Every number random, biases too, at about the size of trained weights."""
    values = initial_parameters(model, V, seed)
    return {name: 0.3 * normals(seed, name, each.size).reshape(each.shape) for name, each in values.items()}


@cache
def batches() -> Batch:
    """STEPS batches of running text [K, B, T]: few tokens are frequent, as in any text."""
    drawn = uniforms(5, "differences", STEPS * B * (T + 1)).reshape(STEPS, B, T + 1)
    tokens = (V * drawn**2).astype(np.int32)
    mask, reset = np.ones((STEPS, B, T), bool), np.zeros((STEPS, B), bool)
    reset[0] = True
    return Batch(tokens[..., :-1], tokens[..., 1:], mask, reset)


def padded() -> Batch:
    """One batch of rows of 2, 4, ... 16 tokens."""
    tokens, targets, _, _ = batches()
    mask = np.arange(T) < np.arange(2, T + 1, T // B)[:, None]
    return Batch(tokens[0], targets[0], mask, np.ones(B, bool))


def distance(found: Mapping[str, Array], truth: Mapping[str, Array]) -> float:
    """L2 norm of the difference over that of the truth, all arrays together."""
    square = sum(np.square(found[name] - each).sum() for name, each in truth.items())
    return float(np.sqrt(square / sum(np.square(each).sum() for each in truth.values())))


def apart(found: Array, truth: Array) -> float:
    """The same of one array each."""
    return distance({"": found}, {"": truth})


def relative(found: float, truth: float) -> float:
    return abs(found / truth - 1)


def logits(model: ModelConfig, parameters: Arrays) -> Array:
    """Of the first batch, from the zero state [B, T, V]."""
    ours = create_model("numpy", model, SGD, V, FLOAT64)
    ours.load_parameters(parameters)
    return ours.logits(batches().tokens[0], ours.initial_state(B))[0]


def mistaken_logits(model: ModelConfig, parameters: Arrays, *made: str) -> Array:
    """The same by the second reference, with mistakes made on purpose."""
    other = MistakenModel(model, SGD, V, 0, made)
    other.load_parameters(parameters)
    states = create_model("numpy", model, SGD, V, FLOAT64)
    return other.logits(batches().tokens[0], states.dump_state(states.initial_state(B)))[0]


RATES = np.where(np.arange(STEPS) < 20, 1.0, 0.25)
"""Of a schedule with a step in it, over the first learning rate."""


def trained(
    optimizer: OptimizerConfig, rate: float, model: ModelConfig = LSTM, dtype: Any = "float64", seed: int = 0
) -> Arrays:
    """Parameters after STEPS steps."""
    ours = create_model("numpy", model, optimizer, V, RuntimeConfig(dtype=dtype, device="cpu"), seed)
    ours.load_parameters(initial_parameters(model, V, 3))
    ours.train_steps(batches(), ours.initial_state(B), rate * RATES)
    return {name: each.astype(np.float64) for name, each in ours.dump_parameters().items()}


def mistaken(model: ModelConfig, rate: float, *made: str) -> Arrays:
    """The same by plain descent in the second reference, with mistakes made on purpose."""
    other = MistakenModel(model, SGD, V, 0, made)
    other.load_parameters(initial_parameters(model, V, 3))
    states = create_model("numpy", model, SGD, V, FLOAT64)
    other.train_steps(batches(), states.dump_state(states.initial_state(B)), rate * RATES)
    return other.dump_parameters()


Step = Callable[[Array, Array, dict[str, Any], int, float], Array]
"""(p, g, slots, t, lr) -> the new p: an update as its library writes it; slots start empty, t counts from 1."""


def by_hand(step: Step, rate: float, clip: Clip = lambda gradients: gradients) -> Arrays:
    """Parameters after STEPS updates by a formula written out here, and not by shared.optimizers."""
    ours = create_model("numpy", LSTM, SGD, V, FLOAT64)
    parameters = initial_parameters(LSTM, V, 3)
    slots: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    state = ours.initial_state(B)
    for k in range(STEPS):
        ours.load_parameters(parameters)
        _, gradients, state = ours.loss_and_gradients(Batch(*(each[k] for each in batches())), state)
        clipped = clip(gradients.parameters)
        parameters = {
            name: step(each, clipped[name], slots[name], k + 1, rate * float(RATES[k]))
            for name, each in parameters.items()
        }
    return parameters


def settled(step: Step, rate: float, usual: OptimizerConfig, option: OptimizerConfig) -> Effect:
    """How far the library's formula is from our usual one, and from the one that the option chooses."""
    library = by_hand(step, rate)
    return distance(trained(usual, rate), library), distance(trained(option, rate), library)
