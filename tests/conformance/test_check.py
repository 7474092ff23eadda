"""Each implementation passes the examination of `check`: every case in float64, each cell's plainest in float32 too;
and the whole grid is what it says."""

import re
from functools import cache

import numpy as np
import pytest

from runner.check import asked_for
from runner.cli import Check
from runner.examination import (
    BRIEF,
    CASES,
    CELLS,
    OPTIMIZERS,
    PARTS,
    Examinee,
    abridged,
    compare,
    make_case,
    numbers_of,
    tokens,
    whole_grid,
)
from shared.config import Engine, ModelConfig, OptimizerConfig
from shared.errors import ConfigError, ImplementationError

ENGINES: tuple[Engine, ...] = ("scratch", "native")
NATIVE = [name for name, design in CASES.items() if design.native]


@cache
def reference(name: str) -> dict[str, np.ndarray]:
    return Examinee("numpy", "cpu").measure(make_case(name, CASES[name]), "float64")["quantities"]


def differing(measured, name, dtype):
    expected = {each: reference(name)[each] for each in measured["quantities"]}
    rows = compare(measured["quantities"], expected, dtype, make_case(name, CASES[name]))
    assert len(rows) > 10
    return [row for row in rows if not row["ok"]]


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_agrees_with_numpy(impl, name):
    measured = Examinee(impl, "cpu").measure(make_case(name, CASES[name]), "float64")
    assert differing(measured, name, "float64") == []
    assert measured["quantities"].keys() == reference(name).keys()


@pytest.mark.parametrize("name", CELLS)
def test_rounding_explains_what_float32_differs(impl, name):
    measured = Examinee(impl, "cpu").measure(abridged(make_case(name, CASES[name])), "float32")
    assert differing(measured, name, "float32") == []


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_layer_agrees_or_says_why_it_cannot(impl, name):
    try:
        measured = Examinee(impl, "cpu").measure(
            abridged(make_case(name, CASES[name]), "native", False), "float64", "native"
        )
    except ImplementationError as error:
        assert impl == "numpy" or (name == "gru reset before" and impl in ("torch", "jax"))
        assert "--engine scratch" in str(error)  # noqa: PT017
    else:
        assert measured["engine"] == "native"
        assert differing(measured, name, "float64") == []


@pytest.mark.parametrize("name", NATIVE)
def test_the_fused_engine_agrees_or_says_why_it_cannot(impl, name):
    case = abridged(make_case(name, CASES[name]), "fused", False)
    try:
        measured = Examinee(impl, "cpu").measure(case, "float64", "fused")
    except ImplementationError as error:
        assert name not in ("lstm", "gru")
        assert "--engine auto" in str(error)  # noqa: PT017
    else:
        assert measured["engine"] == "fused"
        assert differing(measured, name, "float64") == []


def test_the_native_layer_writes_the_same_text(impl):
    if impl == "numpy":
        return  # it has none: test_the_native_layer_agrees_or_says_why_it_cannot
    case = make_case("gru", CASES["gru"]._replace(parts=("tokens",), optimizers=()))._replace(
        optimizers={"sgd": OPTIMIZERS["sgd"]}
    )
    found = []
    for engine in ENGINES:
        try:
            found.append(numbers_of(tokens(Examinee(impl, "cpu").create(case, "float64", engine), case)))
        except ImplementationError:
            assert (impl, engine) == ("numpy", "native")
            found.append(found[0])
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_no_framework_has_the_wrnn(impl):
    with pytest.raises(ImplementationError, match="--engine scratch"):
        Examinee(impl, "cpu").measure(make_case("wrnn", CASES["wrnn"]), "float64", "native")


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
    grid, names = whole_grid(), [case.name for case in asked_for(Check(full=True, part=part))]
    assert 65 <= len(names) <= 66
    designs = [grid.get(name) or CASES[name] for name in names]
    assert {label for design in designs for label in design.optimizers} == set(OPTIMIZERS)
    assert {design.model.cell for design in designs} == set(CELLS)
    assert {design.model.num_layers for design in designs} == {1, 2, 3}


def test_the_parts_are_the_whole():
    names = [case.name for k in range(1, 8) for case in asked_for(Check(full=True, part=f"{k}/7"))]
    assert names == [case.name for case in asked_for(Check(full=True))]
    assert len(names) == len(CASES) + 1296
    assert {case.model.cell for case in asked_for(Check(full=True, cell="gru"))} == {"gru"}


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


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("engine", ["scratch", "native"])
def test_every_quantity_agrees_on_a_gpu(impl, name, dtype, engine):
    try:
        measured = Examinee(impl, "cuda").measure(make_case(name, CASES[name]), dtype, engine)
    except ImplementationError as error:
        assert engine == "native", error  # noqa: PT017
        assert "--engine scratch" in str(error)  # noqa: PT017
    else:
        assert measured["device"].startswith("cuda:0")
        assert differing(measured, name, dtype) == []
