"""`compare`: check, train from identical weights on identical batches, sample and time every implementation, each in a
process of its own; one table, one page. Only one computes at a time where time is taken."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from runner import check
from runner.cli import Check, Compare
from runner.console import console, say, show_table
from runner.environment import available_cores
from runner.experiment import Experiment, evaluate, prepare, stack_size, stacks
from runner.registry import chosen, create_model, versions
from runner.rundir import new_folder, refuse_existing
from runner.sample import write_texts
from runner.workers import Worker, WorkerError
from shared.config import Dtype, SamplingConfig, to_json
from shared.files import strict_json, write_atomically
from shared.parameters import initial_parameters

TEMPERATURES = (0.5, 0.8, 1.0, 1.2, 1.5)
ROUNDS = 7
SAMPLE_LENGTH = 240
HELD_OUT_BOUND = 1e-3  # relative spread of the held-out losses of the float32 runs
GROWTH_BOUND = 1e-10  # relative difference of the parameters of the float64 runs
SAME_WORK = 1e-4  # relative spread of the losses of the first five steps, beside every time


class Participant(check.Examinee):
    """One implementation in its own process."""

    def __init__(self, impl: str, options: Compare) -> None:
        started = time.perf_counter()
        super().__init__(impl, options.runtime.device)
        self._options = options
        self._experiment: Experiment = prepare(options.corpus, options.training)
        prepared = time.perf_counter()
        self.begin("float32")
        self._seconds = {"corpus_seconds": prepared - started, "import_seconds": time.perf_counter() - prepared}
        self._warm_up()

    def begin(self, dtype: Dtype) -> None:
        """A new model from the common initial weights."""
        options, symbols = self._options, len(self._experiment.vocabulary)
        runtime = replace(options.runtime, dtype=dtype)
        self._model = create_model(self._impl, options.model, options.optimizer, symbols, runtime)
        self._model.load_parameters(initial_parameters(options.model, symbols, options.training.seed))
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
            rates = np.full(len(stacked.tokens), self._options.training.learning_rate)
            steps = self._model.train_steps(stacked, self._state, rates)
            self._state = steps.state
            losses += [float(loss) for loss in steps.losses]
            tokens += int(stacked.mask.sum())
        return {"losses": losses, "seconds": time.perf_counter() - started, "tokens": tokens}

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
    """The workers that still run; one that fails is named and left out, the others go on."""

    def __init__(self, names: list[str], options: Compare, stack: ExitStack) -> None:
        self.failures: list[dict[str, str]] = []
        self.workers: dict[str, Worker] = {}
        self.participants: list[dict[str, Any]] = []
        for name in names:  # one after the other, since the start of each is timed
            self.workers[name] = stack.enter_context(Worker(name, Participant, name, options))
            try:
                self.participants.append(self.workers[name].call("introduce"))
            except WorkerError as error:
                self.drop(name, str(error))

    def each(self, method: str, *arguments: Any) -> dict[str, Any]:
        """One after the other, so that nothing else runs beside what is timed."""
        return self.gather(lambda worker: worker.call(method, *arguments))

    def together(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Side by side."""
        self.gather(lambda worker: worker.start(method, *arguments))
        return self.gather(lambda worker: worker.result())

    def gather(self, call: Callable[[Worker], Any]) -> dict[str, Any]:
        """A call for each worker, and what it returned."""
        answers = {}
        for name, worker in list(self.workers.items()):
            try:
                answers[name] = call(worker)
            except WorkerError as error:
                self.drop(name, str(error))
        return answers

    def drop(self, name: str, what: str) -> None:
        self.failures.append({"impl": name, "what": what})
        self.workers.pop(name).close()
        say(f"{what}; going on without it", "red")


def run(options: Compare) -> int:
    """The whole comparison; 1 where implementations differ or fail."""
    started = time.perf_counter()
    names = chosen(options.impl)
    experiment = prepare(options.corpus, options.training)  # before any worker starts: a bad corpus is said once
    refuse_existing(options.run_dir)
    result: dict[str, Any] = describe(options, experiment)
    with ExitStack() as stack:
        with console.status(f"starting {', '.join(names)}"):
            field = Field(names, options, stack)
        result["participants"] = field.participants
        say(f"{', '.join(field.workers)} on {experiment.corpus.name}: {result['settings']['steps']} steps each", "bold")
        compute(field, options, result)
    result["failures"] = field.failures
    result["seconds"] = time.perf_counter() - started
    result["ok"] = verdict(result)
    folder = new_folder(options.run_dir, f"compare-{Path(options.corpus.corpus).stem}-{options.model.cell}")
    return publish(result, folder, options)


