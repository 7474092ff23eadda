"""One workload, timed: entries prove their work, then take turns, round after round, one at a time."""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from runner.cli import Bench
from runner.environment import THREADS, available_cores, quiet, settings
from runner.timing.worker import ADAM, KERAS_ADAM, Contestant, Entry
from runner.timing.workloads import Workload
from runner.workers import FAILURES
from shared.config import Engine, OptimizerConfig, RuntimeConfig
from shared.engines import engine_of
from shared.errors import ImplementationError

OpenWorker = Callable[..., Any]
PEERS = {
    "numpy": ("loop", "min-char-rnn"),
    "torch": ("adam", "fused-adam"),
    "jax": ("flax",),
    "tf": ("function", "jit", "fit"),
}
"""The peers of each framework in benchmarks/; only where one is opened is its module loaded."""
BASELINES = {"numpy": ("loop",), "torch": ("adam",), "jax": ("flax",), "tf": ("function", "jit")}
"""Whom an implementation is compared with; of several, the faster."""
SAME_WORK = {"float32": 1e-4, "float64": 1e-6, "tf32": 1e-3}
"""Relative distance that the first losses may have from NumPy's in float64. Adam makes full steps of gradients that are
hardly more than rounding, so that float32 parts faster than its last digit says. In float64 it is Keras that parts by
more than 1e-12: it rounds Adam's decay rates to float32, and `fit` the losses that it tells, 2e-7."""
RATIOS = (
    ("peer_ratio", "default", "rounds"),
    ("peer_ratio_same_settings", "ours", "rounds"),
    ("peer_ratio_processor", "default", "processor_rounds"),
)
"""Each ratio, the settings of the peer, and the speeds that are compared: by the clock, or by processor time, which a
busy machine disturbs less, and which counts every thread."""
FOREIGN = ("TF_ENABLE_ONEDNN_OPTS", "TF_USE_LEGACY_KERAS", "XLA_FLAGS", "CUBLAS_WORKSPACE_CONFIG")
"""What the project sets quietly and a user of the framework would not."""


def entries(names: Sequence[str], engines: Sequence[str], options: Bench, workload: Workload) -> list[Entry]:
    """The rows of a table, an implementation behind its peers."""
    found: list[Entry] = []
    chosen = [engine_of(RuntimeConfig(), workload.model) if each == "auto" else each for each in engines]
    for impl in names:
        peers = PEERS[impl] if options.peers else ()
        if workload.sampled:  # the others write as the first does
            peers = tuple(peer for peer in peers if peer in BASELINES[impl])
        found += [Entry(impl, peer, peer=True, tuned=False) for peer in peers]
        if options.tuning:
            found += [Entry(impl, peer, peer=True, tuned=True) for peer in peers if peer in BASELINES[impl]]
        found += [Entry(impl, engine, peer=False, tuned=options.tuning) for engine in dict.fromkeys(chosen)]
    return found


def runtime_of(entry: Entry, options: Bench) -> RuntimeConfig:
    """What an entry runs with."""
    engine: Engine = "scratch" if entry.peer else entry.engine  # type: ignore[assignment]
    return RuntimeConfig(engine, options.device, options.dtype, options.threads, tuning=entry.tuned)


@contextmanager
def surroundings(entry: Entry, options: Bench) -> Iterator[None]:
    """The environment that a process started within gets: the project's settings, or the number of threads alone. What
    the user has set stays."""
    before, runtime = dict(os.environ), runtime_of(entry, options)
    if entry.tuned:
        wanted = settings(runtime)
    elif entry.peer:
        wanted = dict.fromkeys(THREADS, str(options.threads or available_cores()))
        for name, value in quiet(runtime).items():
            if name in FOREIGN and os.environ.get(name) == value:
                del os.environ[name]
    else:
        wanted = {}
    try:
        for name, value in wanted.items():
            os.environ.setdefault(name, value)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def threads(impl: str, made: Mapping[str, str]) -> int:
    """Those that a process with these settings computes with."""
    value = made["OPENBLAS_NUM_THREADS" if impl == "numpy" else "NPROC" if impl == "jax" else "OMP_NUM_THREADS"]
    return int(value) if value.isdecimal() else available_cores()


