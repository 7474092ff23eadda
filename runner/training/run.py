"""A run on its way: where it stands, and how it goes from step to step, from epoch to epoch, to its checkpoints."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import numpy as np

from runner.cli import Train
from runner.experiment import Experiment, evaluate, stack_size, stacks
from runner.interruption import Interruption
from runner.progress import training_progress
from runner.reporting.tensorboard import EventFiles
from runner.rundir import RunDirectory
from runner.sample import write_texts
from shared.checkpoint import Checkpoint, require_same_run
from shared.config import SamplingConfig, to_json
from shared.contract import LanguageModel, Team, TrainingSteps
from shared.errors import CheckpointError, NotFiniteError
from shared.evaluation import Score
from shared.schedules import learning_rates, lowers_rate, steps_of_run

PARTS = ("model", "optimizer", "schedule", "training", "corpus")
"""The options that a checkpoint and config.json keep."""
SHOWN, WARM = 200, 0.8
"""Tokens of the samples on the way, and their temperature."""
SKIPPED_IN_A_ROW = 100
"""Steps that --skip-nonfinite leaves out one after the other before it gives up."""


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    index: int = 0  # batches of this epoch already trained on
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    waited: int = 0  # epochs since the best
    reductions: int = 0  # how often plateau has lowered the learning rate
    lines: int = 0  # lines of metrics.jsonl
    seconds: float = 0.0  # spent training, evaluation apart
    skips: bool = False  # whether steps that are not finite are left out; otherwise the first ends the run
    skipped: int = 0  # how many were
    in_a_row: int = 0  # how many of them since the last that was not
    reason: str = ""  # why it ended; empty while it runs

    @classmethod
    def from_json(cls, values: dict[str, Any], steps_per_epoch: int, updates: int) -> "Progress":
        """What a checkpoint holds; CheckpointError where that is no progress, or not of such epochs and updates."""
        kinds = {name: type(value) for name, value in asdict(cls()).items()}
        given = values | {"best_loss": math.inf} if values.get("best_loss", 0) is None else values
        known = given.keys() == kinds.keys() and all(type(given[name]) is kind for name, kind in kinds.items())
        if not (known and all(value >= 0 for name, value in given.items() if kinds[name] is int)):
            raise CheckpointError(f"its progress must hold {', '.join(kinds)}, and holds {values!s:.300}.")
        progress = cls(**given)
        step = progress.epoch * steps_per_epoch + progress.index
        if progress.step != step or max(progress.best_step, updates) > step:
            raise CheckpointError(
                f"its progress contradicts itself: step {progress.step} after {updates} updates, the best at "
                f"{progress.best_step}, batch {progress.index} of epoch {progress.epoch + 1}, and {steps_per_epoch} "
                "batches an epoch."
            )
        return progress


class Run:
    """A model, its corpus and its directory, on the way."""

    def __init__(
        self,
        options: Train,
        experiment: Experiment,
        model: LanguageModel,
        folder: RunDirectory,
        team: Team | None = None,
    ) -> None:
        self.options, self.experiment, self.model, self.folder, self.team = options, experiment, model, folder, team
        self.progress = Progress(skips=options.skip_nonfinite)
        self.state = model.initial_state(options.training.batch_size)
        self.events: EventFiles | None = None
        self.losses: list[float] = []  # of the epoch, for the line at its end
        self.size = stack_size(options.model, experiment, options.training, model.device)
        self.saved = 0.0  # training seconds at the last checkpoint

    @property
    def steps_per_epoch(self) -> int:
        return len(self.experiment.training)

    @property
    def last_step(self) -> int:
        """The step at which the run ends unless it stops early."""
        return steps_of_run(self.options.training, self.steps_per_epoch)

    def train(self, stop: Interruption) -> None:
        """Epoch after epoch until there is a reason to end."""
        with training_progress(self.last_step, self.progress.step) as bar:
            while not self.progress.reason:
                for steps, rates, tokens_per_second in self.epoch(stop):
                    bar.show(self.progress, self.options.training, steps, rates, tokens_per_second)
                if self.as_the_first(stop.requested):
                    return
                bar.say(self.end_epoch())
                if self.sample_is_due():
                    bar.say(self.sample(SamplingConfig(prompt=self.options.prompt, length=SHOWN), WARM))

    def epoch(self, stop: Interruption) -> Iterator[tuple[TrainingSteps, np.ndarray, float]]:
        """The rest of the epoch, a stack a call; its steps, their learning rates, tokens per second."""
        progress, first = self.progress, self.progress.index
        end = min(self.steps_per_epoch, first + self.last_step - progress.step)
        for stacked in stacks(self.experiment.training, progress.epoch, first, end, self.size):
            started = time.perf_counter()
            rates = self.learning_rates(len(stacked.tokens))
            steps = self.model.train_steps(stacked, self.state, rates)
            seconds = time.perf_counter() - started
            self.advance(steps, rates, seconds, int(stacked.mask.sum()) / seconds)
            if self.save_is_due():
                self.save()
            yield steps, rates, int(stacked.mask.sum()) / seconds
            if self.as_the_first(stop.requested):
                return

    def as_the_first(self, value: Any) -> Any:
        """What the first of several processes has here (of JSON's kinds): only it decides whether to go on."""
        return json.loads(self.team.first(json.dumps(value).encode())) if self.team else value

    def sample_is_due(self) -> bool:
        """Whether --sample-epochs have gone by; at the end there are samples anyway."""
        every = self.options.sample_epochs
        return bool(every and not self.progress.reason and self.progress.epoch % every == 0)

    def sample(self, base: SamplingConfig, temperature: float) -> str:
        """One sample; everything but the temperature is the same."""
        sampling = replace(base, temperature=temperature)
        return write_texts(self.model, self.experiment.vocabulary, [base.prompt], sampling)[0]

    def save_is_due(self) -> bool:
        """Whether --checkpoint-seconds have gone by; at an epoch's end the run is saved anyway, once evaluated."""
        progress, seconds = self.progress, self.options.checkpoint_seconds
        at_an_end = progress.index >= self.steps_per_epoch or progress.step >= self.last_step
        return not at_an_end and 0 < seconds <= progress.seconds - self.saved

    def learning_rates(self, count: int) -> np.ndarray:
        """Those of the next `count` steps, which belong to one epoch."""
        now, base = self.progress.step, self.options.training.learning_rate
        steps = range(now, now + count)
        return learning_rates(self.options.schedule, base, steps, self.steps_per_epoch, self.progress.reductions)

    def advance(self, steps: TrainingSteps, rates: np.ndarray, seconds: float, tokens_per_second: float) -> None:
        """Take over the state and log each step; one that is not finite is counted, or ends the run."""
        progress = self.progress
        lines: list[dict[str, Any]] = []
        for k, finite in enumerate(steps.finite):
            progress.step += 1
            progress.in_a_row = 0 if finite else progress.in_a_row + 1
            if progress.in_a_row >= (SKIPPED_IN_A_ROW if progress.skips else 1):
                self.log(lines)
                raise self.not_finite(float(steps.losses[k]), steps.parameter_norms[k])
            now = progress.seconds + seconds * (k + 1) / len(rates)
            lines.append(self.line(steps, k, float(rates[k]), now, tokens_per_second))
        self.state = steps.state
        self.losses += steps.losses[steps.finite].tolist()
        progress.skipped += int((~steps.finite).sum())
        progress.index += len(steps.finite)
        progress.seconds += seconds
        self.log(lines)

    def line(
        self, steps: TrainingSteps, k: int, rate: float, seconds: float, tokens_per_second: float
    ) -> dict[str, Any]:
        """Of metrics.jsonl: the k-th of these steps, which is where the run stands, after `seconds` of training. A step
        that was left out is of a split of its own, so that whoever reads the losses does not meet it."""
        loss, split = float(steps.losses[k]), "train" if steps.finite[k] else "skipped"
        values = self.metric(split, loss, self.experiment.bits_per_character(loss), seconds)
        norm = finite_or_none(float(steps.gradient_norms[k]))
        return values | {
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": round(tokens_per_second, 1),
        }

    def metric(self, split: str, loss: float, bits: float, seconds: float) -> dict[str, Any]:
        """What all lines of metrics.jsonl have; `seconds` of training, evaluation apart."""
        perplexity, progress = math.exp(min(loss, 700.0)), self.progress
        values = {"loss": loss, "perplexity": perplexity, "bits_per_character": bits}
        known = {name: value if math.isfinite(loss) else None for name, value in values.items()}
        place = {"step": progress.step, "epoch": progress.epoch + 1, "split": split}
        return place | known | {"seconds": round(seconds, 3)}

    def not_finite(self, loss: float, norms: np.ndarray) -> NotFiniteError:
        """Why the step where the run stands ends it; `norms` [P] of its gradients. Where a parameter is not finite
        either, an earlier update made it so: a step that is not finite changes none."""
        parameters, skips = self.model.dump_parameters(), self.progress.skips
        gradient = next((name for name, norm in zip(parameters, norms, strict=True) if not math.isfinite(norm)), "")
        parameter = next((name for name, value in parameters.items() if not np.isfinite(value).all()), "")
        which = f", the {SKIPPED_IN_A_ROW}th in a row that had to be left out" if skips else ""
        first = f"and the first parameter whose gradient is not a finite number is {gradient}"
        alone = "and the norm of all gradients" if math.isfinite(loss) else "which"
        return self.broken_down(
            f"Step {self.progress.step}{which}: the loss is {loss:g}, "
            + (f"{first}." if gradient else f"{alone} is not a finite number.")
            + (f" An update before it had made {parameter} itself infinite." if parameter else "")
            + ("" if skips else f" With --resume {self.folder.path} --skip-nonfinite, such steps are left out.")
        )

    def broken_down(self, what: str) -> NotFiniteError:
        """What happened, what may help, and what is left."""
        learning_rate, clip_norm = self.options.training.learning_rate, self.options.optimizer.clip_norm
        clipping = f"{clip_norm:g}" if clip_norm else "0, which is off; 1 is usual"
        return NotFiniteError(
            f"{what} Lower --learning-rate ({learning_rate:g}) or --clip-norm ({clipping}). "
            f"The last checkpoint, {self.folder.last}, is from before."
        )

    def end_epoch(self) -> str:
        """Evaluate, keep the best, decide whether to go on, save; the line to show."""
        progress, training = self.progress, self.options.training
        score = Score(*self.as_the_first(astuple(evaluate(self.model, self.experiment, self.size))))
        if not math.isfinite(score.loss):
            raise self.broken_down(
                f"After step {progress.step} the held-out loss is {score.loss:g}: the parameters have grown too large "
                "to compute with."
            )
        self.log([self.metric("held-out", score.loss, score.bits_per_character, progress.seconds)])
        better = score.loss < progress.best_loss
        progress.waited = 0 if better else progress.waited + 1
        progress.reductions += lowers_rate(self.options.schedule, progress.waited)
        if better:
            progress.best_loss, progress.best_step = score.loss, progress.step
        if progress.index >= self.steps_per_epoch:
            progress.epoch, progress.index = progress.epoch + 1, 0
        progress.reason = self.reason_to_end(training.patience)
        self.save(best=better)
        mark = "best so far" if better else f"no better for {progress.waited}"
        mark += f"; {progress.skipped} steps skipped" if progress.skipped else ""
        epoch = progress.step / self.steps_per_epoch
        trained = number(float(np.mean(self.losses)), 3) if self.losses else "-"  # resumed at the very end of an epoch
        self.losses = []
        return f"epoch {epoch:.4g}  step {progress.step}  training {trained}, held-out {describe(score)}  ({mark})"

    def reason_to_end(self, patience: int) -> str:
        """Why the run is over, or nothing."""
        if self.progress.step >= self.last_step:
            return "finished"
        if patience and self.progress.waited >= patience:
            return f"no better held-out loss for {patience} epochs"
        return ""

    def log(self, lines: list[dict[str, Any]]) -> None:
        self.folder.log(lines)
        self.progress.lines += len(lines)
        if self.events:
            self.events.log(line for line in lines if line["split"] != "skipped")

    def save(self, best: bool = False) -> None:
        """Write the checkpoint(s): everything that going on needs."""
        slots, step = self.model.dump_optimizer()
        config: dict[str, Any] = {name: to_json(getattr(self.options, name)) for name in PARTS}
        checkpoint = Checkpoint(
            parameters=self.model.dump_parameters(),
            slots=slots,
            step=step,
            state=self.model.dump_state(self.state),
            config=config | {"corpus_sha256": self.experiment.corpus.sha256},
            vocabulary=self.experiment.vocabulary,
            progress=asdict(self.progress) | {"best_loss": finite_or_none(self.progress.best_loss)},
        )
        tensors = checkpoint.parameters | checkpoint.slots | checkpoint.state
        if broken := next((name for name, value in tensors.items() if not np.isfinite(value).all()), ""):
            raise self.broken_down(
                f"After step {self.progress.step}, {broken} is not finite any more: it is not saved."
            )
        if self.events:
            self.events.flush()
        self.folder.save(checkpoint, best)
        self.saved = self.progress.seconds

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint stood; CheckpointError where it is not of this run."""
        try:
            require_same_run(checkpoint, self.options, self.experiment.vocabulary)
            progress = Progress.from_json(checkpoint.progress, self.steps_per_epoch, checkpoint.step)
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder.last}: {error}") from None
        self.model.load_parameters(checkpoint.parameters)
        self.model.load_optimizer(checkpoint.slots, checkpoint.step)
        self.state = self.model.load_state(checkpoint.state)
        self.progress = progress
        progress.skips |= self.options.skip_nonfinite
        self.saved = progress.seconds
        evaluated = progress.reason or not progress.index  # here; else the end of the epoch is yet to come
        progress.reason = self.reason_to_end(self.options.training.patience) if evaluated else ""
        self.progress.lines = self.folder.cut_metrics(self.progress.lines)


def describe(score: Score) -> str:
    """A score in one phrase."""
    loss, perplexity, bits = number(score.loss, 3), number(score.perplexity, 2), number(score.bits_per_character, 3)
    return f"{loss} nats, perplexity {perplexity}, {bits} bits/character"


def number(value: float, decimals: int) -> str:
    """As it is read; one that has grown beyond reading, short."""
    return f"{value:.{decimals}f}" if value < 1e6 else f"{value:.3g}"


def finite_or_none(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
