"""`train`: one implementation learns a corpus. What it leaves is a run directory; the state of the run at any moment is
`Progress` and the model, so that stopping and going on are the same as never stopping."""

from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from io import BytesIO
from typing import Any

from runner.cli import Train, command_line
from runner.console import console, say
from runner.environment import in_force, machine
from runner.experiment import Experiment, prepare
from runner.interruption import interruption
from runner.memory import shortage_explained, sizes_to_lower
from runner.parallel import rank, team_of
from runner.registry import create_model, versions
from runner.reporting.tensorboard import EventFiles, require_tensorboard
from runner.rundir import NoDirectory, RunDirectory
from runner.sample import prompt_tokens
from runner.training.ending import finish
from runner.training.run import PARTS, Run
from shared.checkpoint import read_checkpoint
from shared.config import to_json
from shared.contract import LanguageModel, Team
from shared.initializers import initial_parameters
from shared.schedules import settled


def run(options: Train) -> int:
    """Train, or go on training; exit status 130 or 143 where a signal ended it, after saving."""
    if options.tensorboard:
        require_tensorboard()
    with shortage_explained(lambda: "Read less of the text with --first-characters."):
        experiment = prepare(options.corpus, options.training, options.model)
    with shortage_explained(lambda: sizes_to_lower(options, len(experiment.vocabulary))):
        return train(options, experiment)


def train(options: Train, experiment: Experiment) -> int:
    """`run`, once the text is read."""
    options = replace(options, schedule=settled(options.schedule, options.training, len(experiment.training)))
    prompt_tokens(experiment.vocabulary, options.prompt)  # a prompt that cannot be is said now, not after training
    with team_of(options) as team:
        model = model_of(options, experiment, team)
        model.load_parameters(initial_parameters(options.model, len(experiment.vocabulary), options.training.seed))
        if rank(options):
            console.quiet = True
            return follow(Run(options, experiment, model, NoDirectory(options), team))
        folder = RunDirectory.reopen(options.resume) if options.resume else RunDirectory.create(options)
        with folder.locked(new=options.resume is None), folder.resumable():
            return go(Run(options, experiment, model, folder, team))


def model_of(options: Train, experiment: Experiment, team: Team | None = None) -> LanguageModel:
    """With parameters all zero."""
    size, seed = len(experiment.vocabulary), options.training.seed
    return create_model(options.impl, options.model, options.optimizer, size, options.runtime, seed, team)


def go(run_: Run) -> int:
    """From where the run stands to its end, or to a signal; the exit status."""
    folder, team = run_.folder, run_.team
    if run_.options.resume:
        folder.same_corpus(run_.experiment.corpus.sha256)
    begun = folder.last.exists()
    if team:
        team.first(folder.last.read_bytes() if begun else b"")
    if begun:
        run_.restore(folder.load_last())
    introduce(run_)
    with events_of(run_) as run_.events:
        with interruption() as stop:
            if not begun:
                run_.save()  # whatever happens from here on, the run can go on
            run_.train(stop)
            stopped = run_.as_the_first(stop.requested)
        if stopped:
            run_.save()
            say(f"Stopped at step {run_.progress.step}, saved. Go on with: python -m runner --resume {folder.path}")
        else:
            if team:
                run_.model = model_of(run_.options, run_.experiment)  # what is left to do, one worker does
            finish(run_)
    if team:
        team.close()  # so long the others wait: some frameworks end with the first that leaves
    return 128 + int(stopped) if stopped else 0


def follow(run_: Run) -> int:
    """The same in a process beside the first, which alone knows the run's directory; the exit status."""
    assert run_.team  # noqa: S101 - without others there is nobody to follow
    if content := run_.team.first(b""):
        run_.restore(read_checkpoint(BytesIO(content), len(content)))
    with interruption() as stop:
        run_.train(stop)
        stopped = run_.as_the_first(stop.requested)
    run_.team.close()
    return 128 + int(stopped) if stopped else 0


def events_of(run_: Run) -> AbstractContextManager[EventFiles | None]:
    """Where --tensorboard logs to, if it does."""
    options = run_.options
    if not options.tensorboard:
        return nullcontext()
    return closing(EventFiles(run_.folder.tensorboard, run_.progress.step, options.resume is not None))


def introduce(run_: Run) -> None:
    """Say what is about to happen, and keep it in the run directory."""
    options, model, facts = run_.options, run_.model, run_.experiment.facts()
    options = replace(options, skip_nonfinite=run_.progress.skips)
    run_.folder.write_config(describe_run(options, model, facts))
    shared = f", {options.parallel.workers} workers" if options.parallel.workers > 1 else ""
    say(f"{options.impl} ({model.engine}: {model.kernel}) on {model.device}, {options.runtime.dtype}{shared}", "bold")
    say(
        f"{facts['name']} ({facts['reader']}): {facts['training_tokens']:,} training and {facts['held_out_tokens']:,} "
        f"held-out tokens, {facts['vocabulary_size']} symbols; a unigram model has perplexity "
        f"{facts['unigram_perplexity']:.1f}"
    )
    for note in run_.experiment.notes:
        say(note, "yellow")
    config = options.model
    size = sum(value.size for value in model.dump_parameters().values())
    layers = f"{config.num_layers} x {config.hidden_size}"
    say(f"{config.cell} {layers}, {size:,} parameters; {run_.steps_per_epoch} steps an epoch -> {run_.folder.path}")
    if run_.progress.reason:
        say(f"It has ended ({run_.progress.reason}); its samples and its report are written anew.")
    elif run_.progress.step:
        say(f"Going on at step {run_.progress.step}.")


def describe_run(options: Train, model: LanguageModel, facts: dict[str, Any]) -> dict[str, Any]:
    """What config.json says: enough to do it again."""
    settings = {name: to_json(getattr(options, name)) for name in PARTS if name != "corpus"}
    place = {"engine": model.engine, "kernel": model.kernel, "device": model.device, "dtype": options.runtime.dtype}
    skipping = " --skip-nonfinite" if options.skip_nonfinite else ""
    return {
        "command": command_line(f"--impl {options.impl}{skipping}", options, Train()),
        "impl": options.impl,
        **place,
        "threads": options.runtime.threads,
        "machine": machine(),
        "data_parallel": options.parallel.workers,
        "environment": in_force(),
        "versions": versions(options.impl),
        "corpus": facts | to_json(options.corpus),
        **settings,
        "recipe": options.recipe,
        "sampling": {name: getattr(options, name) for name in ("prompt", "greedy", "length", "sample_epochs")},
        "statistics": options.statistics,
        "tensorboard": options.tensorboard,
        "skip_nonfinite": options.skip_nonfinite,
        "checkpoint_seconds": options.checkpoint_seconds,
    }
