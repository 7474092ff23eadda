"""`sweep`: a search over options, on as many processes and machines as there are. This process only watches: workers
take trials from the storage, and whoever starts the search again finds everything there."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from shared.errors import ImplementationError

if missing := [name for name in ("optuna", "submitit") if find_spec(name) is None]:
    raise ImplementationError(
        f"sweep needs {' and '.join(missing)}, not installed here. Install with: pip install 'rosetta-rnn[sweep]' (in "
        "a checkout: pip install -c constraints.txt -e '.[sweep]')."
    )

from runner.cli import Sweep
from runner.console import say
from runner.environment import available_cores
from runner.interruption import interruption
from runner.registry import require
from runner.rundir import is_blank, new_folder
from runner.sweeping.plan import Plan, queue
from runner.sweeping.progress import display, spent_tokens
from runner.sweeping.report import finish
from runner.sweeping.search import ATTEMPTS, DONE, Search, make, plan_of
from runner.sweeping.space import SETTINGS
from runner.sweeping.storage import hidden, is_database, names_in, only_study, open_storage, refuse_shared_sqlite
from runner.sweeping.worker import SweepWorker
from runner.workers import Worker, WorkerError
from shared.corpora import load_corpus
from shared.errors import ConfigError, UserError
from shared.files import strict_json, write_atomically

GLANCE = 0.5
"""Seconds between two looks at the search."""
NOTE, POLITE = 5.0, 30.0
"""Seconds after which the time spent is noted, and that workers get to save their runs when the search is closed."""
JOURNAL = "journal.log"


@dataclass(frozen=True)
class Place:
    """Where a search is: what a worker needs to find it."""

    address: str
    name: str
    folder: Path


def run(options: Sweep) -> int:
    """Search, or go on, or help; exit status 130 or 143 where a signal ended it."""
    if options.join:
        return join(options)
    place, plan, options = reopened(options) if options.resume else begun(options)
    workers = options.workers or available_cores()
    refuse_shared_sqlite(place.address, workers)
    with only_one(place.folder):
        search = make(plan, open_storage(place.address), place.name)
        search.close("")
        say(f"{len(search.trials())} trials by {plan.method}, {workers} workers -> {place.folder}", "bold")
        if status := watched(place, search, options, workers):
            return status
        return finish(search, options, place.folder)


def begun(options: Sweep) -> tuple[Place, Plan, Sweep]:
    """A new search. What is wrong is said before its folder is made, but for what only a scheduler knows."""
    if (file := Path(options.corpus.corpus)).is_file():  # workers may start elsewhere
        options = replace(options, corpus=replace(options.corpus, corpus=str(file.absolute())))
    plan = plan_of(options, Path())
    queue(plan)
    job_options(options)
    for impl in next((each.choices for each in plan.space if each.name == "implementation"), (options.impl,)):
        require(impl)
    if not any(each.name.startswith("corpus.") for each in plan.space):
        load_corpus(options.corpus, say)  # a bad corpus is said once
    if is_database(options.storage):
        refuse_shared_sqlite(options.storage, options.workers or available_cores())
    folder = folder_of(options).absolute()
    place = Place(storage_of(options, folder), options.name or folder.name, folder)
    if options.storage:
        refuse_taken(place)
    plan = replace(plan, folder=str(folder))
    limits = {"seconds": options.seconds, "tokens": options.tokens}
    settings = {"storage": hidden(place.address), "name": place.name, "limits": limits, "plan": plan.to_json()}
    write_atomically(folder / SETTINGS, strict_json(settings))
    return place, plan, options


def storage_of(options: Sweep, folder: Path) -> str:
    """An address that means the same wherever a worker starts."""
    given = options.storage or str(folder / JOURNAL)
    return given if is_database(given) else str(Path(given).absolute())


def refuse_taken(place: Place) -> None:
    """ConfigError where the storage holds a search of that name: the new one would take its trials for its own."""
    if place.name in names_in(open_storage(place.address)):
        raise ConfigError(
            f"{hidden(place.address)} holds a search called {place.name}: choose another with --name, or help that one "
            "with --join."
        )


def folder_of(options: Sweep) -> Path:
    """A new folder; one that was asked for may be there if it holds nothing, as after a kill."""
    if options.run_dir and is_blank(options.run_dir):
        return options.run_dir
    return new_folder(options.run_dir, f"sweep-{Path(options.corpus.corpus).stem}-{options.model.cell}")


def only(options: Sweep, flag: str, allowed: tuple[str, ...]) -> None:
    """ConfigError where an option is given that a search which exists has decided already."""
    usual = Sweep(runtime=options.runtime)
    names = [each.name for each in fields(Sweep) if getattr(options, each.name) != getattr(usual, each.name)]
    if refused := [name for name in names if name not in (*allowed, flag)]:
        listed = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise ConfigError(f"With --{flag}, the search decides: leave out what belongs to {listed}.")


def reopened(options: Sweep) -> tuple[Place, Plan, Sweep]:
    """A search that was stopped or killed, with the limits it had unless others are given."""
    only(options, "resume", ("workers", "executor", "job_options", "seconds", "tokens", "json", "storage"))
    settings = settings_of(Path(options.resume))
    place = placed(options.resume, options)
    limits = {name: getattr(options, name) or value for name, value in settings["limits"].items()}
    return place, Plan.from_json(settings["plan"]), replace(options, **limits)


def settings_of(folder: Path) -> dict[str, Any]:
    """sweep.json."""
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text("utf-8"))
        return {name: settings[name] for name in ("storage", "name", "limits", "plan")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no search: {SETTINGS} is missing there or unreadable ({error}).") from None


def placed(target: str, options: Sweep) -> Place:
    """The place of a search that exists: by its folder, its journal, or its database."""
    if Path(target).is_dir():
        settings = settings_of(Path(target))
        address = options.storage or settings["storage"]
        if "***" in address:
            raise ConfigError(f"The password of {address} is not kept: give the whole address with --storage.")
        return Place(address, settings["name"], Path(target).absolute())
    if not is_database(target) and not Path(target).is_file():
        raise UserError(f"--join {target}: there is no such folder, journal or database.")
    storage = open_storage(target)
    name = only_study(storage, target, options.name)
    return Place(target, name, options.run_dir or Search(storage, name).folder)


def join(options: Sweep) -> int:
    """Work for a search that another process watches, until it ends."""
    only(options, "join", ("workers", "storage", "name", "run_dir"))
    place = placed(options.join, options)
    refuse_shared_sqlite(place.address, 2)
    search = Search(open_storage(place.address), place.name, place.folder)
    if reason := search.closed():
        say(f"The search {place.name} is closed: {reason}.")
        return 0
    count = options.workers or 1
    say(f"{count} more for the search {place.name}: {place.folder}", "bold")
    with ExitStack() as stack:
        team = Processes(place, count, search, stack)
        while team.working():
            team.tend(GLANCE)
    return 0


def watched(place: Place, search: Search, options: Sweep, count: int) -> int:
    """Show how it goes until the trials are done, a limit is reached, or a signal comes; its exit status, or 0."""
    if not search.unfinished():
        return 0
    before, started = float(search.study.user_attrs.get("seconds", 0.0)), time.monotonic()
    with interruption() as stop, ExitStack() as stack, display(search, count, options.seconds) as show:
        local = options.executor == "processes"
        team: Team = Processes(place, count, search, stack) if local else Jobs(place, count, search, options, stack)
        noted = started
        while team.working() and not search.closed():
            team.tend(GLANCE)
            spent = before + time.monotonic() - started
            show(spent)
            if time.monotonic() - noted > NOTE:
                noted = time.monotonic()
                search.study.set_user_attr("seconds", round(spent, 1))
            search.close(limit_reached(search, options, spent, stop.requested))
        search.study.set_user_attr("seconds", round(before + time.monotonic() - started, 1))
        patience = time.monotonic() + POLITE
        while team.working() and time.monotonic() < patience:
            team.tend(GLANCE)
    if stop.requested:
        say(f"Stopped, saved. Go on with: python -m runner sweep --resume {place.folder}")
        return 128 + stop.requested
    return 0


def limit_reached(search: Search, options: Sweep, seconds: float, signal: int) -> str:
    """Why the search is closed now, or nothing."""
    if signal:
        return "stopped"
    if 0 < options.seconds <= seconds:
        return f"{options.seconds:g} seconds are over"
    if 0 < options.tokens <= spent_tokens(search.trials()):
        return f"{options.tokens:,} tokens were trained on"
    return ""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One process watches a search; UserError for a second."""
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being searched already; help it with: sweep --join {folder}") from None
    try:
        yield
    finally:
        lock.release()


