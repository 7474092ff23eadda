"""What "equal" means: the bound that rounding explains, for every quantity and precision."""

from typing import Any

import numpy as np

from runner.examination.cases import OPTIMIZERS, Arrays, Case, H, K, T, writings
from runner.examination.examinee import Examinee
from runner.examination.near_ties import Difference, differences
from shared.config import Dtype


def bound(quantity: str, dtype: Dtype) -> float:
    """The largest difference that rounding alone can explain, relative to the tensor's largest magnitude."""
    group = quantity.partition(":")[0]
    if group in ("tokens", "unused rows"):
        return 0.0
    trained = group in OPTIMIZERS
    layers = 3
    if dtype == "float64":
        return 1e-9 if trained else 1e-10
    # float32: each of T steps through each of three layers adds at most I + H rounded products. Training divides small
    # moments by their roots, which turns rounding of a gradient into 2e-5 of a step, K times.
    return K * 2e-5 if trained else T * layers * 2 * H * float(np.finfo(np.float32).eps)


def compare(measured: Arrays, reference: Arrays, dtype: Dtype, case: Case | None = None) -> list[dict[str, Any]]:
    """A row for each quantity: the worst relative error and whether rounding explains it. With the case given, tokens
    in other precisions than float64 may differ in near-ties, which the row then lists."""
    rows = []
    for name, expected in reference.items():
        got = measured[name]
        fits = got.shape == expected.shape
        distance = np.abs(got - expected).max(initial=0) if fits else np.inf
        error = float(distance / max(np.abs(expected).max(initial=0), np.finfo(np.float64).tiny)) if distance else 0.0
        limit = bound(name, dtype)
        row = {"quantity": name, "max_relative_error": error, "bound": limit, "ok": bool(error <= limit)}
        if case and dtype != "float64" and name.startswith("tokens: ") and fits:
            row |= judged_tokens(case, name.removeprefix("tokens: "), expected, got, dtype)
        rows.append(row)
    return rows


def judged_tokens(case: Case, name: str, expected: np.ndarray, got: np.ndarray, dtype: Dtype) -> dict[str, Any]:
    """The first differences: near-ties and others. Where there are no others, the row is in order."""
    found: list[Difference] = []
    if not np.array_equal(expected, got):
        model = Examinee("numpy", "cpu").create(case, "float64")
        found = differences(model, case.model, writings(case)[name], expected.astype(int), got.astype(int), dtype)
    ties, others = ([each._asdict() for each in found if each.near_tie == tie] for tie in (True, False))
    return {"near_ties": ties, "unexplained": others} | ({} if others else {"max_relative_error": 0.0, "ok": True})
