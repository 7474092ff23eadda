"""`report`: the HTML pages of a run, a comparison and a study, each with its figures as SVG and PNG beside it."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import TemplateError

from runner.cli import Report
from runner.console import say
from runner.findings import Result, Rows, agreement, headline, problems, relative, side_by_side
from runner.measurement import table
from runner.pages import draw, render
from runner.pictures import Series, curves, growth, heat_map, timing_bars, variants
from shared.errors import UserError
from shared.files import write_atomically

SETTINGS = ("corpus", "model", "optimizer", "schedule", "training")
LISTS = ("participants", "check", "training", "growth", "timing", "samples", "failures")
UNBOUNDED = ("max_relative_error", "max_relative_difference", "held_out_spread")
"""Numbers of comparison.json that are null where they are infinite."""


def run(options: Report) -> int:
    """Write the page; UserError where the folder holds nothing that one is made of."""
    try:
        page = write_report(options.path)
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        raise UserError(
            f"{options.path} holds files that are not as `train`, `compare` or a study wrote them ({error})."
        ) from None
    say(f"Report: {page}", "bold")
    return 0


def write_report(path: Path) -> Path:
    """The page of whatever the folder holds."""
    if (path / "comparison.json").is_file():
        return write_comparison(read_comparison(path / "comparison.json"), path)
    if (path / "config.json").is_file():
        return write_run_report(path)
    if runs_of(path):
        return write_study_report(path)
    raise UserError(
        f"{path} is no folder of a run (config.json), of a comparison (comparison.json), or of a study (runs in its "
        "folders). Give one that `train`, `compare` or a study has written."
    )


def write_run_report(run_dir: Path) -> Path:
    """report.html, curves.svg and .png of a run directory, finished or not. UserError if it is none."""
    config, metrics, samples = read_config(run_dir), read_metrics(run_dir), read_samples(run_dir)
    corpus, result = config.get("corpus", {}), config.get("result", {})
    title = f"{config['impl']} on {corpus.get('name', 'a text')}"
    run_ = series_of(metrics)
    figure = draw(run_dir, "curves", curves, {config["impl"]: run_}, title, unigram_loss(corpus), clip_norm(config))
    held_out = [line for line in metrics if line["split"] == "held-out"]
    values = {
        "config": config,
        "title": title,
        "figure": figure if metrics else None,
        "rates": sorted(set(run_.rates)),
        "speed": speed(metrics),
        "held_out": held_out,
        "best": best_of(held_out),
        "result": result,
        "samples": marked_samples(samples, result),
        "poems": is_poems(corpus),
        "statistics": table(result["statistics"]) if "statistics" in result else None,
        "settings": {name: config[name] for name in SETTINGS if name in config},
    }
    write_atomically(run_dir / "report.html", render("run", values), make_folder=False)
    return run_dir / "report.html"


def write_comparison(result: Result, folder: Path) -> Path:
    """comparison.html and its pictures from what `compare` found; returns the page."""
    result = {name: [] for name in LISTS} | dict(result)
    reference = result["participants"][0]["impl"] if result["participants"] else None
    grown = [row for row in result["growth"] if row["impl"] != reference]
    timed = [row for row in result["timing"] if row["same_work"]]
    wrong = problems(result)
    tables = agreement(result["check"])
    values = {
        "result": result,
        "headline": headline(result, wrong),
        "problems": wrong,
        "pictures": comparison_pictures(folder, result, grown, timed, tables),
        "grown": grown,
        "agreement": tables,
        "timing": relative(timed),
        "untimed": [row for row in result["timing"] if not row["same_work"]],
        "samples": side_by_side(result["samples"]),
        "poems": is_poems(result.get("corpus", {})),
    }
    write_atomically(folder / "comparison.html", render("comparison", values), make_folder=False)
    return folder / "comparison.html"


def comparison_pictures(
    folder: Path, result: Result, growing: Rows, timed: Rows, tables: Mapping[str, Any]
) -> dict[str, str]:
    """The figures there is something to draw for, by name."""
    pictures: dict[str, str] = {}
    corpus = result.get("corpus", {})
    if runs := {row["impl"]: series_of_training(row) for row in result["training"]}:
        name = corpus.get("name", "")
        pictures["comparison"] = draw(folder, "comparison", curves, runs, name, unigram_loss(corpus))
    lines = {row["impl"]: points(row) for row in growing}
    if any(value for _, values in lines.values() for value in values):
        pictures["growth"] = draw(folder, "growth", growth, lines, max(row["bound"] for row in growing))
    if timed:
        pictures["timing"] = draw(folder, "timing", timing_bars, timed)
    if tables:
        pictures["agreement"] = draw(folder, "agreement", heat_map, tables)
    return pictures


def write_study_report(folder: Path) -> Path:
    """study.html, study.svg and .png of a folder whose folders are runs. study.json, if there is one, says what was
    studied: title, note, command, and a table of columns and rows; all of them may be absent."""
    told = read_json(folder / "study.json", "a study") if (folder / "study.json").exists() else {}
    runs = [summary(path) for path in runs_of(folder)]
    title = str(told.get("title") or told.get("name") or folder.resolve().name)
    values = {
        "title": title,
        "told": told,
        "table": told.get("table"),
        "runs": runs,
        "best": min((each for each in runs if each["best"]), key=lambda each: each["best"]["loss"], default=None),
        "figure": draw(folder, "study", variants, {each["name"]: each["series"] for each in runs}, title),
    }
    write_atomically(folder / "study.html", render("study", values), make_folder=False)
    return folder / "study.html"


def summary(run_dir: Path) -> dict[str, Any]:
    """What the page of a study says of a run."""
    config, metrics = read_config(run_dir), read_metrics(run_dir)
    result = config.get("result", {})
    return {
        "name": run_dir.name,
        "config": config,
        "result": result,
        "series": series_of(metrics),
        "best": best_of([line for line in metrics if line["split"] == "held-out"]),
        "speed": speed(metrics),
        "samples": marked_samples(read_samples(run_dir), result),
        "poems": is_poems(config.get("corpus", {})),
        "statistics": table(result["statistics"]) if "statistics" in result else None,
    }


def runs_of(folder: Path) -> list[Path]:
    """The run directories within a folder, by name, numbers in their own order."""
    return sorted((each.parent for each in folder.glob("*/config.json")), key=lambda each: natural(each.name))


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort by, in which "lr 10" comes after "lr 9"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def series_of(metrics: Rows) -> Series:
    """What metrics.jsonl says of losses, learning rates and gradient norms."""
    train = [line for line in metrics if line["split"] == "train"]
    held_out = [(line["step"], line["loss"]) for line in metrics if line["split"] == "held-out"]
    steps, losses, rates = ([line[name] for line in train] for name in ("step", "loss", "learning_rate"))
    return Series(steps, losses, held_out, rates, [line.get("gradient_norm") for line in train])


def series_of_training(row: Mapping[str, Any]) -> Series:
    """What `compare` says of the losses of one implementation."""
    held_out = [(each["step"], each["loss"]) for each in row["held_out"]]
    return Series(range(1, 1 + len(row["losses"])), row["losses"], held_out)


def points(row: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Steps and differences."""
    found = row["points"]
    return [each["step"] for each in found], [each["max_relative_difference"] for each in found]


