"""Each implementation passes the examination of `check`: every case in float64, each cell's plainest in float32 too."""

from functools import cache

import numpy as np
import pytest

from runner.examination import CASES, CELLS, OPTIMIZERS, Examinee, abridged, compare, make_case, numbers_of, tokens
from shared.config import Engine, ModelConfig, OptimizerConfig
from shared.errors import ImplementationError

ENGINES: tuple[Engine, ...] = ("scratch", "native")
NATIVE = [name for name, design in CASES.items() if design.native]


@cache
def reference(name: str) -> dict[str, np.ndarray]:
    return Examinee("numpy", "cpu").measure(make_case(name, CASES[name]), "float64")["quantities"]


def differing(measured, name, dtype):
    rows = compare(measured["quantities"], {each: reference(name)[each] for each in measured["quantities"]}, dtype)
    assert len(rows) > 20
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
        measured = Examinee(impl, "cpu").measure(abridged(make_case(name, CASES[name]), "native"), "float64", "native")
    except ImplementationError as error:
        assert impl == "numpy" or (name == "gru reset before" and impl in ("torch", "jax"))
        assert "--engine scratch" in str(error)  # noqa: PT017
    else:
        assert measured["engine"] == "native"
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
