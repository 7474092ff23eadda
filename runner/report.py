"""`report`: the HTML pages of a run, a comparison and a study, each with its figures as SVG and PNG beside it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from runner.cli import Report
from runner.console import say
from runner.measurement import table
from runner.reporting.findings import Result, Rows, agreement, headline, problems, relative, side_by_side
from runner.reporting.pages import draw, render
from runner.reporting.pictures import Series, curves, growth, heat_map, timing_bars
from runner.reporting.records import (
    best_of,
    is_poems,
    marked_samples,
    read_check,
    read_comparison,
    read_config,
    read_metrics,
    read_samples,
    series_of,
    speed,
)
from runner.reporting.study_page import runs_of, write_study_report
from shared.errors import UserError
from shared.files import write_atomically

SETTINGS = ("corpus", "model", "optimizer", "schedule", "training")
LISTS = ("participants", "check", "training", "growth", "timing", "samples", "failures")


def run(options: Report) -> int:
    """Write the page; UserError where the folder holds nothing that one is made of."""
    try:
        page = write_report(options.path)
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        raise UserError(
            f"{options.path} holds what is not as `train`, `compare`, `check --json` or a study wrote it ({error})."
        ) from None
    say(f"Report: {page}", "bold")
    return 0


def write_report(path: Path) -> Path:
    """The page of whatever the folder holds, or of what `check --json` wrote."""
    if path.is_file():
        return write_comparison(read_check(path), path.parent, f"{path.stem}.html")
    if (path / "comparison.json").is_file():
        return write_comparison(read_comparison(path / "comparison.json"), path)
    if (path / "config.json").is_file():
        return write_run_report(path)
    if (path / "study.json").is_file() or runs_of(path):
        return write_study_report(path)
    raise UserError(
        f"{path} is no folder of a run (config.json), of a comparison (comparison.json), or of a study (study.json, or "
        "runs in its folders). Give one that `train`, `compare` or a study has written, or the file of `check --json`."
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


def write_comparison(result: Result, folder: Path, name: str = "comparison.html") -> Path:
    """The page and its pictures from what `compare` found; returns the page."""
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
    write_atomically(folder / name, render("comparison", values), make_folder=False)
    return folder / name


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


def series_of_training(row: Mapping[str, Any]) -> Series:
    """What `compare` says of the losses of one implementation."""
    held_out = [(each["step"], each["loss"]) for each in row["held_out"]]
    return Series(range(1, 1 + len(row["losses"])), row["losses"], held_out)


def points(row: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Steps and differences."""
    found = row["points"]
    return [each["step"] for each in found], [each["max_relative_difference"] for each in found]


def unigram_loss(corpus: Mapping[str, Any]) -> float | None:
    """Nats per token of the unigram model, the line to be under."""
    baseline = corpus.get("unigram_perplexity")
    return math.log(baseline) if baseline else None


def clip_norm(config: Mapping[str, Any]) -> float:
    """Where gradients are clipped; 0: nowhere."""
    return float(config.get("optimizer", {}).get("clip_norm", 0))