def best_of(held_out: Rows) -> dict[str, Any] | None:
    """The evaluation with the lowest loss."""
    return min((line for line in held_out if line["loss"] is not None), key=lambda line: line["loss"], default=None)


def speed(metrics: Rows) -> dict[str, float] | None:
    """Median, lowest and highest of the tokens a second that were logged, the first stack, which compiles, apart."""
    logged = [line["tokens_per_second"] for line in metrics if line.get("tokens_per_second")]
    steady = [value for value in logged if value != logged[0]] or logged
    return {"median": median(steady), "low": min(steady), "high": max(steady)} if steady else None


def unigram_loss(corpus: Mapping[str, Any]) -> float | None:
    """Nats per token of the unigram model, the line to be under."""
    baseline = corpus.get("unigram_perplexity")
    return math.log(baseline) if baseline else None


def clip_norm(config: Mapping[str, Any]) -> float:
    """Where gradients are clipped; 0: nowhere."""
    return float(config.get("optimizer", {}).get("clip_norm", 0))


def is_poems(corpus: Mapping[str, Any]) -> bool:
    """Whether texts are poems, shown verse by verse."""
    return corpus.get("poems") is True


def marked_samples(samples: list[tuple[str, str]], result: Mapping[str, Any]) -> Rows:
    """Each sample with its heading and the stretches that stand in the training text, None where nobody looked."""
    copied = result.get("copied", {})
    return [
        {"heading": heading, "text": text, "copied": copied.get(heading.removeprefix("temperature "))}
        for heading, text in samples
    ]


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.json; UserError where there is none."""
    config = read_json(run_dir / "config.json", "a run")
    if "impl" not in config:
        raise UserError(f"{run_dir / 'config.json'} is not the JSON of a run; is {run_dir} a run directory?")
    return config


def read_comparison(path: Path) -> dict[str, Any]:
    """comparison.json, with infinity where it has null for it."""
    result = read_json(path, "a comparison")
    rows = [*result.get("check", []), *[each for row in result.get("growth", []) for each in row["points"]]]
    for row in [*rows, result.get("agreement", {})]:
        row |= {name: math.inf for name in UNBOUNDED if name in row and row[name] is None}
    return result


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; UserError where it is none."""
    try:
        values = json.loads(read(path))
        if isinstance(values, dict):
            return values
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path} is not the JSON of {what}; is {path.parent} the folder of one?")


def read_metrics(run_dir: Path) -> Rows:
    """The lines of metrics.jsonl; one that is not finished, because the run was killed, does not count."""
    if not (run_dir / "metrics.jsonl").exists():
        return []
    finished = read(run_dir / "metrics.jsonl").split("\n")[:-1]
    try:
        return [json.loads(each) for each in finished]
    except ValueError as error:
        raise UserError(f"{run_dir / 'metrics.jsonl'}: a line is not JSON ({error}). Delete that line.") from None


def read_samples(run_dir: Path) -> list[tuple[str, str]]:
    """Heading and text of each sample in samples.txt."""
    if not (run_dir / "samples.txt").exists():
        return []
    parts = re.split(r"(?m)^(temperature [\d.]+)\n", "\n" + read(run_dir / "samples.txt"))
    return list(zip(parts[1::2], (part.strip("\n") for part in parts[2::2]), strict=True)) or [("samples", parts[0])]


def read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or error}. Give the folder of a run."
        ) from None
