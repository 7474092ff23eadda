"""`compare`: check, train from identical weights on identical batches, sample and time every implementation, each in a
process of its own; one table, one page. Only one computes at a time where time is taken."""

import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from runner import check
from runner.cli import Compare, command_line
from runner.console import console, say, show_table
from runner.environment import in_force, machine
from runner.examination.cases import small_copy
from runner.examination.examinee import Examinee
from runner.experiment import Experiment, prepare, stack_size
from runner.participants import SAMPLE_LENGTH, Field
from runner.registry import chosen
from runner.rundir import new_folder, refuse_existing
from runner.sample import TEMPERATURES
from runner.workers import Worker, WorkerError
from shared.config import ScheduleConfig, to_json
from shared.corpora import split
from shared.errors import ConfigError
from shared.files import strict_json, write_atomically
from shared.schedules import settled, steps_of_run
from shared.statistics import copies

ROUNDS = 7
HELD_OUT_BOUND = 1e-3  # relative spread of the held-out losses of the float32 runs
GROWTH_BOUND = 1e-10  # relative difference of the parameters of the float64 runs
SAME_WORK = 1e-4  # relative spread of the losses of the first five steps, beside every time


NOTHING: dict[str, Any] = {
    **{name: [] for name in ("participants", "check", "training", "growth", "timing", "samples", "failures")},
    "agreement": {"held_out_spread": np.inf, "held_out_bound": HELD_OUT_BOUND, "ok": False},
    "samples_identical": False,
}
"""The result before anything ran, which is also the result where nothing could."""


def run(options: Compare) -> int:
    """The whole comparison; 1 where implementations differ or fail."""
    started = time.perf_counter()
    names = chosen(options.impl)
    refuse_plateau(options.schedule)
    # before any worker starts: a bad corpus is said once
    experiment = prepare(options.corpus, options.training, options.model)
    options = replace(options, schedule=settled(options.schedule, options.training, len(experiment.training)))
    refuse_existing(options.run_dir)
    result: dict[str, Any] = describe(options, experiment)
    with ExitStack() as stack:
        with console.status(f"starting {', '.join(names)}"):
            field = Field(names, options, stack)
        say(f"{', '.join(field.workers)} on {experiment.corpus.name}: {result['settings']['steps']} steps each", "bold")
        compute(field, options, result)
    mark_copies(result, experiment, options.corpus.held_out)
    result["failures"] = field.failures
    finished = {row["impl"] for row in result["growth"]}  # they come first, since differences are from the first
    result["participants"] = sorted(field.participants, key=lambda each: each["impl"] not in finished)
    result["seconds"] = time.perf_counter() - started
    result["ok"] = verdict(result)
    folder = new_folder(options.run_dir, f"compare-{Path(options.corpus.corpus).stem}-{options.model.cell}")
    return publish(result, folder, options)


def refuse_plateau(schedule: ScheduleConfig) -> None:
    """ConfigError for a schedule that follows the held-out loss: runs that differ in a last bit could part there."""
    if schedule.schedule == "plateau":
        raise ConfigError("--schedule plateau follows each run's own held-out loss: compare gives all the same rates.")


