"""Each implementation passes the examination of `check`: every case in float64, each cell's plainest in float32 too."""

import numpy as np
import pytest
from conftest import reference

from runner.examination.bounds import compare
from runner.examination.cases import CASES, CELLS, OPTIMIZERS, abridged, make_case
from runner.examination.examinee import Examinee, numbers_of, tokens
from shared.config import Engine
from shared.errors import ImplementationError

ENGINES: tuple[Engine, ...] = ("scratch", "native")
NATIVE = [name for name, design in CASES.items() if design.native]


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