def compute(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """Every part in turn; each adds to the result."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for title, part in PARTS.items():
            started = time.perf_counter()
            task = bar.add_task(title, total=None)
            part(field, options, result)
            bar.remove_task(task)
            say(f"{title}: {time.perf_counter() - started:.0f} s", "dim")


def check_cell(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """The examination of `check`, for the cell that is compared."""
    asked = Check(impl=",".join(field.workers), cell=options.model.cell, dtype="float64")
    with Worker("reference", check.Examinee, "numpy", "cpu") as reference:
        opened = {"reference": reference, **field.workers}
        result["check"] = check.examine(lambda name, *_: nullcontext(opened[name]), asked)
    for row in result["check"]:
        if row["quantity"].startswith("failed") and row["impl"] in field.workers:
            field.drop(row["impl"], row["quantity"])


def train_float32(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """The runs whose curves are shown."""
    steps = result["settings"]["steps"]
    runs: dict[str, dict[str, Any]] = {
        name: {"impl": name, "dtype": "float32", "steps": steps, "losses": [], "held_out": []} for name in field.workers
    }
    for start, stop in portions(steps, 5):
        for name, part in field.together("train", start, stop).items():
            runs[name]["losses"] += part["losses"]
        for name, score in field.together("held_out").items():
            runs[name]["held_out"].append({"step": stop, "loss": score["loss"]})
            runs[name] |= score
    result["training"] = [run_ for name, run_ in runs.items() if name in field.workers]
    losses = [run_["loss"] for run_ in result["training"]]
    spread = (max(losses) - min(losses)) / min(losses)
    result["agreement"] = {"held_out_spread": spread, "held_out_bound": HELD_OUT_BOUND, "ok": spread <= HELD_OUT_BOUND}


def time_rounds(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """Rounds interleaved: one stack of steps and one text each, in turn, nothing else running."""
    first = {run_["impl"]: run_["losses"][:5] for run_ in result["training"]}
    expected = next(iter(first.values()))
    same = {name: bool(np.allclose(losses, expected, rtol=SAME_WORK, atol=0)) for name, losses in first.items()}
    speeds: dict[tuple[str, str], list[float]] = {}
    field.each("sample", 1.0)  # compiles
    for _ in range(ROUNDS):
        for name, part in field.each("train", 0, result["settings"]["stack"]).items():
            speeds.setdefault((name, "train"), []).append(part["tokens"] / part["seconds"])
        for name, (_, seconds) in field.each("sample", 1.0).items():
            speeds.setdefault((name, "sample"), []).append(SAMPLE_LENGTH / seconds)
    result["timing"] = [
        {
            "impl": name,
            "phase": phase,
            "tokens_per_second": float(np.median(values)),
            "low": min(values),
            "high": max(values),
            "rounds": len(values),
            "same_work": same[name],
        }
        for (name, phase), values in speeds.items()
    ]


def train_float64(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """The same run in float64, to show how the difference grows; then the same texts from all."""
    field.together("begin", "float64")
    growth: dict[str, list[dict[str, float]]] = {}
    for start, stop in portions(result["settings"]["steps"], 5):
        field.together("train", start, stop)
        found = field.together("parameters")
        first = next(iter(found.values()))
        for name, values in found.items():
            growth.setdefault(name, []).append({"step": stop, "max_relative_difference": distance(values, first)})
    result["growth"] = [
        {
            "impl": name,
            "dtype": "float64",
            "points": points,
            "bound": GROWTH_BOUND,
            "ok": points[-1]["max_relative_difference"] <= GROWTH_BOUND,
        }
        for name, points in growth.items()
    ]


def sample_float64(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """Texts from the float64 runs; the same in all."""
    result["samples"] = [
        {"impl": name, "dtype": "float64", "temperature": temperature, "prompt": options.prompt, "text": text}
        for temperature in TEMPERATURES
        for name, (text, _) in field.together("sample", temperature).items()
    ]
    texts: dict[float, set[str]] = {}
    for sample in result["samples"]:
        texts.setdefault(sample["temperature"], set()).add(sample["text"])
    result["samples_identical"] = all(len(each) == 1 for each in texts.values())


PARTS = {
    "check every quantity against NumPy in float64": check_cell,
    "train in float32": train_float32,
    "time, rounds interleaved": time_rounds,
    "train in float64": train_float64,
    "sample": sample_float64,
}


def portions(steps: int, count: int) -> list[tuple[int, int]]:
    """0..steps in `count` parts."""
    edges = [steps * part // count for part in range(count + 1)]
    return [(start, stop) for start, stop in pairwise(edges) if stop > start]


def distance(values: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of any parameter, relative to its tensor's largest magnitude."""
    return max(float(np.abs(values[name] - each).max() / np.abs(each).max()) for name, each in expected.items())


def describe(options: Compare, experiment: Experiment) -> dict[str, Any]:
    """What is compared, on which text, on which machine."""
    parts = ("model", "training", "optimizer")
    settings = {name: value for part in parts for name, value in to_json(getattr(options, part)).items()}
    every = options.training.epochs * len(experiment.training)
    size = stack_size(options.model, experiment, options.training, "cpu")
    extra = {"steps": min(every, options.training.max_steps or every), "stack": min(size, len(experiment.training))}
    return {
        "command": command_line(options),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
        },
        "settings": settings | extra,
        "corpus": experiment.facts(),
    }


