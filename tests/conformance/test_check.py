"""Each implementation passes the examination of `check`: every case in float64, each cell's plainest in float32 too."""

from functools import cache

import numpy as np
import pytest

from runner.examination import BRIEF, CASES, CELLS, OPTIMIZERS, Examinee, compare, make_case
from shared.config import ModelConfig, OptimizerConfig
from shared.errors import ImplementationError

NATIVE = [name for name, design in CASES.items() if design.native]


@cache
def reference(name: str) -> dict[str, np.ndarray]:
    return Examinee("numpy", "cpu").measure(make_case(name, CASES[name]), "float64")["quantities"]


def differing(measured, name, dtype):
    rows = compare(measured["quantities"], reference(name), dtype)
    assert len(rows) > 20
    return [row for row in rows if not row["ok"]]


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_agrees_with_numpy(impl, name):
    measured = Examinee(impl, "cpu").measure(make_case(name, CASES[name]), "float64")
    assert differing(measured, name, "float64") == []


@pytest.mark.parametrize("name", CELLS)
def test_rounding_explains_what_float32_differs(impl, name):
    """Brief: what compiles anew for another precision, and nothing else."""
    design = CASES[name]._replace(parts=BRIEF, optimizers=CASES[name].optimizers[:1])
    measured = Examinee(impl, "cpu").measure(make_case(name, design), "float32")
    rows = compare(measured["quantities"], {each: reference(name)[each] for each in measured["quantities"]}, "float32")
    assert [row for row in rows if not row["ok"]] == []


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_layer_agrees_or_says_why_it_cannot(impl, name):
    try:
        measured = Examinee(impl, "cpu").measure(make_case(name, CASES[name]), "float64", "native")
    except ImplementationError as error:
        assert impl == "numpy" or (name == "gru reset before" and impl in ("torch", "jax"))
        assert "--engine scratch" in str(error)  # noqa: PT017
    else:
        assert measured["engine"] == "native"
        assert differing(measured, name, "float64") == []


def test_no_framework_has_the_wrnn(impl):
    with pytest.raises(ImplementationError, match="--engine scratch"):
        Examinee(impl, "cpu").measure(make_case("wrnn", CASES["wrnn"]), "float64", "native")


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
