"""A trial of a search: an ordinary run of `train` in a directory of its own, watched. It goes on from its checkpoint if
there is one. What it leaves beside its run directory is what it tells the search."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runner.cli import Train
from runner.experiment import Experiment, evaluate, prepare
from runner.interruption import Interruption
from runner.memory import shortage_explained, sizes_to_lower
from runner.reporting.records import read_metrics
from runner.rundir import RunDirectory
from runner.sweeping.plan import PLACES
from runner.sweeping.search import Held, Search, TrialState
from runner.sweeping.space import configured
from runner.sweeping.stopping import Stall
from runner.train import describe_run, model_of
from runner.training.run import Run
from shared.contract import TrainingSteps
from shared.errors import NotFiniteError, UserError
from shared.files import WriteError, discard
from shared.initializers import initial_parameters
from shared.schedules import settled

HOPELESS = 27
"""81sts of a run after which its held-out loss must be below the unigram entropy, unless nothing is to be pruned."""
LOOK = 1.0
"""Seconds between two looks at whether the search is closed."""


class EndedError(Exception):
    """The run ends here: pruned, or done by a rule."""

    def __init__(self, state: TrialState, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; `state` None: the search was closed, and the trial can be gone on with."""

    state: TrialState | None
    value: float | None
    result: dict[str, Any]


class WatchedRun(Run):
    """`train`'s run that compares itself with the others at PLACES, and ends where a rule says so."""

    def __init__(
        self, options: Train, experiment: Experiment, model: Any, folder: RunDirectory, watch: "Watch"
    ) -> None:
        super().__init__(options, experiment, model, folder)
        self.watch = watch

    def epoch(self, stop: Interruption) -> Iterator[tuple[TrainingSteps, np.ndarray, float]]:
        """As it is, with a look at each stack."""
        for stack in super().epoch(stop):
            self.watch.look(self, stack[0], stop)
            yield stack


class Watch:
    """What a trial is watched with."""

    def __init__(self, search: Search, held: Held, length: int) -> None:
        self.search, self.held = search, held
        self.stall = Stall(search.plan.stall, search.plan.stall_whole, length)
        self.looked = time.monotonic()
        self.place = max(search.storage.get_trial(held.trial._trial_id).intermediate_values, default=0)

    def look(self, run: WatchedRun, steps: TrainingSteps, stop: Interruption) -> None:
        """After each stack: report, prune, apply the rules; EndedError where the run is over."""
        self.held.beat()
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            stop.requested = int(bool(self.search.closed()))
        if run.progress.step >= run.last_step:
            return  # the end of the epoch evaluates
        reason = self.stall.reason(steps.losses[steps.finite].tolist())
        if reason:
            raise EndedError(TrialState.COMPLETE, reason)
        place = max((each for each in PLACES[:-1] if run.progress.step * 81 >= each * run.last_step), default=0)
        if place > self.place:
            self.place = place
            self.report(run, place)

    def report(self, run: WatchedRun, place: int) -> None:
        """The lowest held-out loss so far, at a place where others report theirs."""
        now = evaluate(run.model, run.experiment, run.size).loss
        best, unigram = run.progress.best_loss, run.experiment.unigram_loss
        value = min(best, now) if np.isfinite(now) else best
        if np.isfinite(value):
            self.held.trial.report(value, place)
        hopeless = place >= HOPELESS and now >= unigram and self.search.plan.pruner != "none"
        if hopeless or not np.isfinite(now):
            state = TrialState.COMPLETE if best < unigram else TrialState.PRUNED
            raise EndedError(state, f"diverged: held-out loss {now:.3g}, unigram entropy {unigram:.3g}")
        if self.held.trial.should_prune() or self.search.overtaken(self.held.trial.number, value, place):
            raise EndedError(TrialState.PRUNED, f"pruned: {value:.4g} nats were not among the best at that step")


def run_trial(search: Search, held: Held) -> Outcome:
    """Train to the end that the trial comes to."""
    try:
        options = configured(search.plan.base, search.point(held.trial))
        path = search.run_directory(held.trial.number)
        path.mkdir(parents=True, exist_ok=True)
        return attempt(search, held, replace(options, run_dir=path, statistics=False))
    except WriteError:  # of the disk: every other trial would fail, too
        raise
    except UserError as error:  # of these options alone: a shortage of memory, or a text too short for the batches
        return Outcome(TrialState.FAIL, None, {"reason": str(error)})


def attempt(search: Search, held: Held, options: Train) -> Outcome:
    """Train, and say how it ended."""
    experiment = prepare(options.corpus, options.training, options.model)
    options = replace(options, schedule=settled(options.schedule, options.training, len(experiment.training)))
    size = len(experiment.vocabulary)
    folder = RunDirectory(search.run_directory(held.trial.number))
    with shortage_explained(lambda: sizes_to_lower(options, size)), folder.locked(new=False):
        model = model_of(options, experiment)
        model.load_parameters(initial_parameters(options.model, size, options.training.seed))
        run = WatchedRun(options, experiment, model, folder, Watch(search, held, options.training.seq_length))
        begin(run)
        state, reason = trained(run)
        if state is None:
            run.save()
            return Outcome(None, None, {})
        return conclude(run, state, reason)


def begin(run: WatchedRun) -> None:
    """From the checkpoint, or from the start, which needs none: hundreds of trials end before their first."""
    folder = run.folder
    folder.write_config(describe_run(run.options, run.model, run.experiment.facts()))
    if not folder.last.exists():
        folder.cut_metrics(0)
        return
    run.restore(folder.load_last())
    losses = [line["loss"] for line in read_metrics(folder.path) if line["split"] == "train"]
    run.watch.stall.reason(losses)


def trained(run: WatchedRun) -> tuple[TrialState | None, str]:
    """Train; how it ended and why, None where the search was closed."""
    try:
        run.train(Interruption())
    except EndedError as ended:
        if ended.state == TrialState.COMPLETE:
            last_look(run)
        return ended.state, ended.reason
    except NotFiniteError as error:
        return TrialState.PRUNED, "diverged: " + str(error).partition(". ")[0]
    return (None, "") if not run.progress.reason else (TrialState.COMPLETE, run.progress.reason)


def last_look(run: WatchedRun) -> None:
    """Where a rule ends a run within an epoch, it is evaluated there, and kept if it is the best."""
    score = evaluate(run.model, run.experiment, run.size)
    if score.loss < run.progress.best_loss:
        run.progress.best_loss, run.progress.best_step = score.loss, run.progress.step
        run.save(best=True)


def conclude(run: WatchedRun, state: TrialState, reason: str) -> Outcome:
    """What the run directory and the search keep."""
    progress, training = run.progress, run.options.training
    result: dict[str, Any] = {"best_step": progress.best_step, "steps": progress.step, "reason": reason}
    result |= {"seconds": round(progress.seconds, 3), "skipped": progress.skipped}
    value = progress.best_loss if np.isfinite(progress.best_loss) else None
    run.folder.add_result(result | {"best_loss": value})
    tokens = progress.step * training.batch_size * training.seq_length
    told = result | {"of_steps": run.last_step, "tokens": tokens, "unigram_loss": run.experiment.unigram_loss}
    if state == TrialState.COMPLETE and value is not None:
        return Outcome(state, value, told)
    return Outcome(TrialState.PRUNED, None, told)


def discard_checkpoints(search: Search, number: int) -> None:
    """Those of a trial that was told and is not the best: a large search would fill the disk."""
    folder, best = RunDirectory(search.run_directory(number)), search.best()
    discard(folder.last)
    if best is None or best.number != number:
        discard(folder.best)