def compute(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """Every part in turn; each adds to the result."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for title, part in PARTS.items():
            if not field.workers:
                return
            started, field.part = time.perf_counter(), title
            task = bar.add_task(title, total=None)
            part(field, options, result)
            bar.remove_task(task)
            say(f"{title}: {time.perf_counter() - started:.0f} s", "dim")


def check_cell(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """The examination of `check`, for a small copy of the model that is compared, and its optimizer."""
    case = small_copy(options.model, options.optimizer, options.runtime.engine)
    teams = {name: [worker] for name, worker in field.workers.items()}
    try:
        with Worker("reference", Examinee, "numpy", "cpu") as reference:
            result["check"], _ = check.ordered(check.examine([case], ["float64"], reference, teams))
    except WorkerError as error:
        field.drop("reference", str(error))
    for row in result["check"]:
        if row["quantity"].startswith("failed: ") and row["impl"] in field.workers:
            field.drop(row["impl"], row["quantity"].removeprefix("failed: "))


def train_float32(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """The runs whose curves are shown."""
    steps = result["settings"]["steps"]
    runs: dict[str, dict[str, Any]] = {
        name: {"impl": name, "dtype": "float32", "steps": steps, "losses": [], "held_out": []} for name in field.workers
    }
    for start, stop in portions(steps, 5):
        for name, part in field.train(start, stop).items():
            runs[name]["losses"] += part["losses"]
        for name, score in field.together("held_out").items():
            runs[name]["held_out"].append({"step": stop, "loss": score["loss"]})
            runs[name] |= score
    result["training"] = [run_ for name, run_ in runs.items() if name in field.workers]
    if not result["training"]:
        return
    losses = [run_["loss"] for run_ in result["training"]]
    with np.errstate(invalid="ignore"):
        spread = float(np.ptp(losses) / np.min(losses))  # not max and min, which overlook what is not a number
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
        if name in field.workers
    ]


def train_float64(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """The same run in float64, to show how the difference grows; then the same texts from all."""
    field.together("begin", "float64")
    growth: dict[str, list[dict[str, float]]] = {}
    reference = ""
    for start, stop in portions(result["settings"]["steps"], 5):
        field.train(start, stop)
        found = field.together("parameters")
        if reference not in found:  # failed; what was measured from it stands for nothing now
            reference = next(iter(found), "")
            growth.clear()
        first: dict[str, np.ndarray] = found.get(reference, {})
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
        if name in field.workers
    ]


def sample_float64(field: Field, options: Compare, result: dict[str, Any]) -> None:
    """Texts from the float64 runs; the same in all."""
    result["samples"] = [
        {"impl": name, "dtype": "float64", "temperature": temperature, "prompt": options.prompt, "text": text}
        for temperature in TEMPERATURES
        for name, (text, _) in field.together("sample", temperature).items()
    ]
    result["samples"] = [sample for sample in result["samples"] if sample["impl"] in field.workers]
    texts: dict[float, set[str]] = {}
    for sample in result["samples"]:
        texts.setdefault(sample["temperature"], set()).add(sample["text"])
    result["samples_identical"] = bool(texts) and all(len(each) == 1 for each in texts.values())


def mark_copies(result: dict[str, Any], experiment: Experiment, held_out: float) -> None:
    """Of each sample, the stretches that stand in the training text; texts that are the same are looked up once."""
    texts = list({sample["text"] for sample in result["samples"]})
    found = copies(texts, split(experiment.corpus, held_out)[0], experiment.corpus.poems) if texts else []
    copied = dict(zip(texts, found, strict=True))
    result["samples"] = [sample | {"copied": copied[sample["text"]]} for sample in result["samples"]]


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
    found = [np.abs(values[name] - each).max() / (np.abs(each).max() or 1.0) for name, each in expected.items()]
    return float(np.max(found))  # not max, which overlooks what is not a number


def describe(options: Compare, experiment: Experiment) -> dict[str, Any]:
    """What is compared, on which text, on which machine."""
    parts = ("model", "training", "optimizer", "schedule")
    settings = {name: value for part in parts for name, value in to_json(getattr(options, part)).items()}
    size = stack_size(options.model, experiment, options.training, "cpu")
    count = len(experiment.training)
    extra = {"steps": steps_of_run(options.training, count), "stack": min(size, count)}
    return {
        "command": command_line(f"compare --impl {options.impl}", options, Compare()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"settings": " ".join(f"{name}={value}" for name, value in in_force().items())},
        "settings": settings | extra,
        "corpus": experiment.facts(),
        **NOTHING,
    }


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
    checked = [row for row in result["check"] if row["dtype"] == "float64"]
    errors = {
        name: max((row["max_relative_error"] for row in checked if row["impl"] == name), default=np.nan)
        for name in grown
    }
    failed = {failure["impl"]: failure["what"] for failure in result["failures"]}
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
        if run_["impl"] in grown.keys() - failed.keys()
    ]
    rows += [(name, "failed", *"-----") for name in failed]
    columns = ("", "held-out", "perplexity", "check", "drift", "tokens/s", "sampled/s")
    title = "held-out nats and speed in float32; float64 differences: of every quantity, and of the trained parameters"
    show_table(title, columns, rows, range(1, 7))
    for what in failed.values():
        say(f"failed: {what}", "red")
    if result["training"]:
        spread = result["agreement"]["held_out_spread"]
        say(f"held-out losses lie within {spread:.1e} of each other (at most {HELD_OUT_BOUND:g})")
    for row in result["growth"][1:]:
        steps = ", ".join(f"{point['max_relative_difference']:.0e} at {point['step']}" for point in row["points"])
        say(f"{row['impl']}: parameters in float64 differ from {result['growth'][0]['impl']}'s by {steps}")
    if result["samples"]:
        say(f"texts sampled in float64: {'identical in all' if result['samples_identical'] else 'DIFFERENT'}")
    say("all agree" if result["ok"] else "NOT all agree: see the page", "bold green" if result["ok"] else "bold red")


def pace(row: dict[str, Any] | None) -> str:
    """A speed with its spread, in thousands; no time without the proof that the same work was done."""
    if row is None or not row["same_work"]:
        return "work differs" if row else "-"
    median, low, high = (f"{row[key] / 1000:.3g}" for key in ("tokens_per_second", "low", "high"))
    return f"{median}k {low}..{high}"
