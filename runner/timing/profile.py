"""`bench --profile`: where the time of a step goes. Three parts for every implementation, by the clock: forward alone,
forward and backward, the whole step; and for NumPy and PyTorch, whose operations can be watched, the longest of them.
"""

import cProfile
import os
import pstats
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.cli import Bench
from runner.console import console, say, show_table
from runner.registry import import_quietly
from runner.timing.field import OpenWorker, entries, runtime_of, surroundings
from runner.timing.worker import Contestant, Entry, quickest
from runner.timing.workloads import Workload
from runner.workers import FAILURES
from shared.errors import ImplementationError
from shared.files import strict_json, write_atomically

LONGEST = 12
"""Operations that are shown."""


class Subject(Contestant):
    """An implementation that is looked into."""

    def parts(self) -> dict[str, float]:
        """Seconds of a step's parts, the quickest of some calls each. What `backward` and `update` cost is a difference
        of two: the gradients that the contract hands out are copied to the host, a step's own are not, so update may
        come out below zero, where it counts for nothing. `products alone`: what a step's matrix products would take at
        the best rate that this process reaches with large ones."""
        model, workload = self._subject.model, self._workload
        batch, state = workload.batch(0), model.initial_state(workload.batch_size)
        call = quickest(lambda: self._subject.train(next(self._stacks)))
        forward = quickest(lambda: model.logits(batch.tokens, state))
        both = quickest(lambda: model.loss_and_gradients(batch, state))
        step = call / workload.stack
        backward = max(0.0, min(both, step) - forward)
        parts = {"forward": forward, "backward": backward, "clip and update": max(0.0, step - forward - backward)}
        bound = workload.operations() / self.yardsticks()["product"]
        return {**self._seconds, "step": step, "products alone": bound, **parts}

    def operations(self) -> list[tuple[str, float, int]]:
        """Name, seconds of a step and calls of the longest operations; none where the framework compiles the step to
        one."""
        step: Callable[[], Any] = lambda: self._subject.train(next(self._stacks))  # noqa: E731
        step()
        if self._impl == "numpy":
            found = functions(step)
        else:
            framework = import_quietly(f"benchmarks.peer_{self._impl}")
            found = framework.operations(step) if hasattr(framework, "operations") else []
        steps = self._workload.stack
        longest = sorted(found, key=lambda each: -each[1])[:LONGEST]
        return [(name, seconds / steps, calls // steps) for name, seconds, calls in longest]


def functions(call: Callable[[], Any]) -> list[tuple[str, float, int]]:
    """Python functions and NumPy's own by the time spent in them alone, under cProfile, which prolongs short ones."""
    watch = cProfile.Profile()
    watch.runcall(call)
    table: Any = pstats.Stats(watch).stats  # type: ignore[attr-defined]
    return [
        (f"{Path(file).name}:{line} {name}" if line else name, own, calls)
        for (file, line, name), (_, calls, own, _, _) in table.items()
    ]


def run(
    options: Bench, names: Sequence[str], engines: Sequence[str], workloads: Sequence[Workload], open_worker: OpenWorker
) -> int:
    """Look, show, write; 1 where one fails."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler announces itself otherwise
    rows: list[dict[str, Any]] = []
    for workload in [each for each in workloads if not each.sampled]:
        for entry in entries(names, engines, replace(options, peers=False), workload):
            with console.status(f"{workload.name}: {entry.name()}"):
                rows.append({"workload": workload.name} | examine(entry, workload, options, open_worker))
            show(workload, rows[-1])
    if options.json:
        write_atomically(options.json, strict_json({"rows": rows}))
    return 1 if any("failed" in row for row in rows) else 0


def examine(entry: Entry, workload: Workload, options: Bench, open_worker: OpenWorker) -> dict[str, Any]:
    """Parts and operations of one implementation, or why not."""
    found: dict[str, Any] = {"name": entry.name()}
    try:
        with surroundings(entry, options):
            opened = open_worker(entry.name(), Subject, entry, workload, runtime_of(entry, options))
        with opened as worker:
            found |= {"kernel": worker.call("introduce")["kernel"], "first_call": worker.call("prove")}
            return found | {"parts": worker.call("parts"), "operations": worker.call("operations")}
    except ImplementationError as error:
        return found | {"refused": str(error)}
    except FAILURES as error:
        return found | {"failed": str(error)}


def show(workload: Workload, row: dict[str, Any]) -> None:
    """The parts, and the operations beneath."""
    if reason := row.get("refused") or row.get("failed"):
        say(f"{workload.name}, {row['name']}: {reason}", "dim")
        return
    parts = row["parts"]
    first = {"first call": row["first_call"]["first_call_seconds"]}
    lines = [(name.replace("_seconds", ""), f"{1000 * value:.3f}", "") for name, value in (parts | first).items()]
    lines += [(name[:60], f"{1000 * seconds:.3f}", f"{calls}") for name, seconds, calls in row["operations"]]
    show_table(f"{workload.name}, {row['name']}: {row['kernel']}", ("", "ms", "calls"), lines, (1, 2))
