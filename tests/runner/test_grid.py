"""What `check` examines: the covering selection covers every option, and the whole grid is what it says."""

import re

import pytest

from runner.check import asked_for
from runner.cli import Check
from runner.examination.cases import BRIEF, CASES, CELLS, OPTIMIZERS, whole_grid
from runner.examination.examinee import PARTS
from shared.config import ModelConfig, OptimizerConfig
from shared.errors import ConfigError


def test_the_plainest_cases_are_examined_whole_and_again():
    for name in CELLS:
        assert set(CASES[name].parts) == {*PARTS, "training"}
        assert set(CASES[name].again) >= {"forward", "training"}
        assert CASES[name].native == (() if name == "wrnn" else BRIEF)
    assert set(CASES["lstm"].again) == {"forward", "evaluation", "gradients", "training", "tokens"}
    assert all({"forward", "evaluation", "gradients", "training"} <= set(design.parts) for design in CASES.values())


def test_the_whole_grid_is_every_combination_that_is_valid():
    grid = whole_grid()
    models = [design.model for design in grid.values()]
    assert len(set(models)) == len(grid) == 1296
    varied = {
        "cell": {"rnn", "lstm", "gru", "wrnn"},
        "num_layers": {1, 2, 3},
        "embedding_size": {0, 5, 7},
        "embedding_activation": {"none", "tanh", "relu", "sigmoid"},
        "nonlinearity": {"tanh", "relu"},
        "gru_reset": {"after", "before"},
        "dropout": {0.0, 0.3},
        "output_dropout": {0.0, 0.2},
        **{name: {False, True} for name in ("residual", "tied_weights", "many_to_one")},
    }
    for name, values in varied.items():
        assert {getattr(model, name) for model in models} == values
    assert sum(model.tied_weights and model.many_to_one and model.dropout > 0 for model in models) == 6 * 2 * 4 * 2
    assert all(bool(design.native) == (design.model.cell != "wrnn") for design in grid.values())
    assert grid.keys().isdisjoint(CASES)
    assert list(whole_grid()) == list(grid)


@pytest.mark.parametrize("part", ["1/20", "2/20", "3/20", "20/20"])
def test_a_part_of_the_grid_is_a_fair_sample(part):
    grid, names = whole_grid(), list(asked_for(Check(full=True, part=part)))
    assert 65 <= len(names) <= 66
    designs = [grid.get(name) or CASES[name] for name in names]
    assert {label for design in designs for label in design.optimizers} == set(OPTIMIZERS)
    assert {design.model.cell for design in designs} == set(CELLS)
    assert {design.model.num_layers for design in designs} == {1, 2, 3}


def test_the_parts_are_the_whole():
    names = [name for k in range(1, 8) for name in asked_for(Check(full=True, part=f"{k}/7"))]
    assert names == list(asked_for(Check(full=True)))
    assert len(names) == len(CASES) + 1296
    assert {design.model.cell for design in asked_for(Check(full=True, cell="gru")).values()} == {"gru"}
    assert list(asked_for(Check())) == sorted(CASES, key=lambda name: CELLS.index(CASES[name].model.cell))


@pytest.mark.parametrize("part", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4", "1/"])
def test_parts_that_are_none(part):
    with pytest.raises(ConfigError, match=re.escape(f"as in 3/40; got {part!r}")):
        asked_for(Check(full=True, part=part))


def test_a_part_belongs_to_the_whole_grid():
    with pytest.raises(ConfigError, match="--part goes with --full"):
        asked_for(Check(part="1/4"))


def test_the_cases_cover_every_option_and_optimizer():
    plain, options = ModelConfig(), [design.model for design in CASES.values()]
    unseen = {"hidden_size", "initializer", "forget_bias"}  # no formula depends on these
    for name in set(vars(plain)) - unseen:
        assert len({getattr(model, name) for model in options}) > 1, name
    assert {label for design in CASES.values() for label in design.optimizers} == set(OPTIMIZERS)
    assert {each.optimizer for each in OPTIMIZERS.values()} == {
        "sgd",
        "momentum",
        "nesterov",
        "adagrad",
        "rmsprop",
        "adam",
        "adamw",
    }
    for name in set(vars(OptimizerConfig())) - {
        "alpha",
        "momentum",
        "betas",
        "epsilon",
    }:  # other than usual in all cases
        assert len({getattr(each, name) for each in OPTIMIZERS.values()}) > 1, name
