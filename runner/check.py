"""`check`: the same random weights and batches everywhere, every quantity compared with NumPy in float64."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from runner.cli import Check
from runner.console import console, say, show_table
from runner.examination import CELLS, Arrays, Examinee, K, cases, compare
from runner.registry import chosen
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


def examine(open_worker: Callable[..., Any], options: Check) -> list[dict[str, Any]]:
    """All rows of all implementations, each in its own process."""
    names = chosen(options.impl)
    cells = CELLS if options.cell == "all" else (options.cell,)
    dtypes: Sequence[Dtype] = ("float64", "float32") if options.dtype == "both" else (options.dtype,)
    with ExitStack() as stack:
        reference = stack.enter_context(open_worker("reference", Examinee, "numpy", "cpu"))
        workers = {name: stack.enter_context(open_worker(name, Examinee, name, options.device)) for name in names}
        rows = []
        for cell in cells:
            with console.status(f"examining {cell}: {', '.join(workers)}"):
                rows += examine_cell(cell, dtypes, reference, workers)
        return rows


def examine_cell(cell: str, dtypes: Sequence[Dtype], reference: Any, workers: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one cell; the implementations work side by side. A worker that fails is not asked again."""
    rows = []
    for number, case in enumerate(cases(cell)):
        reference.start("examine", case, ["float64"], False)
        for name, worker in workers.items():
            worker.start("examine", case, dtypes, name == "numpy" and "float64" in dtypes)
        expected = reference.result()["float64"]
        for name, worker in list(workers.items()):
            who = {"impl": name, "cell": cell, "input": "one-hot" if number else "embedding"}
            try:
                rows += judge(worker.result(), expected, dtypes, who | worker.call("place"))
            except WorkerError as error:
                failed = FAILED | who | {"quantity": f"failed: {error}"}
                rows += [failed | {"dtype": dtype} for dtype in dtypes]
                del workers[name]
    return rows


def judge(found: Mapping[str, Any], expected: Arrays, dtypes: Sequence[Dtype], who: Mapping[str, Any]) -> list[Any]:
    """The rows of one case of one implementation."""
    rows = [{**who, "dtype": dtype, **row} for dtype in dtypes for row in compare(found[dtype], expected, dtype)]
    if "differences" in found:
        error = found["differences"]
        row = {"quantity": "gradient: finite differences", "max_relative_error": error, "bound": 1e-8}
        rows.append({**who, "dtype": "float64", **row, "ok": bool(error <= row["bound"])})
    return rows


def run(options: Check, open_worker: Callable[..., Any] = Worker) -> int:
    """Examine, show, write; 1 where anything differs."""
    rows = examine(open_worker, options)
    show(rows)
    ok = all(row["ok"] for row in rows)
    if options.json:
        report = {"ok": ok, "reference": "numpy float64", "rows": rows}
        write_atomically(options.json, strict_json(report))
    return 0 if ok else 1


COLUMNS = {
    "logits": "outputs",
    "trace": "outputs",
    "state": "states",
    "loss": "loss",
    "gradient": "grads",
    "unused rows": "grads",
    "sgd": "sgd",
    "adam": "adam",
    "tokens": "tokens",
    "failed": "ran",
}
"""Group of quantities -> column of the table."""


def column(row: Mapping[str, Any]) -> str:
    """The column that a row counts in."""
    return COLUMNS[row["quantity"].partition(":")[0]]


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each implementation, precision and cell: the worst of each group of quantities."""
    columns = [name for name in dict.fromkeys(COLUMNS.values()) if any(column(row) == name for row in rows)]
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["impl"], row["cell"], row["dtype"]), []).append(row)
    table = [(" ".join(key), *(worst(each, name) for name in columns), verdict(each)) for key, each in lines.items()]
    title = f"Largest difference from NumPy in float64, relative to each tensor's magnitude (sgd, adam: {K} steps)"
    show_table(title, ("", *columns, ""), table, range(1, 1 + len(columns)))
    failed = [row for row in rows if not row["ok"]]
    for row in failed[:12]:
        say(
            f"differs: {row['impl']} {row['dtype']} {row['cell']} ({row['input']} input), {row['quantity']}: "
            f"{row['max_relative_error']:.2g}, at most {row['bound']:.2g} expected",
            "red",
        )
    say(f"{len(rows)} quantities compared, {len(failed)} differ", "red" if failed else "green")


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
