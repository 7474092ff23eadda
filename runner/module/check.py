"""`check --module FILE`: a user's own cell or model beside the reference. The file is executed, since the user asked
for it, in a process of its own with a time limit: whatever it does, the checker lives and gives a verdict."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.cli import Check
from runner.console import console, plain, say, show_table
from runner.diagnosis.hypotheses import Found, explain, search, sentences
from runner.diagnosis.mistakes import ORDERS
from runner.examination.bounds import bound
from runner.examination.cases import H, T
from runner.module import models as module_models
from runner.module.cells import PARTS, ReferenceCell, cell_differences, make_fixture
from runner.module.subject import InterfaceError, Subject
from runner.module.watch import HungError
from runner.workers import Worker, WorkerError
from shared.errors import ConfigError, UserError
from shared.files import strict_json, write_atomically

Array = np.ndarray
Arrays = dict[str, Array]
TITLES = {
    "forward": f"forward: the state after each of {T} steps",
    "one step back": "one step back: the gradients of one step",
    "back through time": f"back through time: the gradients of {T} steps",
    "loss": "loss",
    "gradients": "gradients",
}
GRACE = 10.0
"""Seconds after which the worker is ended that should have answered."""
FRAMEWORKS = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tf": "TensorFlow"}


class UserCell:
    """The user's cell: each call goes to the process that holds it."""

    def __init__(self, worker: Worker, timeout: float) -> None:
        self._worker, self._patience = worker, 2 * timeout + GRACE

    def ask(self, method: str, *arguments: Any) -> Any:
        """A method of `Subject`, which rings first; where the file does not even hear that, WorkerError."""
        self._worker.start(method, *arguments)
        return self._worker.result(self._patience)

    def forward(self, x: Array, state: Arrays, weights: Arrays) -> Arrays:
        """The state after."""
        found: Arrays = self.ask("forward", x, state, weights)
        return found

    def backward(self, d_state: Arrays, x: Array, state: Arrays, weights: Arrays) -> tuple[Array, Arrays, Arrays]:
        """Gradients at x, at the state before, of the weights."""
        found: tuple[Array, Arrays, Arrays] = self.ask("backward", d_state, x, state, weights)
        return found


@dataclass
class Outcome:
    """What the examination of a file gave."""

    title: str
    cell: str
    rows: list[dict[str, Any]]
    failures: list[str]
    explained: Found


def run(options: Check) -> int:
    """Examine the file, show, write; 1 where anything differs or fails, InterfaceError (2) where there is nothing to
    examine."""
    path = options.module
    if path is None or not path.is_file():
        raise InterfaceError(f"--module: there is no file {path}.")
    if (options.impl, options.cell, options.dtype, options.device) != ("all", "all", "both", "cpu"):
        raise ConfigError(
            "--module examines what the file names, in float64: leave --impl --cell --dtype --device out."
        )
    if not options.timeout > 0:
        raise ConfigError(f"--timeout must be a positive number of seconds, got {options.timeout}.")
    examining = console.status(plain(f"examining {path.name}"))
    with Worker(path.name, Subject, str(path), options.timeout) as worker, examining:
        user, notes = UserCell(worker, options.timeout), {}
        try:
            described = user.ask("load")
        except WorkerError as error:
            raise InterfaceError(f"{error}, while the file was loaded.") from None
        outcome = (examine_cell if described["cell"] else examine_model)(user, described)
        with suppress(WorkerError):
            notes = user.ask("notes")
    show(path, outcome, notes)
    ok = not outcome.failures and all(row["ok"] for row in outcome.rows)
    if options.json:
        report = {"ok": ok, "module": str(path), "failures": outcome.failures, "rows": outcome.rows}
        write_atomically(options.json, strict_json(report | {"hints": hints(outcome)}))
    return 0 if ok else 1


def examine_cell(user: UserCell, described: Mapping[str, Any]) -> Outcome:
    """Part by part; a part that fails is told, and the next one still examined while the file answers."""
    fixture, by_hand, framework = make_fixture(described["cell"]), described["by_hand"], described["framework"]
    reference = ReferenceCell(fixture.cell)
    found: Arrays = {}
    expected: Arrays = {}
    failures = []
    for part in PARTS if by_hand or framework != "numpy" else ("forward",):
        try:
            found |= fixture.part(part, user)
        except UserError as error:
            failures.append(str(error) if str(error).startswith(part) else f"{part}: {error}")
            if part != "forward" or isinstance(error, WorkerError | HungError):
                break
        expected |= fixture.part(part, reference)
    tried = cell_differences(fixture) if any(name.startswith("back through") for name in found) else {}
    how = "forward and backward" if by_hand else "forward, differentiated by the framework"
    how = how if by_hand or framework != "numpy" else "forward alone: without backward no gradient is examined"
    title = f"a cell, {fixture.cell}, {how}, in {FRAMEWORKS[framework]}"
    rows = judge(found, expected, tried, fixture.cell)
    return Outcome(title, fixture.cell, rows, failures, explain(fixture, found, expected))


