"""`check`: the same random weights and batches everywhere, every quantity compared with NumPy in float64."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from runner import accuracy
from runner.cli import Check
from runner.console import say, show_table
from runner.diagnosis.localiser import explain, sentences
from runner.environment import available_cores
from runner.examination.bounds import compare
from runner.examination.cases import OPTIMIZERS, Case, Design, K, designs, make_case
from runner.examination.examinee import SLOPE_BOUND, Examinee
from runner.module import check as module_check
from runner.progress import Tally, tally_progress
from runner.registry import IMPLEMENTATIONS, chosen
from runner.workers import FAILURES, Task, Worker, WorkerError, share
from shared.config import Dtype
from shared.errors import ConfigError
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
LARGEST_TEAM = 4
"""Processes of one implementation at most: each holds a framework."""
MOST_SHOWN = 12
"""Lines of one kind; --json has them all."""


class Finding(NamedTuple):
    """What one implementation showed in one case."""

    place: int
    """Of the case among those asked for."""
    impl: str
    rows: Rows
    refusals: Rows
    """Engines that cannot run it, with the reason."""


def run(options: Check, open_worker: Callable[..., Any] = Worker) -> int:
    """Examine, show, write; 1 where anything differs."""
    if options.module:
        return module_check.run(options)
    if options.accuracy:
        return accuracy.run(options, open_worker)
    dtypes: Sequence[Dtype] = ("float64", "float32") if options.dtype == "both" else (options.dtype,)
    names = chosen(options.impl)
    asked = [make_case(name, design) for name, design in asked_for(options).items()]
    size = max(1, min(LARGEST_TEAM, len(asked), available_cores() // len(names)))
    found: list[Finding] = []
    stopped: BaseException | None = None
    with ExitStack() as stack:
        reference = stack.enter_context(open_worker("reference", Examinee, "numpy", "cpu"))
        arguments = {name: (name, Examinee, name, options.device) for name in names}
        teams = {name: [stack.enter_context(open_worker(*arguments[name])) for _ in range(size)] for name in names}
        try:
            with tally_progress(dict.fromkeys(names, len(asked))) as tally:
                collect(examine(asked, dtypes, reference, teams), found, tally)
        except (KeyboardInterrupt, WorkerError) as error:  # WorkerError: the reference failed
            stopped = error
        rows, refusals = ordered(found)
        causes = explain(rows, asked, reference, teams) if stopped is None else []
    show(rows, refusals)
    for text, style in (line for each in causes for line in zip(sentences(each), ("red", "yellow"), strict=True)):
        say(text, style)
    complete, ok = len(found) == len(names) * len(asked), all(row["ok"] for row in rows)
    if options.json:
        report = {"ok": ok and complete, "complete": complete, "reference": "numpy float64"}
        write_atomically(options.json, strict_json({**report, "rows": rows, "refused": refusals, "findings": causes}))
    if not complete:
        why = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "a worker that failed gets no other case"
        say(f"{why}: {len(found)} of {len(names) * len(asked)} examinations were made", "yellow")
    if stopped:
        raise stopped
    return 0 if ok and complete else 1


def asked_for(options: Check) -> dict[str, Design]:
    """The cases of the cells, and of the part, that were asked for."""
    found = designs(options.cell, options.full)
    if not options.part:
        return found
    part, of, count = options.part.partition("/")
    if not (options.full and of and part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise ConfigError(f"--part goes with --full and takes k/n, from 1/n to n/n, as in 3/40; got {options.part!r}.")
    before, after = (len(found) * number // int(count) for number in (int(part) - 1, int(part)))
    return dict(list(found.items())[before:after])


def collect(findings: Iterable[Finding], found: list[Finding], tally: Tally) -> None:
    """Keep what comes, and say how far it is: an interruption leaves what was found."""
    for each in findings:
        found.append(each)
        tally.count(each.impl)


def ordered(found: Iterable[Finding]) -> tuple[Rows, Rows]:
    """All rows, and all refusals, in the order of the cases and then of the implementations."""
    names = list(IMPLEMENTATIONS)
    findings = sorted(found, key=lambda each: (each.place, names.index(each.impl)))
    return [row for each in findings for row in each.rows], [row for each in findings for row in each.refusals]


def examine(
    asked: Sequence[Case], dtypes: Sequence[Dtype], reference: Any, teams: Mapping[str, Sequence[Any]]
) -> Iterator[Finding]:
    """Every case by every implementation, whose workers share the cases, beside each other. A worker that fails is not
    asked again; what it was asked is a failed row."""
    places = sorted(range(len(asked)), key=lambda place: -effort(asked[place]))  # the long ones first
    tasks = {"reference": [Task(place, "measure", (asked[place], "float64")) for place in places]}
    for name in teams:
        differences = name == "numpy" and "float64" in dtypes
        tasks[name] = [Task(place, "examine", (asked[place], dtypes, differences)) for place in places]
    expected: dict[int, Mapping[str, np.ndarray]] = {}
    early: dict[int, list[tuple[str, Any]]] = {}
    for name, place, answer in share({"reference": [reference], **teams}, tasks):
        if name == "reference":
            if isinstance(answer, FAILURES):
                raise WorkerError(str(answer))
            expected[place] = answer["quantities"]
            for other, found in early.pop(place, []):
                yield judged(place, asked[place], other, found, expected[place], dtypes)
        elif place in expected:
            yield judged(place, asked[place], name, answer, expected[place], dtypes)
        else:
            early.setdefault(place, []).append((name, answer))


def effort(case: Case) -> int:
    """About how long a case takes, in programs to compile."""
    return len(case.parts) + len(case.optimizers) + len(case.again) + 2 * len(case.native)


def judged(
    place: int, case: Case, impl: str, answer: Any, expected: Mapping[str, np.ndarray], dtypes: Sequence[Dtype]
) -> Finding:
    """An implementation's answer, compared."""
    who = {"impl": impl, "cell": case.model.cell, "case": case.name}
    if isinstance(answer, FAILURES):
        failed = [FAILED | who | {"quantity": f"failed: {answer}", "dtype": dtype} for dtype in dtypes]
        return Finding(place, impl, failed, [])
    rows = [row for found in answer if "refused" not in found for row in judge(found, expected, who, case)]
    return Finding(place, impl, rows, [{**who, **found} for found in answer if "refused" in found])


