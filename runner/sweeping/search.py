"""A search as its workers see it: optuna keeps the trials and decides on points and pruning; who works on a trial is
decided here. A trial's number is its identity: taken up again after a worker was lost, it stays the same trial, goes on
from its run's checkpoint, and is told once.

All trials are queued when the search is made, so that no worker makes any: none is lost or made twice. A worker holds a
lock of the system on each trial it works on, which ends with the process, however it ends. So a running trial whose
lock is free is lost, and whoever gets the lock goes on with it. Where no lock is shared (a disk without locks, machines
without a common disk), a trial counts as lost once its beat has not changed for LOST_AFTER seconds; should its worker
be alive after all, both do the same and the first to finish is counted.
"""

import json
import logging
import os
import random
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runner.cli import Sweep, Train
from runner.rundir import NO_LOCKS
from runner.sweeping import space as spaces
from runner.sweeping.space import IMPLEMENTATION, PARTS, Dimension, Point, Space
from shared.config import from_json, to_json
from shared.errors import ConfigError, ImplementationError, UserError
from shared.files import discard

if missing := [name for name in ("optuna", "submitit") if find_spec(name) is None]:
    raise ImplementationError(
        f"sweep needs {' and '.join(missing)}, not installed here. Install with: pip install 'rosetta-rnn[sweep]' (in "
        "a checkout: pip install -c constraints.txt -e '.[sweep]')."
    )

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock  # the one part of optuna that it does not export
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

optuna.logging.set_verbosity(logging.ERROR)  # what it would say of each trial, the table says

BEAT, LOST_AFTER = 30.0, 300.0
"""Seconds between signs of life, and without one until a trial counts as lost where locks cannot tell."""
ATTEMPTS = 5
"""Workers that may die of one trial before it counts as failed."""
PLACES = (3, 5, 9, 16, 27, 47, 81)
"""Where a run's held-out loss is compared with others': in 81sts of its steps, each about 1.7 times the one before. Not
earlier: a rate that is best in the end often does harm in the first steps."""
RUNGS = (3, 9, 27)
"""Those of successive halving."""
STARTUP = 16
"""Points at random before TPE has enough results to learn from."""
DEFAULT_TRIALS = 64
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Plan:
    """What every worker must know, kept in the storage."""

    base: Train
    space: Space
    method: str
    pruner: str
    trials: int
    stall: int = 0
    stall_whole: int = 0
    keep_checkpoints: bool = False
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        base = {part: to_json(getattr(self.base, part)) for part in PARTS} | {"impl": self.base.impl}
        return {each.name: getattr(self, each.name) for each in fields(self)} | {
            "base": base,
            "space": [asdict(each) for each in self.space],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """ConfigError where that is none, as of another version."""
        try:
            kinds = {part: type(getattr(Train(), part)) for part in PARTS}
            parts = {part: from_json(kind, values["base"][part]) for part, kind in kinds.items()}
            dimensions = (each | {"choices": tuple(map(hashable, each["choices"]))} for each in values["space"])
            base = Train(impl=values["base"]["impl"], **parts)
            return cls(**values | {"base": base, "space": tuple(Dimension(**each) for each in dimensions)})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"The storage holds no search of this version of the program ({error!r}).") from None


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in optuna's words."""
    if dimension.choices:
        return CategoricalDistribution([label(choice) for choice in dimension.choices])
    if dimension.whole:
        step = 1 if dimension.log else int(dimension.step)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step or None)


def label(value: Any) -> Any:
    """A choice as optuna keeps it: what is several values at once, as text."""
    return json.dumps(value) if isinstance(value, tuple) else value


def point_of(space: Space, values: Mapping[str, Any]) -> Point:
    """Optuna's values as ours."""
    given = {each.name: {label(choice): choice for choice in each.choices} for each in space}
    return {name: given[name].get(value, value) for name, value in values.items()}


class Sampler(BaseSampler):
    """Points as functions of seed, number and the results so far, whoever asks: random ones first, then TPE's. What was
    tried already, or cannot be, is replaced by a random point."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.distributions = {each.name: distribution(each) for each in plan.space}
        self.seed = plan.base.training.seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: each for name, each in self.distributions.items() if not each.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        tpe = TPESampler(seed=self.seed + trial.number, multivariate=True, n_startup_trials=STARTUP)
        values = tpe.sample_relative(study, trial, search_space)
        taken = [point_of(self.plan.space, each.params) for each in others if each.params]
        if values:
            single = {name: each for name, each in self.distributions.items() if each.single()}
            values |= {name: self.sample_independent(study, trial, name, each) for name, each in single.items()}
            point = point_of(self.plan.space, values)
            fresh = spaces.key(point) not in {spaces.key(each) for each in taken}
            if fresh and spaces.possible(self.plan.base, point):
                return values
        chance = random.Random(f"{self.seed} {trial.number}")  # noqa: S311 - no secret
        drawn = next(spaces.drawn(self.plan.base, self.plan.space, chance, taken), None)
        drawn = drawn or next(spaces.drawn(self.plan.base, self.plan.space, chance), {})
        return {name: label(value) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Only of what has one value."""
        dimension = next(each for each in self.plan.space if each.name == param_name)
        return label(dimension.draw(random.Random(self.seed)))  # noqa: S311