class Field:
    """The entries of a workload: the workers that still run, and what is known of each."""

    def __init__(
        self, workload: Workload, found: Sequence[Entry], options: Bench, stack: ExitStack, open_worker: OpenWorker
    ) -> None:
        self.workload, self.options, self._stack, self._open_worker = workload, options, stack, open_worker
        self.rows: dict[Entry, dict[str, Any]] = {entry: self._blank(entry) for entry in found}
        self.workers: dict[Entry, Any] = {}
        self._expected: dict[tuple[int, OptimizerConfig], dict[str, Any]] = {}

    def _blank(self, entry: Entry) -> dict[str, Any]:
        return {
            **{"impl": entry.impl, "engine": entry.engine, "peer": entry.peer, "name": entry.name()},
            **{"environment": "ours" if entry.tuned else "default", "kernel": "", "device": ""},
            **{"dtype": self.options.dtype, "threads": None},
            **{"workload": self.workload.name, "same_work": False, "refused": "", "failed": ""},
            **{"different_texts": None, "peak_memory_bytes": None, "transfer_seconds": None},
            "compile_seconds": None,
        }

    def enter(self, entry: Entry) -> None:
        """Start a process, build, and prove: alone, since all of it is timed."""
        row, workload = self.rows[entry], self._workload(entry)
        try:
            if entry.peer and self.options.dtype == "tf32":
                raise ImplementationError("peers compute in float32 or float64.")
            with surroundings(entry, self.options):
                worker = self._open_worker(entry.name(), Contestant, entry, workload, runtime_of(entry, self.options))
            self.workers[entry] = self._stack.enter_context(worker)
            row |= worker.call("introduce")
            row["threads"] = threads(entry.impl, row["settings"])
            row |= worker.call("prove")
            row |= proof(row, self._reference(workload, adam_of(entry)), SAME_WORK[self.options.dtype])
        except ImplementationError as error:
            row["refused"] = str(error)
        except FAILURES as error:
            row["failed"] = str(error)
        if not row["same_work"] and entry in self.workers:
            self.workers.pop(entry).__exit__(None, None, None)

    def _workload(self, entry: Entry) -> Workload:
        return self.workload.single() if entry.engine == "min-char-rnn" else self.workload

    def _reference(self, workload: Workload, adam: OptimizerConfig) -> dict[str, Any]:
        """What NumPy computes in float64 with this formula of Adam."""
        known = workload.batch_size, adam
        if known not in self._expected:
            entry = Entry("numpy", "scratch", peer=False, tuned=True)
            runtime = RuntimeConfig("scratch", "cpu", "float64")
            with surroundings(entry, self.options):
                worker = self._open_worker("reference", Contestant, entry, workload, runtime, adam)
            with worker:
                self._expected[known] = worker.call("prove")
        return self._expected[known]

    def call(self, entry: Entry, method: str, *arguments: Any) -> Any:
        """None where the worker fails, or failed before."""
        try:
            return self.workers[entry].call(method, *arguments) if entry in self.workers else None
        except ImplementationError as error:
            self.rows[entry] |= {"refused": str(error), "same_work": False}
        except FAILURES as error:
            self.rows[entry] |= {"failed": str(error), "same_work": False}
        self.workers.pop(entry).__exit__(None, None, None)
        return None


