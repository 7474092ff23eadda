"""Who is timed by `bench`: an implementation with one of its engines, or a peer, each alone in a process. Only what
lies between two readings of the clock is counted; what is imported, built, compiled and moved is timed apart."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runner import environment
from runner.registry import create_model, import_quietly, require
from runner.timing.workloads import LEARNING_RATE, Workload
from shared.config import OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.sampling import SamplingRule, sampling_uniforms

PROVEN_STEPS = 5
PROVEN_TOKENS = 32
PATIENCE, FEWEST = 0.25, 5
"""Seconds and calls, of which the quickest counts, whichever is more."""
ADAM = OptimizerConfig()
"""Adam in torch's formula, clipped by global norm 1."""
KERAS_ADAM = replace(ADAM, dialect="keras")


class Entry(NamedTuple):
    """A row of the table."""

    impl: str
    engine: str
    """scratch, fused or native; the peer's name, where it is one."""
    peer: bool
    tuned: bool
    """Whether the project's settings were made before anything was imported."""

    def name(self) -> str:
        """As "torch fused"; a peer as "torch (adam)", and "torch (adam) tuned" with our settings."""
        if not self.peer:
            return f"{self.impl} {self.engine}"
        return f"{self.impl} ({self.engine})" + (" tuned" if self.tuned else "")


class Ours:
    """An implementation behind the contract, trained and sampled as a peer is."""

    def __init__(self, impl: str, workload: Workload, runtime: RuntimeConfig, optimizer: OptimizerConfig) -> None:
        size, self._carried = workload.vocabulary_size, not workload.padded
        self.model = create_model(impl, workload.model, optimizer, size, runtime)
        self.model.load_parameters(workload.parameters(runtime.dtype))
        self.kernel, self.device = self.model.kernel, self.model.device
        self._state = self.model.initial_state(workload.batch_size)

    def train(self, batches: Batch) -> np.ndarray:
        steps = self.model.train_steps(batches, self._state, np.full(len(batches.tokens), LEARNING_RATE))
        self._state = steps.state
        return steps.losses

    def sample(self, first: np.ndarray, length: int, greedy: bool) -> np.ndarray:
        drawn = sampling_uniforms(0, len(first), length)
        rule = SamplingRule(0.0 if greedy else 1.0)
        return self.model.generate(first[:, None], np.ones(len(first), np.int32), drawn, rule)


class Contestant:
    """An entry, ready to be asked. `runtime` is what an implementation gets; a peer takes its device and precision."""

    def __init__(
        self, entry: Entry, workload: Workload, runtime: RuntimeConfig, optimizer: OptimizerConfig = ADAM
    ) -> None:
        started = time.perf_counter()
        require(entry.impl)
        self._workload, self._runtime = workload, runtime
        if not entry.peer:
            import_quietly(f"impl_{entry.impl}")
            imported = time.perf_counter()
            self._subject: Any = Ours(entry.impl, workload, runtime, optimizer)
        else:
            peers = import_quietly(f"benchmarks.peer_{entry.impl}").PEERS
            imported = time.perf_counter()
            self._subject = peers[entry.engine](workload, workload.parameters(runtime.dtype), runtime.device)
        self._seconds = {"import_seconds": imported - started, "build_seconds": time.perf_counter() - imported}
        self._impl, self._stacks, self._step_seconds = entry.impl, workload.stacks(), 0.0
        self._settings = environment.in_force()

    def introduce(self) -> dict[str, Any]:
        """What runs here, and with which settings."""
        subject = self._subject
        return {"kernel": subject.kernel, "device": str(subject.device), "settings": self._settings, **self._seconds}

    def prove(self) -> dict[str, Any]:
        """The losses of the first steps, or the likeliest tokens at each number of texts; and how long the first call
        took, which compiles."""
        started = time.perf_counter()
        if self._workload.sampled:
            texts = [self._subject.sample(self._first(rows), PROVEN_TOKENS, True) for rows in self._workload.sampled]
            return {"tokens": [text.tolist() for text in texts], "first_call_seconds": time.perf_counter() - started}
        losses = list(self._subject.train(next(self._stacks)))
        first = time.perf_counter() - started
        while len(losses) < PROVEN_STEPS:
            losses += list(self._subject.train(next(self._stacks)))
        return {"losses": [float(loss) for loss in losses[:PROVEN_STEPS]], "first_call_seconds": first}

    def round(self, seconds: float, rows: int) -> dict[str, float]:
        """Steps or texts for about so many seconds, one call at least -> calls, tokens that count, seconds."""
        work = self._texts(rows) if rows else self._steps()
        calls, tokens, wall, processor = 0, 0, 0.0, 0.0
        while calls == 0 or wall + wall / calls / 2 < seconds:
            counted, call = next(work)
            before = time.perf_counter(), time.process_time()
            call()
            wall, processor = wall + time.perf_counter() - before[0], processor + time.process_time() - before[1]
            calls, tokens = calls + 1, tokens + counted
        return {"calls": calls, "tokens": tokens, "seconds": wall, "processor_seconds": processor}

    def _steps(self) -> Iterator[tuple[int, Callable[[], Any]]]:
        for batches in self._stacks:
            yield int(batches.mask.sum()), lambda given=batches: self._subject.train(given)  # type: ignore[misc]

    def _texts(self, rows: int) -> Iterator[tuple[int, Callable[[], Any]]]:
        first, length = self._first(rows), self._workload.length
        while True:
            yield rows * length, lambda: self._subject.sample(first, length, False)

    def _first(self, rows: int) -> np.ndarray:
        """The token that each text goes on from."""
        return np.arange(rows, dtype=np.int32) % self._workload.vocabulary_size

    def yardsticks(self) -> dict[str, float]:
        """The best matrix product in operations a second, and the seconds that a stack takes to the device."""
        framework = import_quietly(f"benchmarks.peer_{self._impl}")
        rates = [2 * m * k * n / quickest(framework.multiplier(m, k, n)) for m, k, n in self._workload.products]
        arrays = tuple(next(self._stacks))
        return {"product": max(rates), "transfer_seconds": quickest(lambda: framework.transfer(arrays))}

    def peak_memory(self) -> int | None:
        """Bytes of this process at its largest; None where the system does not tell."""
        return peak_memory()


def quickest(call: Callable[[], Any]) -> float:
    """Seconds of the quickest of five calls or more, after a first one; the second, too, may still be slow."""
    call()
    found: list[float] = []
    deadline = time.perf_counter() + PATIENCE
    while len(found) < FEWEST or time.perf_counter() < deadline:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def peak_memory() -> int | None:
    """The high-water mark of this process' memory, bytes."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
