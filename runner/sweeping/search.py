"""A search as its workers see it: optuna keeps the trials and decides on points and pruning; who works on a trial is
decided here. A trial's number is its identity: taken up again after a worker was lost, it stays the same trial, goes on
from its run's checkpoint, and is told once.

All trials are queued when the search is made, so that no worker makes any: none is lost or made twice. A worker holds a
lock of the system on each trial it works on, which ends with the process, however it ends. So a running trial whose
lock is free is lost, and whoever gets the lock goes on with it. Where no lock is shared (a disk without locks, machines
without a common disk), a trial counts as lost once its beat has not changed for LOST_AFTER seconds; should its worker
be alive after all, both do the same and the first to finish is counted.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.cli import Sweep, Train
from runner.rundir import NO_LOCKS
from runner.sweeping import space as spaces
from runner.sweeping.plan import RUNGS, Plan, Sampler, label, point_of, pruner, queue, suggest
from runner.sweeping.space import IMPLEMENTATION, PARTS, Point
from shared.errors import ConfigError

optuna.logging.set_verbosity(logging.ERROR)  # what it would say of each trial, the table says

BEAT, LOST_AFTER = 30.0, 300.0
"""Seconds between signs of life, and without one until a trial counts as lost where locks cannot tell."""
ATTEMPTS = 5
"""Workers that may die of one trial before it counts as failed."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def plan_of(options: Sweep, folder: Path) -> Plan:
    """What the command line asks for; ConfigError where it cannot be."""
    parts = {part: getattr(options, part) for part in PARTS}
    space = spaces.space_of(options.vary, spaces.find(options.space) if options.space else None)
    rules = {each: getattr(options, each) for each in ("method", "pruner", "stall", "stall_whole", "keep_checkpoints")}
    return Plan(Train(impl=options.impl, **parts), space, **rules, trials=options.trials, folder=str(folder.absolute()))


def make(plan: Plan, storage: BaseStorage, name: str) -> "Search":
    """Begin a search, or finish its beginning: all of its trials wait in the queue afterwards."""
    points = queue(plan)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    if not study.user_attrs.get("queued"):
        study.set_user_attr("plan", plan.to_json())
        for point in points[len(study.get_trials(deepcopy=False)) :]:
            study.enqueue_trial({each: label(value) for each, value in point.items()})
        study.set_user_attr("queued", True)
    return Search(storage, name)


@dataclass
class Held:
    """A trial, and the right to work on it."""

    trial: Trial
    lock: FileLock
    beaten: float = field(default_factory=time.monotonic)
    beats: int = 0

    def beat(self) -> None:
        """A sign of life, now and then."""
        if time.monotonic() - self.beaten > BEAT:
            self.beaten, self.beats = time.monotonic(), self.beats + 1
            self.trial.set_user_attr("beat", self.beats)