def judge(found: dict[str, Any], expected: Mapping[str, np.ndarray], who: Mapping[str, Any], case: Case) -> Rows:
    """The rows of one case of one implementation, in one engine and precision."""
    place = {**who, **{name: found[name] for name in ("engine", "kernel", "device", "dtype")}}
    rows = compare(found["quantities"], {name: expected[name] for name in found["quantities"]}, found["dtype"], case)
    if "differences" in found:
        error = found["differences"]
        row = {"quantity": "gradient: finite differences", "max_relative_error": error, "bound": SLOPE_BOUND}
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
        engine = "" if row["engine"] == "scratch" else f"{row['engine']} "
        lines.setdefault(f"{row['impl']} {engine}{row['dtype']}", []).append(row)
    table = [(name, *(worst(each, group) for group in columns), verdict(each)) for name, each in lines.items()]
    title = f"Largest difference from NumPy in float64, relative to each tensor's magnitude ({K} steps of training)"
    show_table(title, ("", *columns, ""), table, range(1, 1 + len(columns)))
    for reason in dict.fromkeys(f"{each['impl']}: {each['refused']}" for each in refusals):
        say(f"not examined: {reason}", "dim")
    show_ties(rows)
    failed = [row for row in rows if not row["ok"]]
    for row in failed[:MOST_SHOWN]:
        say(
            f"differs: {row['impl']} {row['engine']} {row['dtype']}, {row['case']}, {row['quantity']}: "
            f"{row['max_relative_error']:.2g}, at most {row['bound']:.2g} expected",
            "red",
        )
    count = len({row["case"] for row in rows})
    say(f"{len(rows)} quantities in {count} cases compared, {len(failed)} differ", "red" if failed else "green")


def show_ties(rows: Rows) -> None:
    """Where float32 wrote another token than the reference, and whether rounding explains it."""
    styles = {"near_ties": ("near-tie", "dim"), "unexplained": ("no near-tie", "red")}
    found = [(*styles[kind], row, each) for kind in styles for row in rows for each in row.get(kind, ())]
    for what, style, row, each in found[:MOST_SHOWN]:
        where = f"{row['impl']} {row['engine']} {row['dtype']}, {row['case']}, {row['quantity']}"
        right, other = (f"{each[who]} (logit {each[who + '_logit']:.8g})" for who in ("expected", "got"))
        gap = f"{each['gap']:.2g} ulps decide; rounding explains {each['bound']:.0f}"
        say(f"{what}: {where}: row {each['row']}, token {each['place']}: {right} or {other}; {gap}", style)


def worst(rows: list[dict[str, Any]], name: str) -> str:
    """The largest error in a column; an exclamation mark where one is too large."""
    found = [row for row in rows if column(row) == name]
    if not found:
        return "-"
    error = max(row["max_relative_error"] for row in found)
    ties = sum(len(row.get("near_ties", ())) for row in found)
    shown = f"{error:.0e}".replace("0e+00", "0") + ("" if all(row["ok"] for row in found) else "!")
    return shown + (f", near-ties {ties}" if ties else "")


def verdict(rows: list[dict[str, Any]]) -> str:
    """In one word."""
    return "agrees" if all(row["ok"] for row in rows) else "DIFFERS"