def command_line(options: Compare) -> str:
    """The command that does it again: what differs from the defaults."""
    words = ["python -m runner compare"] + ([f"--impl {options.impl}"] if options.impl != "all" else [])
    for name in ("model", "training", "optimizer", "corpus", "runtime"):
        given, default = to_json(getattr(options, name)), to_json(getattr(Compare(), name))
        words += [f"--{key.replace('_', '-')} {value}" for key, value in given.items() if value != default[key]]
    return " ".join(words)


def verdict(result: dict[str, Any]) -> bool:
    """Whether everything agrees and nobody failed."""
    rows = [*result["check"], *result["growth"], result["agreement"]]
    return all(row["ok"] for row in rows) and result["samples_identical"] and not result["failures"]


def publish(result: dict[str, Any], folder: Path, options: Compare) -> int:
    """The table, the page, the JSON; the exit status."""
    from runner.report import write_comparison

    text = strict_json(result)
    for path in filter(None, (folder / "comparison.json", options.json)):
        write_atomically(path, text)
    page = write_comparison(result, folder)
    show(result)
    unigram = result["corpus"]["unigram_perplexity"]
    say(f"a unigram model has perplexity {unigram:.1f}; {result['seconds']:.0f} s in all; page: {page}")
    say("Next: python -m runner --impl torch (train longer), python -m runner check (every cell)")
    return 0 if result["ok"] else 1


def show(result: dict[str, Any]) -> None:
    """One line for each implementation, and what they agree on."""
    speed = {(row["impl"], row["phase"]): row for row in result["timing"]}
    grown = {row["impl"]: row["points"][-1]["max_relative_difference"] for row in result["growth"]}
    errors = {
        name: max(
            row["max_relative_error"] for row in result["check"] if (row["impl"], row["dtype"]) == (name, "float64")
        )
        for name in grown
    }
    rows = [
        (
            run_["impl"],
            f"{run_['loss']:.5f}",
            f"{run_['perplexity']:.3f}",
            f"{errors[run_['impl']]:.0e}",
            f"{grown[run_['impl']]:.0e}",
            *(pace(speed.get((run_["impl"], phase))) for phase in ("train", "sample")),
        )
        for run_ in result["training"]
        if run_["impl"] in grown
    ]
    columns = ("", "held-out", "perplexity", "check", "drift", "tokens/s", "sampled/s")
    title = "held-out nats and speed in float32; float64 differences: of every quantity, and of the trained parameters"
    show_table(title, columns, rows, range(1, 7))
    agreement = result["agreement"]
    say(f"held-out losses lie within {agreement['held_out_spread']:.1e} of each other (at most {HELD_OUT_BOUND:g})")
    say(f"texts sampled in float64: {'identical in all' if result['samples_identical'] else 'DIFFERENT'}")
    say("all agree" if result["ok"] else "NOT all agree: see the page", "bold green" if result["ok"] else "bold red")


def pace(row: dict[str, Any] | None) -> str:
    """A speed with its spread, in thousands; no time without the proof that the same work was done."""
    if row is None or not row["same_work"]:
        return "work differs" if row else "-"
    median, low, high = (f"{row[key] / 1000:.3g}" for key in ("tokens_per_second", "low", "high"))
    return f"{median}k {low}..{high}"
