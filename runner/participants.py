"""The implementations that `compare` sets side by side: each with the corpus and a model in its own process."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from runner import workers
from runner.cli import Compare
from runner.console import say
from runner.examination.examinee import Examinee
from runner.experiment import Experiment, evaluate, prepare, stack_size, stacks
from runner.registry import create_model, versions
from runner.sample import write_texts
from runner.workers import FAILURES, Worker
from shared.config import Dtype, SamplingConfig
from shared.initializers import initial_parameters
from shared.schedules import learning_rates

SAMPLE_LENGTH = 240
SLOWEST_STEP = 10.0
"""Seconds that a step of training may take before its worker counts as hung."""


class Participant(Examinee):
    """One implementation in its own process."""

    def __init__(self, impl: str, options: Compare) -> None:
        started = time.perf_counter()
        super().__init__(impl, options.runtime.device)
        self._options = options
        self._experiment: Experiment = prepare(options.corpus, options.training, options.model)
        prepared = time.perf_counter()
        self.begin("float32")
        self._seconds = {"corpus_seconds": prepared - started, "import_seconds": time.perf_counter() - prepared}
        self._warm_up()

    def begin(self, dtype: Dtype) -> None:
        """A new model from the common initial weights."""
        options, symbols, seed = self._options, len(self._experiment.vocabulary), self._options.training.seed
        runtime = replace(options.runtime, dtype=dtype)
        self._model = create_model(self._impl, options.model, options.optimizer, symbols, runtime, seed)
        self._model.load_parameters(initial_parameters(options.model, symbols, seed))
        self._state = self._model.initial_state(options.training.batch_size)
        self._size = stack_size(options.model, self._experiment, options.training, self._model.device)
        self._place = {"engine": self._model.engine, "kernel": self._model.kernel, "device": self._model.device}

    def _warm_up(self) -> None:
        """The first call, which compiles; then everything anew."""
        started = time.perf_counter()
        self.train(0, min(self._size, len(self._experiment.training)))
        self._seconds["first_call_seconds"] = time.perf_counter() - started
        self.begin("float32")

    def introduce(self) -> dict[str, Any]:
        """Who this is, and how long it took to be ready."""
        return {"impl": self._impl, **self._place, "versions": versions(self._impl), **self._seconds}

    def train(self, start: int, stop: int) -> dict[str, Any]:
        """Steps start..stop of the run -> losses, seconds; the rest of a stack waits for the next call."""
        losses: list[float] = []
        started, tokens = time.perf_counter(), 0
        for stacked in self._stacks(start, stop):
            rates = self._learning_rates(start + len(losses), len(stacked.tokens))
            steps = self._model.train_steps(stacked, self._state, rates)
            self._state = steps.state
            losses += [float(loss) for loss in steps.losses]
            tokens += int(stacked.mask.sum())
        return {"losses": losses, "seconds": time.perf_counter() - started, "tokens": tokens}

    def _learning_rates(self, start: int, count: int) -> np.ndarray:
        """Those of `count` steps of the run."""
        base, steps = self._options.training.learning_rate, range(start, start + count)
        return learning_rates(self._options.schedule, base, steps, len(self._experiment.training))

    def held_out(self) -> dict[str, float]:
        score = evaluate(self._model, self._experiment, self._size)
        names = ("loss", "perplexity", "bits_per_character")
        return {name: getattr(score, name) for name in names}

    def parameters(self) -> dict[str, np.ndarray]:
        return self._model.dump_parameters()

    def sample(self, temperature: float) -> tuple[str, float]:
        """A text, and the seconds that it took."""
        sampling = SamplingConfig(self._options.prompt, temperature, length=SAMPLE_LENGTH)
        started = time.perf_counter()
        text = write_texts(self._model, self._experiment.vocabulary, [self._options.prompt], sampling)[0]
        return text, time.perf_counter() - started

    def _stacks(self, start: int, stop: int) -> Iterator[Any]:
        every = len(self._experiment.training)
        while start < stop:
            epoch, index = divmod(start, every)
            end = min(every, index + stop - start)
            yield from stacks(self._experiment.training, epoch, index, end, self._size)
            start += end - index


class Field:
    """The workers that still run; one that fails is named and left out, the others go on.

    part: what is being done, for the word about a failure
    """

    part = "start"

    def __init__(self, names: list[str], options: Compare, stack: ExitStack) -> None:
        self.failures: list[dict[str, str]] = []
        self.workers: dict[str, Worker] = {}
        self.participants: list[dict[str, Any]] = []
        for name in names:  # one after the other, since the start of each is timed
            try:
                self.workers[name] = stack.enter_context(Worker(name, Participant, name, options))
                self.participants.append(self.workers[name].call("introduce"))
            except FAILURES as error:
                self.drop(name, str(error))

    def each(self, method: str, *arguments: Any) -> dict[str, Any]:
        """One after the other, so that nothing else runs beside what is timed."""
        return self.gather(lambda worker: worker.call(method, *arguments))

    def together(self, method: str, *arguments: Any, timeout: float | None = None) -> dict[str, Any]:
        """Side by side; within so many seconds."""
        self.gather(lambda worker: worker.start(method, *arguments))
        return self.gather(lambda worker: worker.result(timeout))

    def train(self, start: int, stop: int) -> dict[str, Any]:
        """Steps of the run, side by side; many may take long."""
        return self.together("train", start, stop, timeout=workers.TIMEOUT + SLOWEST_STEP * (stop - start))

    def gather(self, call: Callable[[Worker], Any]) -> dict[str, Any]:
        """A call for each worker, and what it returned."""
        answers = {}
        for name, worker in list(self.workers.items()):
            try:
                answers[name] = call(worker)
            except FAILURES as error:
                self.drop(name, str(error))
        return answers

    def drop(self, name: str, what: str) -> None:
        """Go on without a worker, if it ever began."""
        told = f"{what} ({self.part})"
        self.failures.append({"impl": name, "what": told})
        if worker := self.workers.pop(name, None):
            worker.close()
        say(f"{told}; going on without it", "red")