class Search:
    """The trials and the plan in a storage."""

    def __init__(self, storage: BaseStorage, name: str, folder: Path | None = None) -> None:
        self.storage, self.name = storage, name
        attributes = optuna.load_study(study_name=name, storage=storage).user_attrs
        if not attributes.get("queued"):
            raise ConfigError(f"The search {name} has not begun: wait, or go on with its beginning: sweep --resume.")
        self.plan = Plan.from_json(attributes["plan"])
        self.sampler = Sampler(self.plan)
        self.study = optuna.load_study(
            study_name=name, storage=storage, sampler=self.sampler, pruner=pruner(self.plan.pruner)
        )
        self.id = storage.get_study_id_from_name(name)
        self.folder = folder or Path(self.plan.folder)
        self.locks = self.folder / "locks"
        self.seen: dict[int, tuple[Any, float]] = {}

    def trials(self) -> list[FrozenTrial]:
        """All of them, in order of their numbers; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def closed(self) -> str:
        """Why no work is to be done any more, or nothing."""
        return str(self.study.user_attrs.get("closed", ""))

    def close(self, reason: str) -> None:
        """End the search for all workers; "" opens it again."""
        if reason != self.closed():
            self.study.set_user_attr("closed", reason)

    def run_directory(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:05d}"

    def take(self, only: int | None = None, impl: str = "") -> Held | None:
        """The first trial that waits or was lost, those of an implementation first, or `only` that one; None where
        others hold all that is left."""
        for trial in sorted(self.trials(), key=lambda trial: implementation_of(trial) not in (impl, "")):
            if trial.state in DONE or (only is not None and trial.number != only):
                continue
            if (held := self.attempt(trial)) is not None:
                return held
        return None

    def attempt(self, trial: FrozenTrial) -> Held | None:
        """Hold a trial if nobody else does; it is looked at again once the lock is there."""
        lock, known = self.lock_of(trial.number)
        if lock is None:
            return None
        now = self.storage.get_trial(trial._trial_id)
        if self.is_free(now, known) and self.claim(now):
            return Held(Trial(self.study, trial._trial_id), lock)
        lock.release()
        return None

    def lock_of(self, number: int) -> tuple[FileLock | None, bool]:
        """The lock, or None where another process has it; whether somebody here held it before."""
        self.locks.mkdir(parents=True, exist_ok=True)
        path = self.locks / f"{number:05d}"
        known = path.exists()
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            return None, True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return lock, False  # which says nothing: beats must tell
        return lock, known

    def is_free(self, trial: FrozenTrial, known: bool) -> bool:
        """Whether a trial whose lock is here waits, or lost its worker."""
        if trial.state == TrialState.WAITING:
            return True
        if trial.state != TrialState.RUNNING:
            return False
        if known and trial.user_attrs.get("worker", {}).get("host", socket.gethostname()) == socket.gethostname():
            return True
        beat, since = trial.user_attrs.get("beat"), time.monotonic()
        last, since = self.seen.get(trial.number, (beat, since))
        self.seen[trial.number] = (beat, since if last == beat else time.monotonic())
        return last == beat and time.monotonic() - since > LOST_AFTER

    def claim(self, trial: FrozenTrial) -> bool:
        """Make it ours; False where another machine was faster, or where it has cost too many workers."""
        if (deaths := trial.user_attrs.get("deaths", 0)) >= ATTEMPTS:
            self.tell(trial.number, TrialState.FAIL, None, {"reason": f"its worker died {deaths} times"})
            return False
        if trial.state == TrialState.WAITING and not self.storage.set_trial_state_values(
            trial._trial_id, TrialState.RUNNING
        ):
            return False
        worker = {"host": socket.gethostname(), "process": os.getpid()}
        self.storage.set_trial_user_attr(trial._trial_id, "worker", worker)
        return True

    def died(self, process: int) -> None:
        """Count the death of a worker here against the trial it was at; not one that ended with the whole search."""
        worker = {"host": socket.gethostname(), "process": process}
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and trial.user_attrs.get("worker") == worker:
                self.storage.set_trial_user_attr(trial._trial_id, "deaths", trial.user_attrs.get("deaths", 0) + 1)

    def point(self, trial: Trial) -> Point:
        """The options of a trial: chosen now, or when it was first taken."""
        for name, each in self.sampler.distributions.items():
            suggest(trial, name, each)
        return point_of(self.plan.space, trial.params)

    def tell(self, number: int, state: TrialState, value: float | None, result: Mapping[str, Any]) -> None:
        """The end of a trial; if another was faster, nothing."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if trial.state in DONE:
            return
        try:
            self.storage.set_trial_user_attr(trial._trial_id, "result", dict(result))
            self.study.tell(number, value, state, skip_if_finished=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            return

    def overtaken(self, number: int, value: float, place: int) -> bool:
        """Whether a trial that came first to places of successive halving, and so passed, would not pass by now: its
        lowest loss at a later place is not among the best third that trials had at one of those."""
        if self.plan.pruner != "asha":
            return False
        others = [trial.intermediate_values for trial in self.trials() if trial.number != number]
        for rung in (each for each in RUNGS if each < place):
            there = [values[min(reached)] for values in others if (reached := [at for at in values if at >= rung])]
            if sum(each < value for each in there) >= max(1, (len(there) + 1) // 3):
                return True
        return False

    def best(self) -> FrozenTrial | None:
        """The trial with the lowest held-out loss of those that came to their end."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return min(complete, key=lambda trial: (trial.value, trial.number), default=None)

    def unfinished(self) -> bool:
        """Whether trials wait or run."""
        return any(trial.state not in DONE for trial in self.trials())

    @contextmanager
    def holding(self, held: Held) -> Iterator[Held]:
        """For the time of the work."""
        try:
            yield held
        finally:
            held.lock.release()


def implementation_of(trial: FrozenTrial) -> str:
    """As far as it is known before the trial is taken."""
    return str((trial.system_attrs.get("fixed_params", {}) | trial.params).get(IMPLEMENTATION, ""))