class Team(Protocol):
    """Workers, wherever they are."""

    def working(self) -> bool:
        """Whether any is left."""

    def tend(self, seconds: float) -> None:
        """For about so long, replace those that end before their time."""


class Deaths:
    """Counts bad ends, one after the other; each trial that is finished makes up for them."""

    def __init__(self, search: Search) -> None:
        self.search, self.count, self.finished = search, 0, -1

    def another(self, why: str) -> None:
        """One more; WorkerError where that leads nowhere."""
        finished = sum(trial.state in DONE for trial in self.search.trials())
        self.count = self.count + 1 if finished == self.finished else 1
        self.finished = finished
        if self.count > ATTEMPTS + 1:
            raise WorkerError(f"{why} ({self.count} workers were lost without a result)")
        say(f"{why}; another goes on with its trial", "yellow")


class Processes:
    """Workers here."""

    def __init__(self, place: Place, count: int, search: Search, stack: ExitStack) -> None:
        self.place, self.search, self.stack, self.deaths = place, search, stack, Deaths(search)
        self.opening: dict[Worker, int | None] = {}  # and the trial that each is to do first
        self.busy: dict[Worker, int] = {}  # and its process
        for number in range(count):
            self.open(f"worker {number + 1}", None)

    def open(self, name: str, first: int | None) -> None:
        """A new process, which does trial `first` before others."""
        factory = SweepWorker, self.place.address, self.place.name, self.place.folder
        self.opening[self.stack.enter_context(Worker(name, *factory))] = first

    def working(self) -> bool:
        return bool(self.opening or self.busy)

    def tend(self, seconds: float) -> None:
        answering: list[Any] = wait(list[Any]([*self.opening, *self.busy]), seconds)
        for worker in answering:
            process = self.busy.get(worker, 0)
            try:
                self.answered(worker)
            except WorkerError as error:
                worker.close()
                self.search.died(process)
                self.deaths.another(str(error))
                self.open(worker.name, None)

    def answered(self, worker: Worker) -> None:
        """One is ready to begin, has come to the end, or leaves a trial to another process."""
        if worker in self.opening:
            first = self.opening.pop(worker)
            worker.start("work", first)
            self.busy[worker] = worker.process_id
            return
        del self.busy[worker]
        left = worker.result()
        worker.close()
        if left is not None:
            self.open(worker.name, left)


