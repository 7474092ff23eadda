"""Each implementation passes the examination of `check` in both precisions."""

from functools import cache

import numpy as np
import pytest

from runner.examination import CELLS, Examinee, cases, compare


@cache
def reference(cell: str, number: int) -> dict[str, np.ndarray]:
    return Examinee("numpy", "cpu").measure(cases(cell)[number], "float64")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("number", "dtype"),
    [(0, "float64"), (1, "float64"), (0, "float32")],
    ids=["embedding-float64", "one-hot-float64", "embedding-float32"],
)
def test_every_quantity_agrees_with_numpy(impl, cell, number, dtype):
    measured = Examinee(impl, "cpu").measure(cases(cell)[number], dtype)
    rows = compare(measured, reference(cell, number), dtype)
    assert len(rows) > 40
    assert [row for row in rows if not row["ok"]] == []


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("number", [0, 1], ids=["embedding", "one-hot"])
def test_the_reference_agrees_with_finite_differences(cell, number):
    assert Examinee("numpy", "cpu").finite_differences(cases(cell)[number]) <= 1e-8


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("number", [0, 1], ids=["embedding", "one-hot"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_quantity_agrees_on_a_gpu(impl, cell, number, dtype):
    examinee = Examinee(impl, "cuda")
    rows = compare(examinee.measure(cases(cell)[number], dtype), reference(cell, number), dtype)
    assert examinee.place()["device"].startswith("cuda:0")
    assert [row for row in rows if not row["ok"]] == []
