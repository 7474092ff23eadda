"""The progress bar of training, and the count of examinations."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

from runner.console import console, say
from shared.config import TrainingConfig
from shared.contract import TrainingSteps


class TrainingBar:
    """Epoch, step, learning rate, loss, tokens per second, time left."""

    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar, self._task = bar, task

    def show(
        self, progress: Any, training: TrainingConfig, steps: TrainingSteps, rates: np.ndarray, tokens_per_second: float
    ) -> None:
        """After each stack."""
        text = (
            f"epoch {progress.epoch + 1}/{training.epochs}  step {progress.step}  lr {rates[-1]:.4g}  "
            f"loss {steps.losses[-1]:.3f}  {tokens_per_second / 1000:.1f}k tokens/s"
            + (f"  skipped {progress.skipped}" if progress.skipped else "")
        )
        self._bar.update(self._task, completed=progress.step, description=text)

    def say(self, line: str) -> None:
        """A line above the bar, kept also where no terminal shows the bar."""
        say(line)


@contextmanager
def training_progress(total: int, done: int) -> Iterator[TrainingBar]:
    """A bar from `done` to `total` steps; on a pipe only the lines of `say`."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield TrainingBar(bar, bar.add_task("first call (compiling)", total=total, completed=done))


class Tally:
    """How many examinations each implementation has made, and when the last will be."""

    def __init__(self, totals: Mapping[str, int], status: Status) -> None:
        self._totals, self._done, self._status = totals, dict.fromkeys(totals, 0), status
        self._started, self._announced = time.monotonic(), False

    def count(self, name: str) -> None:
        """One more."""
        self._done[name] += 1
        left = self.seconds_left()
        self._status.update(self.line(left))
        if not self._announced and left > LONG:
            self._announced = True
            say(f"{max(self._totals.values())} cases: this will take about {duration(left)}", "dim")

    def seconds_left(self) -> float:
        """By the slowest; 0 before all have done enough to tell."""
        if any(done < min(ENOUGH, self._totals[name]) for name, done in self._done.items()):
            return 0.0
        passed = time.monotonic() - self._started
        return max(passed / done * (self._totals[name] - done) for name, done in self._done.items())

    def line(self, left: float) -> str:
        """All counts, and the time left."""
        counts = ", ".join(f"{name} {done}/{self._totals[name]}" for name, done in self._done.items())
        return f"examining: {counts}" + (f"; about {duration(left)} left" if left else "")


ENOUGH, LONG = 4, 120.0
"""Cases after which an estimate means something; seconds that are worth a word beforehand."""


def duration(seconds: float) -> str:
    """As "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def tally_progress(totals: Mapping[str, int]) -> Iterator[Tally]:
    """A line that counts; on a pipe only the estimate of something long."""
    with console.status("starting") as status:
        yield Tally(totals, status)