def examine_model(user: UserCell, described: Mapping[str, Any]) -> Outcome:
    """Loss and gradients of one batch."""
    problem = module_models.make_problem(described["model"])
    expected, found, failures = module_models.reference(problem), {}, []
    batch = problem.batch
    given = problem.parameters, batch.tokens, batch.targets, batch.mask, problem.state
    try:
        found = module_models.quantities(*user.ask("loss_and_gradients", *given))
    except UserError as error:
        failures.append(str(error))
    model = problem.model
    variant = {
        "rnn": f"rnn{'-relu' * (model.nonlinearity == 'relu')}",
        "gru": f"gru{'-before' * (model.gru_reset == 'before')}",
    }
    cell = variant.get(model.cell, model.cell)
    rows = judge(found, expected, module_models.model_differences(problem) if found else {}, cell)
    explained: Found = {}
    if not all(row["ok"] for row in rows):
        named = dict(module_models.mistaken(problem))
        computed = (((words,), values) for words, values in named.items())
        explained = search(found, expected, {words: words for words in named}, computed, set(named))[1]
        explained = explained or module_models.repeated(problem, found, expected)
    return Outcome(
        f"a model, {cell}, {model.num_layers} layer{'s' * (model.num_layers > 1)}", cell, rows, failures, explained
    )


def judge(found: Arrays, expected: Arrays, tried: Arrays, cell: str) -> list[dict[str, Any]]:
    """A row for each quantity that was found: whether rounding explains its distance from the reference, where it
    differs first and most there, both values, and how far finite differences are from the reference."""
    rows = []
    for name, yours in found.items():
        ours = expected[name]
        scale, limit = np.abs(ours).max(), bound(name, "float64")
        errors = np.where(np.isfinite(yours), np.abs(yours - ours) / scale, np.inf)
        place = np.unravel_index(errors.argmax(), errors.shape)
        if errors.max() > limit and errors.ndim == 3:  # by steps; the way back comes to the last one first
            steps = np.flatnonzero(errors.max((1, 2)) > limit)
            step = steps[0] if name.startswith("forward") else steps[-1]
            place = (step, *np.unravel_index(errors[step].argmax(), errors.shape[1:]))
        row = {"quantity": name, "ok": bool(errors.max() <= limit), "max_relative_error": float(errors.max())}
        row |= {
            "place": told(place, name, errors.shape, cell),
            "yours": float(yours[place]),
            "reference": float(ours[place]),
        }
        by_differences = np.nanmax(np.abs(tried[name] - ours)) / scale if name in tried else None
        rows.append({**row, "differences": None if by_differences is None else float(by_differences)})
    return rows


def told(place: tuple[Any, ...], name: str, shape: tuple[int, ...], cell: str) -> str:
    """A place in words: "step 2 [1, 4]", "[12, 3] gate f"."""
    numbers, order = [int(each) for each in place], ORDERS.get(cell, "")
    if len(shape) == 3:
        return f"step {numbers[0] + 1} {numbers[1:]}"
    gated = order and shape[0] == len(order) * (shape[1] if "weight_hh" in name else H) and "before" not in name
    return f"{numbers} gate {order[numbers[0] * len(order) // shape[0]]}" if gated else f"{numbers}"


def hints(outcome: Outcome) -> list[str]:
    """What the user may want to look at first."""
    return sentences(outcome.explained, [row["quantity"] for row in outcome.rows if not row["ok"]])


def show(path: Path, outcome: Outcome, notes: Mapping[str, Any]) -> None:
    """A table for each part, what went wrong, why, and the verdict."""
    say(f"{path}: {outcome.title}. Its code runs here, in a process of its own.")
    for part, title in TITLES.items():
        rows = [row for row in outcome.rows if row["quantity"].partition(":")[0] == part]
        proven = any(row["differences"] is not None for row in rows)
        if rows:
            columns = ["", "", "error", *["by diff."] * proven, "worst at", "yours", "reference"]
            columns = columns[:-3] if all(row["ok"] for row in rows) else columns
            lines = [cells(row, proven)[: len(columns)] for row in rows]
            console.print()
            show_table(title, columns, lines, [n for n, title in enumerate(columns) if title not in ("", "worst at")])
    if outcome.rows:
        say(
            "error: relative to the tensor's largest number; by diff.: the reference's own, by finite differences",
            "dim",
        )
    console.print()
    if notes.get("lines") or notes.get("printed"):
        say(f"It printed; lines: {max(notes['lines'], 1)}, the first: {notes['printed']}", "dim")
    for line in outcome.failures:
        say(f"failed: {line}", "red")
    for line in hints(outcome):
        say(f"hint: {line}", "yellow")
    if notes.get("float32"):
        say("hint: Some answers are float32; what you are given is float64, keep it.", "yellow")
    differing = sum(not row["ok"] for row in outcome.rows)
    verdict = "FAILED" if outcome.failures else "DIFFERS" if differing else "agrees"
    counts = f"{len(outcome.rows)} quantities compared, {differing} differ"
    say(f"{path.name} {verdict}: {counts}", "green" if verdict == "agrees" else "red")


def cells(row: Mapping[str, Any], proven: bool) -> list[str]:
    """A line of the table; places and values where they differ only."""
    where = [""] * 3 if row["ok"] else [row["place"], f"{row['yours']:.5g}", f"{row['reference']:.5g}"]
    tried = [f"{row['differences']:.0e}"] if proven else []
    name = row["quantity"].partition(": ")[2]
    return [name, "ok" if row["ok"] else "differs", f"{row['max_relative_error']:.2g}", *tried, *where]
