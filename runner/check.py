"""`check`: the same random weights and batches everywhere, every quantity compared with NumPy in float64."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from runner import accuracy
from runner.cli import Check
from runner.console import console, say, show_table
from runner.examination import CELLS, OPTIMIZERS, Case, Examinee, K, cases, compare
from runner.registry import IMPLEMENTATIONS, chosen
from runner.workers import Worker, WorkerError
from shared.config import Dtype
from shared.files import strict_json, write_atomically

FAILED: dict[str, Any] = {
    "max_relative_error": np.inf,
    "bound": 0.0,
    "ok": False,
    "engine": "",
    "kernel": "",
    "device": "",
}
Rows = list[dict[str, Any]]


def run(options: Check, open_worker: Callable[..., Any] = Worker) -> int:
    """Examine, show, write; 1 where anything differs."""
    if options.accuracy:
        return accuracy.run(options, open_worker)
    cells = CELLS if options.cell == "all" else (options.cell,)
    dtypes: Sequence[Dtype] = ("float64", "float32") if options.dtype == "both" else (options.dtype,)
    names = chosen(options.impl)
    with ExitStack() as stack:
        reference = stack.enter_context(open_worker("reference", Examinee, "numpy", "cpu"))
        workers = {name: stack.enter_context(open_worker(name, Examinee, name, options.device)) for name in names}
        rows, refusals = examine([case for cell in cells for case in cases(cell)], dtypes, reference, workers)
    show(rows, refusals)
    ok = all(row["ok"] for row in rows)
    if options.json:
        report = {"ok": ok, "reference": "numpy float64", "rows": rows, "refused": refusals}
        write_atomically(options.json, strict_json(report))
    return 0 if ok else 1


def examine(
    asked: Sequence[Case], dtypes: Sequence[Dtype], reference: Any, workers: Mapping[str, Any]
) -> tuple[Rows, Rows]:
    """Rows of all cases of all implementations, which work side by side, and what engines refused, with the reason. A
    worker that fails is not asked again."""
    rows, refusals, working = [], [], dict(workers)
    for case in asked:
        with console.status(f"examining {case.name}: {', '.join(working)}"):
            reference.start("measure", case, "float64")
            for name, worker in working.items():
                worker.start("examine", case, dtypes, name == "numpy" and "float64" in dtypes)
            expected = reference.result()["quantities"]
            for name, worker in list(working.items()):
                who = {"impl": name, "cell": case.model.cell, "case": case.name}
                try:
                    for found in worker.result():
                        if "refused" in found:
                            refusals.append({**who, **found})
                        else:
                            rows += judge(found, expected, who)
                except WorkerError as error:
                    rows += [FAILED | who | {"quantity": f"failed: {error}", "dtype": dtype} for dtype in dtypes]
                    del working[name]
    return rows, refusals


def judge(found: dict[str, Any], expected: Mapping[str, np.ndarray], who: Mapping[str, Any]) -> Rows:
    """The rows of one case of one implementation, in one engine and precision."""
    place = {**who, **{name: found[name] for name in ("engine", "kernel", "device", "dtype")}}
    rows = compare(found["quantities"], {name: expected[name] for name in found["quantities"]}, found["dtype"])
    if "differences" in found:
        error = found["differences"]
        row = {"quantity": "gradient: finite differences", "max_relative_error": error, "bound": 1e-8}
        rows.append({**row, "ok": bool(error <= row["bound"])})
    return [{**place, **row} for row in rows]


COLUMNS = {
    "logits": "outputs",
    "trace": "outputs",
    "state": "states",
    "loss": "loss",
    "gradient": "grads",
    "unused rows": "grads",
    **dict.fromkeys(OPTIMIZERS, "training"),
    "tokens": "tokens",
    "failed": "ran",
}
"""Group of quantities -> column of the table."""


def column(row: Mapping[str, Any]) -> str:
    """The column that a row counts in."""
    return COLUMNS[row["quantity"].partition(":")[0]]


def show(rows: Rows, refusals: Rows) -> None:
    """A line for each implementation, engine and precision: the worst of each group of quantities over all cases."""
    columns = [name for name in dict.fromkeys(COLUMNS.values()) if any(column(row) == name for row in rows)]
    lines: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: list(IMPLEMENTATIONS).index(row["impl"])):
        native = "native " if row["engine"] == "native" else ""
        lines.setdefault(f"{row['impl']} {native}{row['dtype']}", []).append(row)
    table = [(name, *(worst(each, group) for group in columns), verdict(each)) for name, each in lines.items()]
    title = f"Largest difference from NumPy in float64, relative to each tensor's magnitude ({K} steps of training)"
    show_table(title, ("", *columns, ""), table, range(1, 1 + len(columns)))
    for reason in dict.fromkeys(f"{each['impl']}: {each['refused']}" for each in refusals):
        say(f"not examined: {reason}", "dim")
    failed = [row for row in rows if not row["ok"]]
    for row in failed[:12]:
        say(
            f"differs: {row['impl']} {row['engine']} {row['dtype']}, {row['case']}, {row['quantity']}: "
            f"{row['max_relative_error']:.2g}, at most {row['bound']:.2g} expected",
            "red",
        )
    count = len({row["case"] for row in rows})
    say(f"{len(rows)} quantities in {count} cases compared, {len(failed)} differ", "red" if failed else "green")


def worst(rows: list[dict[str, Any]], name: str) -> str:
    """The largest error in a column; an exclamation mark where one is too large."""
    found = [row for row in rows if column(row) == name]
    if not found:
        return "-"
    error = max(row["max_relative_error"] for row in found)
    return f"{error:.0e}".replace("0e+00", "0") + ("" if all(row["ok"] for row in found) else "!")


def verdict(rows: list[dict[str, Any]]) -> str:
    """In one word."""
    return "agrees" if all(row["ok"] for row in rows) else "DIFFERS"
