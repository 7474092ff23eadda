"""An option without effect is a defect: each one changes what the reference computes, with which the others agree."""

from dataclasses import replace

import numpy as np
import pytest

from impl_numpy import create_model
from runner.examination.cases import CASES, OPTIMIZERS, H, K, V, make_case, small, strengthened
from runner.examination.examinee import at
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.initializers import initial_parameters

DEEP = small("lstm", embedding_size=H)
MODELS = {
    "cell": (DEEP, replace(DEEP, cell="wrnn")),
    "num_layers": (DEEP, replace(DEEP, num_layers=3)),
    "embedding_size": (DEEP, replace(DEEP, embedding_size=0)),
    "nonlinearity": (small("rnn"), small("rnn", nonlinearity="relu")),
    "gru_reset": (small("gru"), small("gru", gru_reset="before")),
    "embedding_activation": (DEEP, replace(DEEP, embedding_activation="tanh")),
    "residual": (DEEP, replace(DEEP, residual=True)),
    "residual, projected": (small("gru"), small("gru", residual=True)),
    "dropout": (DEEP, replace(DEEP, dropout=0.2)),
    "output_dropout": (DEEP, replace(DEEP, output_dropout=0.2)),
    "tied_weights": (DEEP, replace(DEEP, tied_weights=True)),
    "many_to_one": (DEEP, replace(DEEP, many_to_one=True)),
    "forget_bias": (DEEP, replace(DEEP, forget_bias=1.0)),
    **{
        f"initializer {name}": (DEEP, replace(DEEP, initializer=name))
        for name in ("normal", "xavier", "kaiming", "orthogonal", "zero", "torch", "keras", "flax")
    },
}
PLAIN = {
    "adagrad": OptimizerConfig(optimizer="adagrad"),
    "rmsprop": OptimizerConfig(optimizer="rmsprop"),
    "adam": OptimizerConfig(optimizer="adam"),
    "adamw": OptimizerConfig(optimizer="adamw"),
    "nesterov": OptimizerConfig(optimizer="nesterov"),
    "momentum": OptimizerConfig(optimizer="momentum"),
}
CHANGES = [
    ("adagrad", {"initial_accumulator": 0.1}),
    ("adagrad", {"epsilon": 1e-2}),
    ("adagrad", {"dialect": "keras"}),
    ("rmsprop", {"alpha": 0.9}),
    ("rmsprop", {"centered": True}),
    ("rmsprop", {"rmsprop_momentum": 0.5}),
    ("rmsprop", {"dialect": "keras"}),
    ("adam", {"betas": (0.8, 0.999)}),
    ("adam", {"betas": (0.9, 0.99)}),
    ("adam", {"epsilon": 1e-3}),
    ("adam", {"dialect": "keras"}),
    ("adam", {"clip_norm": 0.3}),
    ("adam", {"clip_value": 0.01}),
    ("adam", {"clip_layers": ("l1=0.01",)}),
    ("adamw", {"weight_decay": 0.2}),
    ("momentum", {"momentum": 0.5}),
    ("momentum", {"dialect": "keras"}),
    ("nesterov", {"dialect": "keras"}),
]


def losses(model: ModelConfig, optimizer: OptimizerConfig, seed: int = 0) -> np.ndarray:
    """Of twelve steps at a rate that changes; epsilon is large enough for its place to matter."""
    case = make_case("any", CASES["lstm"]._replace(model=model, optimizers=()))
    made = create_model(model, optimizer, V, RuntimeConfig(device="cpu", dtype="float64"), seed)
    made.load_parameters(initial_parameters(model, V, 0))
    rates = np.where(np.arange(K) < K // 10, 0.05, 0.02)[:12]
    return made.train_steps(at(case.batches, slice(0, 12)), made.initial_state(3), rates).losses


@pytest.mark.parametrize("name", MODELS)
def test_an_option_of_the_model_changes_the_result(name):
    usual, other = (losses(model, OptimizerConfig()) for model in MODELS[name])
    assert np.abs(usual - other).max() > 1e-4


def test_every_option_of_the_model_is_tried():
    assert set(vars(ModelConfig())) - {"hidden_size", "initializer"} <= set(MODELS)


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=lambda value: str(value))
def test_an_option_of_the_optimizer_changes_the_result(name, change):
    base = replace(PLAIN[name], epsilon=1e-4)
    assert np.abs(losses(DEEP, base) - losses(DEEP, replace(base, **change))).max() > 1e-6


def test_every_option_of_the_optimizers_is_tried():
    tried = {option for _, change in CHANGES for option in change}
    assert tried | {"optimizer"} == set(vars(OptimizerConfig()))


def test_every_optimizer_is_another():
    found = {label: losses(DEEP, strengthened(replace(each, clip_layers=()))) for label, each in OPTIMIZERS.items()}
    for first in found:
        for second in found:
            if first != second and first.partition(",")[0] != second.partition(",")[0]:
                assert np.abs(found[first] - found[second]).max() > 1e-6, (first, second)


def test_the_seed_decides_the_dropout():
    model = replace(DEEP, dropout=0.5)
    assert np.abs(losses(model, OptimizerConfig(), 1) - losses(model, OptimizerConfig(), 2)).max() > 1e-4
