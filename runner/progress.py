"""The progress bar of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