def pruner(name: str) -> optuna.pruners.BasePruner:
    """One that counts in 81sts of a run."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=PLACES[0])
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=PLACES[0], reduction_factor=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(PLACES[0], PLACES[-1], reduction_factor=3)
    return optuna.pruners.NopPruner()


class JournalLock(BaseJournalFileLock):
    """A lock of the system, which ends with its process: optuna's own lock files would hold up everybody for half a
    minute after a kill. Whoever gets it removes the line that a killed process, or a full disk, left torn."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, FileLock(f"{path}.flock", fallback_to_soft=False)

    def acquire(self) -> bool:
        self.lock.acquire()
        if self.path.exists():
            mend(self.path)
        return True

    def release(self) -> None:
        self.lock.release()


def mend(path: Path) -> None:
    """Cut off what follows the last end of a line; only whoever may write calls it."""
    with path.open("rb+") as file:
        size = end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            if (last := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + last + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def knows_locks(folder: Path) -> bool:
    """Whether the disk of a folder has locks of the system."""
    lock = FileLock(folder / f".{socket.gethostname()}.probe", fallback_to_soft=False)
    try:
        with lock:
            return True
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    finally:
        discard(lock.lock_file)


def is_database(address: str) -> bool:
    return "://" in address


def open_storage(address: str) -> BaseStorage:
    """A database, or the file of a journal; UserError where it cannot be opened."""
    if is_database(address):
        try:
            return RDBStorage(address)
        except ModuleNotFoundError as error:
            raise UserError(f"--storage {hidden(address)}: needs {error.name}: pip install {error.name}.") from None
        except Exception as error:  # of whatever driver
            said = str(error).splitlines()[0]
            raise UserError(f"--storage {hidden(address)} cannot be opened: {said}") from None
    path = Path(address).absolute()  # for the lock, and since workers may start elsewhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalLock(path) if knows_locks(path.parent) else JournalFileOpenLock(str(path))
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--storage {address} cannot be read as optuna's journal: {error}") from None


def hidden(address: str) -> str:
    """An address without its password."""
    from sqlalchemy.engine import make_url

    return make_url(address).render_as_string(hide_password=True) if is_database(address) else address


def refuse_shared_sqlite(address: str, workers: int) -> None:
    """ConfigError where several processes would write to SQLite."""
    if address.startswith("sqlite") and workers > 1:
        raise ConfigError(
            f"--storage {address} takes one worker, not {workers}: SQLite locks its whole file for every write, gives "
            "up with 'database is locked' when several processes write, and damages it on disks of a network. Leave "
            "--storage out (a journal file, safe for many), name a real database, or add --workers 1."
        )


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


def queue(plan: Plan) -> list[Point]:
    """The points of all trials; TPE finds its own when their time comes."""
    chance = random.Random(plan.base.training.seed)  # noqa: S311 - no secret
    if plan.method == "grid":
        return spaces.grid(plan.base, plan.space, chance)[: plan.trials or None]
    found = list(islice(spaces.drawn(plan.base, plan.space, chance), plan.trials or DEFAULT_TRIALS))
    if not found:
        spaces.configured(plan.base, {each.name: each.draw(chance) for each in plan.space})  # says what is wrong
        raise ConfigError("No point of the space has options that go together.")
    return found if plan.method == "random" else [{} for _ in found]


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


def suggest(trial: Trial, name: str, each: BaseDistribution) -> Any:
    """The value of one option."""
    if isinstance(each, IntDistribution):
        return trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
    if isinstance(each, FloatDistribution):
        return trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)
    assert isinstance(each, CategoricalDistribution)  # noqa: S101 - `distribution` makes no other
    return trial.suggest_categorical(name, each.choices)


def names_in(storage: BaseStorage) -> Sequence[str]:
    """The searches that a storage holds."""
    names: Sequence[str] = optuna.get_all_study_names(storage)
    return names


def only_study(storage: BaseStorage, address: str, name: str) -> str:
    """The search of that name, or the only one; ConfigError lists them."""
    names = names_in(storage)
    if name in names:
        return name
    if name or len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"{hidden(address)} holds {listed}: choose a search with --name.")
    return names[0]