class Jobs:
    """Workers that a scheduler starts, each a `sweep --join`; submitit knows how."""

    def __init__(self, place: Place, count: int, search: Search, options: Sweep, stack: ExitStack) -> None:
        import submitit

        cluster = {"slurm": "slurm", "jobs": "local"}[options.executor]
        try:
            self.executor = submitit.AutoExecutor(place.folder / "jobs", cluster=cluster)
            self.executor.update_parameters(**job_options(options))
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"--executor {options.executor}: {error}") from None
        words = [sys.executable, "-m", "runner", "sweep", "--join", str(place.folder), "--workers", "1"]
        share = 0 if cluster == "slurm" else max(1, available_cores() // count)  # a cluster's job has its own cores
        words += ["--threads", str(options.runtime.threads or share), "--device", options.runtime.device]
        words += ["--storage", options.storage] if options.storage else []
        self.command = submitit.helpers.CommandFunction(words, verbose=False)
        self.search, self.deaths = search, Deaths(search)
        self.jobs = [self.executor.submit(self.command) for _ in range(count)]
        stack.callback(self.cancel)

    def working(self) -> bool:
        return bool(self.jobs)

    def tend(self, seconds: float) -> None:
        time.sleep(seconds)
        for job in [job for job in self.jobs if job.done()]:
            self.jobs.remove(job)
            if self.search.unfinished() and not self.search.closed():
                self.deaths.another(f"job {job.job_id} ended ({job.state})")
                self.jobs.append(self.executor.submit(self.command))

    def cancel(self) -> None:
        """Those that are left."""
        for job in self.jobs:
            job.cancel()


def job_options(options: Sweep) -> dict[str, Any]:
    """--job-options as submitit takes them, numbers as numbers."""
    found: dict[str, Any] = {"name": "sweep"}
    for each in options.job_options:
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"--job-options takes NAME=VALUE, got {each!r}.")
        found[name] = int(value) if value.isdecimal() else value
    return found
