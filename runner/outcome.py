"""What came out of a run, in figures with names: recipes expect them, studies compare them. Standard library only, all
from config.json and metrics.jsonl."""

import json
import math
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from shared.errors import UserError

Lines = list[dict[str, Any]]
Figures = dict[str, float]


class Metric(NamedTuple):
    """How a figure is called and written."""

    label: str
    form: str = ".4g"


METRICS = {
    "held_out_loss": Metric("held-out loss", ".4f"),
    "held_out_perplexity": Metric("held-out perplexity", ".4g"),
    "bits_per_character": Metric("held-out bits per character", ".4f"),
    "training_text_perplexity": Metric("perplexity on the training text", ".4g"),
    "unigram_ratio": Metric("held-out / unigram perplexity", ".3f"),
    "overfitting": Metric("rise of held-out loss above its best", ".4f"),
    "training_loss": Metric("training loss of the last epoch", ".4f"),
    "best_training_loss": Metric("training loss of the best epoch", ".4f"),
    "gradient_norm": Metric("median gradient norm", ".3g"),
    "largest_gradient_norm": Metric("largest gradient norm", ".3g"),
    "copied": Metric("copied at temperature 0.8", ".3f"),
    "vocabulary_size": Metric("symbols", ",.0f"),
    "characters_per_token": Metric("characters a token", ".2f"),
    "steps": Metric("steps", ",.0f"),
    "seconds": Metric("training seconds", ",.1f"),
    "tokens_per_second": Metric("tokens a second", ",.0f"),
    "prediction_seconds": Metric("prediction seconds", ".2f"),
}
"""Losses in nats per token, held-out ones at the best epoch; where nothing is held out they are of the training text
itself. The training loss of an epoch is the mean over its steps. Speed: the median over steps; prediction: of what
--greedy writes, all together, the first call included."""


def outcome(run_dir: Path) -> Figures:
    """Every figure that the run has; a run that has not ended has those that are known by now."""
    config, lines = read_run(run_dir)
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "held-out"))
    found: dict[str, float | None] = of_training(train) | of_held_out(held_out, config)
    result = config.get("result", {})
    found |= {name: result[name] for name in ("steps", "seconds", "prediction_seconds") if name in result}
    statistics = result.get("statistics", {}).get("temperatures", [])
    found["copied"] = next((each["copied"] for each in statistics if each["temperature"] == 0.8), None)
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def of_training(lines: Lines) -> dict[str, float | None]:
    """From what was logged of each step."""
    if not lines:
        return {}
    epochs: dict[int, list[float]] = {}
    for line in lines:
        epochs.setdefault(line["epoch"], []).append(math.inf if line["loss"] is None else line["loss"])
    means = [fmean(losses) for losses in epochs.values()]
    norms = [line["gradient_norm"] for line in lines if line["gradient_norm"] is not None]
    return {
        "training_loss": means[-1],
        "best_training_loss": min(means),
        "gradient_norm": median(norms) if norms else None,
        "largest_gradient_norm": max(norms, default=None),
        "tokens_per_second": median(line["tokens_per_second"] for line in lines),
    }


def of_held_out(lines: Lines, config: dict[str, Any]) -> dict[str, float | None]:
    """From the evaluations, at the best of them."""
    known = [line for line in lines if line["loss"] is not None]
    if not known:
        return {}
    corpus, best = config["corpus"], min(known, key=lambda line: line["loss"])
    perplexity, bits = best["perplexity"], best["bits_per_character"]
    return {
        "held_out_loss": best["loss"],
        "held_out_perplexity": perplexity,
        "bits_per_character": bits,
        "training_text_perplexity": None if corpus["held_out"] else perplexity,
        "unigram_ratio": perplexity / corpus["unigram_perplexity"],
        "overfitting": known[-1]["loss"] - best["loss"],
        "vocabulary_size": corpus["vocabulary_size"],
        "characters_per_token": best["loss"] / (bits * math.log(2)) if bits else None,
    }


def read_run(run_dir: Path) -> tuple[dict[str, Any], Lines]:
    """config.json and the whole lines of metrics.jsonl; UserError where it is no run directory."""
    metrics = run_dir / "metrics.jsonl"
    try:
        config: dict[str, Any] = json.loads((run_dir / "config.json").read_text("utf-8"))
        logged = metrics.read_text("utf-8").split("\n")[:-1] if metrics.exists() else []
        return config, [json.loads(line) for line in logged]
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir} is not the folder of a run: {error}.") from None


def written(name: str, value: float | None) -> str:
    """A figure as people read it; a dash where there is none."""
    return "–" if value is None else format(value, METRICS[name].form)
