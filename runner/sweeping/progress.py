"""The live table of a search: what runs, what is best, how long it will take."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runner.console import console, plain, say
from runner.progress import duration
from runner.sweeping.plan import point_of
from runner.sweeping.search import Search
from runner.sweeping.space import Point

LINES = 12
"""Running trials that are shown."""


@contextmanager
def display(search: Search, workers: int, seconds: float) -> Iterator[Callable[[float], None]]:
    """A function to call with the seconds spent: a table on a terminal, else a line for each tenth of the trials."""
    table = Board(search, workers, seconds)
    if not console.is_terminal:
        yield table.line
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield lambda spent: live.update(table.drawn(spent))


class Board:
    """What is known at a moment."""

    def __init__(self, search: Search, workers: int, seconds: float) -> None:
        self.search, self.workers, self.limit = search, workers, seconds
        self.tenth = 0

    def counts(self, trials: Sequence[FrozenTrial]) -> str:
        """How many are in which state."""
        number = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        words = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        words |= {"running": TrialState.RUNNING, "waiting": TrialState.WAITING}
        return ", ".join(
            f"{number[state]} {word}" for word, state in words.items() if number[state] or word != "failed"
        )

    def left(self, trials: Sequence[FrozenTrial], spent: float) -> str:
        """The time left, by the pace so far and the limit."""
        finished = sum(trial.state.is_finished() for trial in trials)
        by_pace = spent / finished * (len(trials) - finished) if finished else float("inf")
        by_limit = max(0.0, self.limit - spent) if self.limit else float("inf")
        least = min(by_pace, by_limit)
        return f"about {duration(least)} left" if least < float("inf") else ""

    def best_so_far(self, trials: Sequence[FrozenTrial]) -> str:
        """The lowest held-out loss of any moment of any run, and where."""
        found = min(filter(measured, trials), key=lowest, default=None)
        if found is None:
            return "best: none yet"
        point = words(point_of(self.search.plan.space, found.params))
        return f"best {lowest(found):.4f} nats: trial {found.number}, {point}"

    def line(self, spent: float) -> None:
        """Without a terminal."""
        trials = self.search.trials()
        tenth = 10 * sum(trial.state.is_finished() for trial in trials) // max(1, len(trials))
        if tenth > self.tenth:
            self.tenth = tenth
            say(f"{self.counts(trials)}; {self.best_so_far(trials)}; {self.left(trials, spent)}")

    def drawn(self, spent: float) -> Table:
        """On one."""
        trials = self.search.trials()
        table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
        table.title = plain("; ".join(filter(None, [self.counts(trials), self.left(trials, spent)])))
        table.caption, table.caption_justify = plain(self.best_so_far(trials)), "left"
        for name in ("trial", "options", "part done", "held-out loss"):
            table.add_column(name, justify="left" if name == "options" else "right")
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial in running[:LINES]:
            table.add_row(*self.row(trial))
        return table

    def row(self, trial: FrozenTrial) -> list[Text]:
        """Of a running trial."""
        done = max(trial.intermediate_values, default=0) / 81
        loss = f"{lowest(trial):.4f}" if measured(trial) else "–"
        point = words(point_of(self.search.plan.space, trial.params))
        return [plain(each) for each in (str(trial.number), point, f"{done:.0%}", loss)]


def measured(trial: FrozenTrial) -> bool:
    """Whether any held-out loss is known."""
    return bool(trial.intermediate_values) or (trial.state == TrialState.COMPLETE and trial.value is not None)


def lowest(trial: FrozenTrial) -> float:
    """The lowest held-out loss of a trial, in nats per token."""
    own = [trial.value] if trial.state == TrialState.COMPLETE and trial.value is not None else []
    return min([*own, *trial.intermediate_values.values()])


def words(point: Point) -> str:
    """A point in one phrase."""
    return ", ".join(f"{name.rpartition('.')[2].replace('_', ' ')} {shown(value)}" for name, value in point.items())


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spent_tokens(trials: Sequence[FrozenTrial]) -> int:
    """Tokens that the finished runs trained on."""
    return sum(trial.user_attrs.get("result", {}).get("tokens", 0) for trial in trials)
