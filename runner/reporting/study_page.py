"""The page of a study: a folder whose folders are runs, with or without the study.json that tells what was asked."""

import base64
import re
from pathlib import Path
from typing import Any

from runner.measurement import table
from runner.reporting.pages import draw, render
from runner.reporting.pictures import variants
from runner.reporting.records import (
    best_of,
    is_poems,
    marked_samples,
    read_config,
    read_json,
    read_metrics,
    read_samples,
    series_of,
    speed,
)
from shared.files import write_atomically


def write_study_report(folder: Path) -> Path:
    """report.html, curves.svg and .png; the page. study.json, if there is one, gives the title, the source and the name
    of the study, the figures that are its columns, and of each run its name, implementation, folder, command, status,
    error and figures; all of these may be absent. The study's own picture, study.svg, is shown as it is."""
    told = read_json(folder / "study.json", "a study") if (folder / "study.json").exists() else {}
    listed = told.get("runs") or [{"folder": path.name} for path in runs_of(folder)]
    several = len({each.get("impl") for each in listed}) > 1
    runs = [summary(folder, each, several) for each in listed]
    begun = [each for each in runs if each["config"]]
    lines = {each["name"]: each["series"] for each in begun}
    title = str(told.get("title") or folder.resolve().name)
    values = {
        "title": title,
        "told": told,
        "columns": told.get("columns") or [],
        "runs": runs,
        "begun": begun,
        "best": min((each for each in begun if each["best"]), key=lambda each: each["best"]["loss"], default=None),
        "picture": as_address(folder / "study.svg"),
        "figure": draw(folder, "curves", variants, lines, title) if lines else "",
    }
    write_atomically(folder / "report.html", render("study", values), make_folder=False)
    return folder / "report.html"


def summary(folder: Path, listed: dict[str, Any], several: bool) -> dict[str, Any]:
    """What the page says of a run, begun or not."""
    name = str(listed.get("name") or listed["folder"])
    found = {"status": "", "error": "", "figures": {}, "command": ""} | listed
    found |= {"name": f"{name}, {listed.get('impl')}" if several else name, "config": {}, "best": None}
    path = next((each for each in runs_of(folder) if each.name == listed["folder"]), None)
    if path is None:  # it waits, or names no folder of this one
        return found
    config, metrics = read_config(path), read_metrics(path)
    result, measured = config.get("result", {}), path / "statistics.json"
    statistics = read_json(measured, "text statistics") if measured.exists() else result.get("statistics")
    return found | {
        "config": config,
        "command": listed.get("command") or config.get("command", ""),
        "result": result,
        "series": series_of(metrics),
        "best": best_of([line for line in metrics if line["split"] == "held-out"]),
        "speed": speed(metrics),
        "samples": marked_samples(read_samples(path), result),
        "poems": is_poems(config.get("corpus", {})),
        "statistics": table(statistics) if statistics else None,
    }


def as_address(picture: Path) -> str:
    """An SVG file within an address. Browsers run and fetch nothing for an image, whatever the file holds, which may
    come from anywhere; nothing where there is none."""
    if not picture.is_file():
        return ""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def runs_of(folder: Path) -> list[Path]:
    """The run directories within a folder, by name, numbers in their own order."""
    return sorted((each.parent for each in folder.glob("*/config.json")), key=lambda each: natural(each.name))


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort by, in which "lr 10" comes after "lr 9"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
