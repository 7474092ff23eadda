"""What runs and comparisons have left in their folders, read back for reports. UserError where a file is not theirs."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from runner.reporting.findings import Rows
from runner.reporting.pictures import Series
from shared.errors import UserError

UNBOUNDED = ("max_relative_error", "max_relative_difference", "held_out_spread")
"""Numbers of comparison.json that are null where they are infinite."""
TIMED = ("seconds", "tokens_per_second")
"""Numbers of metrics.jsonl that the clock decides: all else is the same whenever a run is done again."""


def series_of(metrics: Rows) -> Series:
    """What metrics.jsonl says of losses, learning rates and gradient norms."""
    train = [line for line in metrics if line["split"] == "train"]
    held_out = [(line["step"], line["loss"]) for line in metrics if line["split"] == "held-out"]
    steps, losses, rates = ([line[name] for line in train] for name in ("step", "loss", "learning_rate"))
    return Series(steps, losses, held_out, rates, [line.get("gradient_norm") for line in train])


def best_of(held_out: Rows) -> dict[str, Any] | None:
    """The evaluation with the lowest loss."""
    return min((line for line in held_out if line["loss"] is not None), key=lambda line: line["loss"], default=None)


def speed(metrics: Rows) -> dict[str, float] | None:
    """Median, lowest and highest of the tokens a second that were logged, the first stack, which compiles, apart."""
    logged = [line["tokens_per_second"] for line in metrics if line.get("tokens_per_second")]
    steady = [value for value in logged if value != logged[0]] or logged
    return {"median": median(steady), "low": min(steady), "high": max(steady)} if steady else None


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
    points = [each for row in result.get("growth", []) for each in row["points"]]
    unbounded([*result.get("check", []), *points, result.get("agreement", {})])
    return result


def read_check(path: Path) -> dict[str, Any]:
    """What `check --json` wrote, as a comparison that only checked."""
    found = read_json(path, "a check")
    unbounded(found["rows"])
    place = ("impl", "engine", "kernel", "device")
    participants = {row["impl"]: {name: row[name] for name in place} | {"versions": {}} for row in found["rows"]}
    return {"participants": list(participants.values()), "check": found["rows"], "ok": found["ok"]}


def unbounded(rows: Rows) -> None:
    """Infinity where JSON has null for it."""
    for row in rows:
        row |= {name: math.inf for name in UNBOUNDED if name in row and row[name] is None}


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