def measure(
    workload: Workload, found: Sequence[Entry], options: Bench, open_worker: OpenWorker, tick: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each entry and phase; `tick` is told of each of `calls` parts before it begins."""
    with ExitStack() as stack:
        field = Field(workload, found, options, stack, open_worker)
        for entry in found:
            tick(f"{workload.name}: {entry.name()} starts")
            field.enter(entry)
        turns = {rows: take_turns(field, rows, tick) for rows in workload.sampled or (0,)}
        for entry in found:
            field.rows[entry]["peak_memory_bytes"] = field.call(entry, "peak_memory")
            field.rows[entry] |= field.call(entry, "yardsticks") or {}
    return [
        {**field.rows[entry], "phase": f"sample {rows}" if rows else "train"}
        | summary(field.rows[entry], timed, workload)
        for rows, each in turns.items()
        for entry, timed in each.items()
    ]


def calls(workload: Workload, found: Sequence[Entry], options: Bench) -> int:
    """How often `measure` ticks."""
    return len(found) * (1 + (options.rounds + 1) * max(1, len(workload.sampled)))


def take_turns(field: Field, rows: int, tick: Callable[[str], None]) -> dict[Entry, list[dict[str, float]]]:
    """Rounds interleaved, the first of which compiles and warms up."""
    timed: dict[Entry, list[dict[str, float]]] = {entry: [] for entry in field.rows}
    for number in range(field.options.rounds + 1):
        for entry, found in timed.items():
            tick(f"{field.workload.name}: round {number} of {field.options.rounds}, {entry.name()}")
            if one := field.call(entry, "round", field.options.round_seconds, rows):
                found.append(one)
    return timed


def adam_of(entry: Entry) -> OptimizerConfig:
    """Keras' epsilon stands before the bias correction, so its first steps are others; NumPy knows both formulas."""
    return KERAS_ADAM if entry.peer and entry.impl == "tf" else ADAM


def proof(row: dict[str, Any], expected: dict[str, Any], allowed: float) -> dict[str, Any]:
    """Whether the same work was done: the losses agree, or the texts. Of many texts one in sixteen may differ, where
    two tokens are equally likely but for rounding."""
    if "tokens" in expected:
        pairs = [
            list(zip(mine, theirs, strict=True))
            for mine, theirs in zip(row["tokens"], expected["tokens"], strict=False)
        ]
        different = [sum(mine != theirs for mine, theirs in each) for each in pairs]
        same = all(count <= len(each) // 16 for count, each in zip(different, pairs, strict=True))
        return {"same_work": bool(pairs) and same, "different_texts": sum(different)}
    distances = [abs(mine / theirs - 1) for mine, theirs in zip(row["losses"], expected["losses"], strict=True)]
    distance = max(distances, key=lambda each: float("inf") if each != each else each)
    return {"same_work": distance <= allowed, "loss_distance": distance, "loss_bound": allowed}


def summary(row: dict[str, Any], timed: list[dict[str, float]], workload: Workload) -> dict[str, Any]:
    """Median, low and high over the rounds that count; no time without the proof."""
    if not row["same_work"] or len(timed) < 2:
        return {"tokens_per_second": None, "low": None, "high": None, "rounds": [], "processor_rounds": []}
    warm, *counted = timed
    speeds = [each["tokens"] / each["seconds"] for each in counted]
    steps = 1 if workload.sampled else workload.stack
    call = statistics.median(each["seconds"] / each["calls"] for each in counted)
    busy = statistics.median(each["processor_seconds"] / each["calls"] for each in counted)
    found = {
        **{"tokens_per_second": statistics.median(speeds), "low": min(speeds), "high": max(speeds), "rounds": speeds},
        "processor_rounds": [each["tokens"] / max(each["processor_seconds"], 1e-9) for each in counted],
        **{"step_seconds": call / steps, "processor_seconds": busy / steps},
    }
    if workload.sampled:
        return found | {"compile_seconds": max(0.0, warm["seconds"] / warm["calls"] - call)}
    single = row["engine"] == "min-char-rnn"
    operations = (workload.single() if single else workload).operations()
    start = row["import_seconds"] + row["build_seconds"] + row["first_call_seconds"]
    return found | {
        "compile_seconds": max(0.0, row["first_call_seconds"] - call),
        "first_step_seconds": max(0.0, start - call + call / steps),
        "operations_per_second": operations / (call / steps),
    }


def compared(rows: list[dict[str, Any]]) -> None:
    """Adds to each row its ratios to its framework's peer, and the share of the best matrix product of the run."""
    best = max((row["product"] for row in rows if row.get("product")), default=None)
    for row in rows:
        fellows = [each for each in rows if all(each[key] == row[key] for key in ("impl", "workload", "phase"))]
        for key, kind, rounds in RATIOS:
            peers = [
                e for e in fellows if e["peer"] and e["environment"] == kind and e["engine"] in BASELINES[e["impl"]]
            ]
            row[key] = ratio(row[rounds], [peer[rounds] for peer in peers])
        made = row.get("operations_per_second")
        row["flops_utilization"] = made / best if made and best else None


def ratio(ours: Sequence[float], peers: Sequence[Sequence[float]]) -> float | None:
    """The median over the rounds of how many times as fast as the fastest peer; None where nothing was timed."""
    timed = [peer for peer in peers if peer]
    if not ours or not timed:
        return None
    fastest = max(timed, key=statistics.median)
    return statistics.median(mine / theirs for mine, theirs in zip(ours, fastest, strict=False))
