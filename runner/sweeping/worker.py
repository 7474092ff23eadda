"""A worker of a search: trial after trial until none is left. It meets other workers in the storage alone."""

import time
from pathlib import Path

from runner.console import console
from runner.sweeping.search import Search
from runner.sweeping.storage import open_storage
from runner.sweeping.trial import discard_checkpoints, run_trial

WAITING = 0.5
"""Seconds between two looks for a trial where others hold all that are left: one of them may be lost."""


class SweepWorker:
    """In a process of its own."""

    def __init__(self, address: str, name: str, folder: Path) -> None:
        console.quiet = True  # the runs' own progress; the search shows its own
        self.search = Search(open_storage(address), name, folder)
        self.impl = ""

    def work(self, first: int | None = None) -> int | None:
        """Trials, `first` before all others; None at the end, or the number of one that another framework has to run,
        which needs a process of its own."""
        while not self.search.closed():
            held = self.search.take(first, self.impl)
            if held is None and first is None and not self.search.unfinished():
                return None
            first = None
            if held is None:
                time.sleep(WAITING)
                continue
            with self.search.holding(held):
                number = held.trial.number
                impl = self.search.point(held.trial).get("implementation", self.search.plan.base.impl)
                if impl != (self.impl or impl):
                    return number
                self.impl = impl
                outcome = run_trial(self.search, held)
                if outcome.state is not None:
                    self.search.tell(number, outcome.state, outcome.value, outcome.result)
                    if not self.search.plan.keep_checkpoints:
                        discard_checkpoints(self.search, number)
        return None
