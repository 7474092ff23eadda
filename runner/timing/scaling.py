"""`bench --scaling`: time and memory for each token as one size grows and the others stay. Every point has a process of
its own, so that its peak memory is its own."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.cli import Bench
from runner.console import console, say, show_table
from runner.memory import amount
from runner.timing.field import OpenWorker, entries, runtime_of, surroundings
from runner.timing.worker import Contestant, Entry, peak_memory
from runner.timing.workloads import Workload
from runner.workers import FAILURES
from shared.config import CorpusConfig, ModelConfig, TrainingConfig
from shared.errors import ImplementationError
from shared.files import strict_json, write_atomically

BASE = Workload("scaling", ModelConfig(hidden_size=128, embedding_size=64), 64, 16, 32, stack=2)
GRID: dict[str, tuple[int, ...]] = {
    "hidden size": (64, 128, 256, 512),
    "batch": (4, 16, 64),
    "length": (16, 32, 128),
    "vocabulary": (64, 5_000, 50_000),
}
CORPUS = (10_000, 100_000, 1_000_000)
"""Characters of a text, read and cut into batches; no framework takes part in that."""
WORDS = "the quick brown fox jumps over a lazy dog, and then it sleeps.\n"


class Reader:
    """A process that reads a text."""

    def read(self, characters: int) -> dict[str, Any]:
        """From the file to the first batch."""
        from runner.experiment import prepare

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            path.write_text((WORDS * (characters // len(WORDS) + 1))[:characters], "utf-8")
            started = time.perf_counter()
            experiment = prepare(CorpusConfig(corpus=str(path)), TrainingConfig(), ModelConfig())
            experiment.training.batch(0, 0)
            return {
                "seconds_per_token": (time.perf_counter() - started) / characters,
                "peak_memory_bytes": peak_memory(),
            }


def run(options: Bench, names: Sequence[str], engines: Sequence[str], open_worker: OpenWorker) -> int:
    """Measure, show, write; 1 where a point fails."""
    rows: list[dict[str, Any]] = []
    found = entries(names, engines, replace(options, peers=False), BASE)
    with console.status("scaling") as status:
        for axis, value, workload in points():
            for entry in found:
                status.update(f"{axis} {value:,}: {entry.name()}")
                rows.append({"axis": axis, "value": value, **point(entry, workload, options, open_worker)})
        for characters in CORPUS:
            status.update(f"corpus of {characters:,} characters")
            with open_worker("corpus", Reader) as worker:
                rows.append(
                    {"axis": "corpus", "value": characters, "name": "reading", **worker.call("read", characters)}
                )
    for axis in (*GRID, "corpus"):
        show(axis, [row for row in rows if row["axis"] == axis])
    if options.json:
        write_atomically(options.json, strict_json({"base": BASE.describe(), "rows": rows}))
    return 1 if any(row.get("failed") for row in rows) else 0


def points() -> Iterator[tuple[str, int, Workload]]:
    """One size at a time, from the same base."""
    for axis, values in GRID.items():
        for value in values:
            yield axis, value, sized(axis, value)


def sized(axis: str, value: int) -> Workload:
    """The base with another size."""
    match axis:
        case "hidden size":
            return replace(BASE, model=replace(BASE.model, hidden_size=value))
        case "batch":
            return replace(BASE, batch_size=value)
        case "length":
            return replace(BASE, seq_length=value)
    return replace(BASE, vocabulary_size=value)


def point(entry: Entry, workload: Workload, options: Bench, open_worker: OpenWorker) -> dict[str, Any]:
    """Seconds of a token's step, and the peak of the process."""
    name = {"name": entry.name()}
    try:
        with surroundings(entry, options):
            opened = open_worker(entry.name(), Contestant, entry, workload, runtime_of(entry, options))
        with opened as worker:
            worker.call("round", 0.0, 0)
            times = [worker.call("round", options.round_seconds, 0) for _ in range(3)]
            best = min(each["seconds"] / each["tokens"] for each in times)
            return name | {"seconds_per_token": best, "peak_memory_bytes": worker.call("peak_memory")}
    except ImplementationError as error:
        return name | {"refused": str(error)}
    except FAILURES as error:
        return name | {"failed": str(error)}


def show(axis: str, rows: list[dict[str, Any]]) -> None:
    """A line for each entry, a column for each value."""
    values = list(dict.fromkeys(row["value"] for row in rows))
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row["name"], [row["name"]]).append(cell(row))
    show_table(f"{axis}: time a token, and memory at the peak", ("", *(f"{v:,}" for v in values)), lines.values())
    for row in {row["name"]: row for row in rows}.values():
        if reason := row.get("refused") or row.get("failed"):
            say(f"{row['name']}: {reason}", "dim")


def cell(row: dict[str, Any]) -> str:
    """As "12.3 us, 250 MB"."""
    if "seconds_per_token" not in row:
        return "refused" if "refused" in row else "failed"
    memory = amount(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else "-"
    return f"{1e6 * row['seconds_per_token']:.3g} us, {memory}"
