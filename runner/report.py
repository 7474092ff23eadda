"""The HTML reports: of one run, and of a comparison. Each page is one file, without scripts, that loads nothing."""

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner.findings import Result, Rows, agreement, headline, problems, relative, side_by_side
from runner.measurement import table
from runner.pictures import COLOURS, GREY, Series, curves, growth, svg, timing_bars
from runner.text import visible
from shared.errors import UserError
from shared.files import write_atomically

SETTINGS = ("corpus", "model", "optimizer", "schedule", "training")
LISTS = ("participants", "check", "training", "growth", "timing", "samples", "failures")


def write_run_report(run_dir: Path) -> Path:
    """curves.svg and report.html of a run directory, finished or not; the page. UserError if it is none."""
    config, metrics, samples = read_config(run_dir), read_metrics(run_dir), read_samples(run_dir)
    corpus, result = config.get("corpus", {}), config.get("result", {})
    baseline = corpus.get("unigram_perplexity")
    title = f"{config['impl']} on {corpus.get('name', 'a text')}"
    drawn = svg(curves, {config["impl"]: series_of(metrics)}, title, baseline and math.log(baseline))
    write_atomically(run_dir / "curves.svg", drawn, make_folder=False)
    held_out = [line for line in metrics if line["split"] == "held-out"]
    page = ENVIRONMENT.get_template("run.html.j2").render(
        config=config,
        title=title,
        figure=inline(drawn) if metrics else None,
        held_out=held_out,
        best=min(held_out, key=lambda line: line["loss"], default=None),
        result=result,
        samples=samples,
        statistics=table(result["statistics"]) if "statistics" in result else None,
        settings={name: config[name] for name in SETTINGS if name in config},
    )
    write_atomically(run_dir / "report.html", page, make_folder=False)
    return run_dir / "report.html"


def write_comparison(result: Result, folder: Path) -> Path:
    """comparison.html, comparison.svg and timing.svg from what `compare` found; returns the page."""
    result = {name: [] for name in LISTS} | dict(result)
    reference = result["participants"][0]["impl"] if result["participants"] else None
    grown = [row for row in result["growth"] if row["impl"] != reference]
    timed = [row for row in result["timing"] if row["same_work"]]
    pictures = comparison_pictures(result, grown, timed)
    for name in ("comparison", "timing"):
        if name in pictures:
            write_atomically(folder / f"{name}.svg", pictures[name])
    wrong = problems(result)
    page = ENVIRONMENT.get_template("comparison.html.j2").render(
        result=result,
        headline=headline(result, wrong),
        problems=wrong,
        pictures={name: inline(each) for name, each in pictures.items()},
        grown=grown,
        agreement=agreement(result["check"]),
        timing=relative(timed),
        untimed=[row for row in result["timing"] if not row["same_work"]],
        samples=side_by_side(result["samples"]),
    )
    write_atomically(folder / "comparison.html", page)
    return folder / "comparison.html"


def comparison_pictures(result: Result, growing: Rows, timed: Rows) -> dict[str, str]:
    """The figures there is something to draw for."""
    pictures = {}
    corpus = result.get("corpus", {})
    if runs := {row["impl"]: series_of_training(row) for row in result["training"]}:
        baseline = corpus.get("unigram_perplexity")
        pictures["comparison"] = svg(curves, runs, corpus.get("name", ""), baseline and math.log(baseline))
    lines = {row["impl"]: points(row) for row in growing}
    if any(value for _, values in lines.values() for value in values):
        pictures["growth"] = svg(growth, lines, max(row["bound"] for row in growing))
    if timed:
        pictures["timing"] = svg(timing_bars, timed)
    return pictures


def series_of(metrics: Rows) -> Series:
    """What metrics.jsonl says of losses and learning rates."""
    train = [line for line in metrics if line["split"] == "train"]
    held_out = [(line["step"], line["loss"]) for line in metrics if line["split"] == "held-out"]
    steps, losses, rates = ([line[name] for line in train] for name in ("step", "loss", "learning_rate"))
    return Series(steps, losses, held_out, rates)


def series_of_training(row: Mapping[str, Any]) -> Series:
    """What `compare` says of the losses of one implementation."""
    held_out = [(each["step"], each["loss"]) for each in row["held_out"]]
    return Series(range(1, 1 + len(row["losses"])), row["losses"], held_out)


def points(row: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Steps and differences."""
    found = row["points"]
    return [each["step"] for each in found], [each["max_relative_difference"] for each in found]


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.json; UserError where there is none."""
    try:
        config: dict[str, Any] = json.loads(read(run_dir / "config.json"))
        return {"impl": config["impl"]} | config
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{run_dir / 'config.json'} is not the JSON of a run; is {run_dir} a run directory?") from None


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


def inline(picture: str) -> Markup:
    """SVG as a part of a page, in the colour of its text. Safe: matplotlib escapes all text that it writes."""
    bare = re.sub(r'<g id="[^"]*"', "<g", picture[picture.index("<svg") :])
    return Markup(bare.replace(f": {GREY}", ": currentColor"))  # noqa: S704


def language(text: str) -> str:
    """The lang attribute of a text: browsers choose fonts and line breaks by it; "" is unknown."""
    if re.search("[\u3040-\u30ff]", text):
        return "ja"
    return "zh" if re.search("[\u3400-\u9fff\U00020000-\U000323af]", text) else ""


def shown(form: str, value: float | None) -> str:
    """A number, or a dash; zero is exact and looks it."""
    return "–" if value is None else format(value, form) if value else "0"


def seen(value: Any) -> Any:
    """What every expression of a template passes through, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


FORMS = {"count": ",.0f", "error": ".1e", "bound": ".2g", "loss": ".4f", "fine": ".6f", "short": ".2f", "factor": ".1f"}
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=seen,
)
ENVIRONMENT.trim_blocks = ENVIRONMENT.lstrip_blocks = True
ENVIRONMENT.filters |= {name: partial(shown, form) for name, form in FORMS.items()}
ENVIRONMENT.filters["language"] = language
ENVIRONMENT.globals["colours"] = COLOURS
