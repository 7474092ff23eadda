"""What a study shows: one table, on the terminal or as Markdown, and one picture."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.console import markdown_table, say, show_table
from runner.measurement import label, shown
from runner.outcome import METRICS, read_run, written
from runner.reporting.pictures import (
    GREY,
    LEGEND,
    PALETTE,
    POINTS,
    WIDTH,
    floats,
    logarithmic,
    png,
    shorten,
    smooth,
    svg,
)
from runner.study import STATISTICS, Listing
from shared.statistics import MEASURES

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))
MARKS = "DX*Pvs"
"""Shapes of what others have."""
SHORT, MIDDLING = 26, 40
"""Characters of labels of which three, or two, stand side by side."""
FEW = 4
"""Runs whose names are written out."""
DISTINCT = 60
"""Points of a line that are marked one by one."""
Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""


def tables(listing: Listing) -> list[Table]:
    """The figures that the study asks for and, where it measures texts, what those are like."""
    figures = [figure_table(listing)] if listing.study.columns else []
    return [*figures, temperature_table(listing)] if listing.study.statistics else figures


def figure_table(listing: Listing) -> Table:
    """The study's columns of each run."""
    several = len({row["impl"] for row in listing.rows}) > 1
    columns = listing.study.columns
    headings = ["", *["impl"] * several, *(METRICS[name].label for name in columns)]
    rows = [
        [row["name"], *[row["impl"]] * several, *(written(name, row["figures"].get(name)) for name in columns)]
        for row in listing.rows
    ]
    if any(row["status"] != "finished" for row in listing.rows):
        headings.append("")
        rows = [[*cells, row["status"]] for cells, row in zip(rows, listing.rows, strict=True)]
    return headings, rows


def temperature_table(listing: Listing) -> Table:
    """A row for the held-out text and each temperature of each run, a column for each measure that applies."""
    lines: list[tuple[str, Mapping[str, Any]]] = []
    for name, found in statistics_of(listing).items():
        lines += [(f"{name}, held-out text", found["held_out"])] if found["held_out"] else []
        lines += [(f"{name}, temperature {each['temperature']:g}", each) for each in found["temperatures"]]
    measures = [name for name in MEASURES if any(each[name] is not None for _, each in lines)]
    rows = [[name, *(shown(each[key], MEASURES[key].unit) for key in measures)] for name, each in lines]
    return ["", *map(label, measures)], rows


def statistics_of(listing: Listing) -> dict[str, Any]:
    """Run -> what `sample --statistics` found."""
    paths = {title(listing, row): listing.folder / row["folder"] / STATISTICS for row in listing.rows}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}


def title(listing: Listing, row: Mapping[str, Any]) -> str:
    """A run's name, with its implementation where there are several."""
    several = len({row["impl"] for row in listing.rows}) > 1
    return f"{row['name']}, {row['impl']}" if several else str(row["name"])


def terminal(listing: Listing) -> None:
    """The table, and why runs failed."""
    for headings, rows in tables(listing):
        show_table(listing.study.title, headings, rows, right=range(1, len(headings)))
    for row in listing.rows:
        if row["error"]:
            say(f"{title(listing, row)}: {row['error']}", "yellow")


def markdown(listing: Listing) -> str:
    """The tables for the documentation."""
    return "\n".join(markdown_table(*each) for each in tables(listing))


def picture(listing: Listing) -> dict[str, bytes | str]:
    """File names and contents; none where no run has anything to draw."""
    kind = listing.study.picture["kind"]
    if kind == "temperatures":
        found = statistics_of(listing)
        return {"study.svg": svg(draw_temperatures, found), "study.png": png(draw_temperatures, found)} if found else {}
    begun = [row for row in listing.rows if row["figures"]]
    if not begun:
        return {}
    if kind == "bars":
        return {"study.svg": svg(draw_bars, listing, begun), "study.png": png(draw_bars, listing, begun)}
    return {"study.svg": svg(draw_lines, listing, begun), "study.png": png(draw_lines, listing, begun)}


def draw_lines(figure: Figure, listing: Listing, rows: Sequence[Mapping[str, Any]]) -> None:
    """A number of metrics.jsonl against steps, epochs or seconds, and the marks of others. Where several variants ran
    in several implementations, a colour is a variant, and the first implementation wide and pale, so that those that
    coincide with it lie within; else each run has its own."""
    chosen = listing.study.picture
    impls, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("impl", "name"))
    crossed = len(rows) == len(impls) * len(names) and len(impls) > 1 and len(names) > 1
    figure.set_size_inches(1.3 * WIDTH, 3.6 + 0.2 * (len(rows) // 3))
    axes, width = figure.subplots(), 30 if len(rows) > FEW else 60
    for number, row in enumerate(rows):
        place = names.index(row["name"]) if crossed else number
        wide = crossed and row["impl"] == impls[0]
        line: dict[str, Any] = {"linewidth": 3.4, "alpha": 0.45} if wide else {"linewidth": 1.2}
        line |= {"linestyle": DASHES[place // len(PALETTE) % len(DASHES)], "color": PALETTE[place % len(PALETTE)]}
        places, values = points(listing, row, chosen)
        line |= {"marker": ".", "markersize": 4} if len(places) <= DISTINCT else {}
        axes.plot(places, values, label=shorten(title(listing, row), width), **line)
    for mark, shape in zip(chosen.get("marks", ()), cycle(MARKS)):
        look: dict[str, Any] = {"color": GREY, "linestyle": "none", "markersize": 7}
        axes.plot(mark["at"], mark["value"], marker=shape, label=shorten(mark["name"], 40), **look)
    finished(figure, axes, listing, chosen)
    axes.set_xlabel(chosen["over"])
    learned = any(row["figures"].get("training_text_perplexity") for row in rows)  # where nothing is held out
    split = "training" if chosen["split"] == "train" else "training text's" if learned else "held-out"
    axes.set_ylabel(f"{split} {chosen['value'].replace('_', ' ')}")


def points(listing: Listing, row: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Places and values, thinned out; of training the running mean, of a norm every value."""
    _, lines = read_run(listing.folder / row["folder"])
    of_epoch = max(1, max((line["step"] for line in lines if line["epoch"] == 1), default=1))
    kept = [line for line in lines if line["split"] == chosen["split"]]
    values = floats(line.get(chosen["value"]) for line in kept)
    if chosen["split"] == "train" and chosen["value"] != "gradient_norm":
        values = smooth(values)
    if chosen["over"] == "seconds":
        places = floats(line.get("seconds") for line in kept)
    else:
        places = np.array([line["step"] for line in kept]) / (of_epoch if chosen["over"] == "epoch" else 1)
    thin = slice(None, None, max(1, len(kept) // POINTS))
    return places[thin], values[thin]


def draw_bars(figure: Figure, listing: Listing, rows: Sequence[Mapping[str, Any]]) -> None:
    """One figure of every run, the first on top."""
    metric = listing.study.picture["metric"]
    figure.set_size_inches(1.3 * WIDTH, 1.0 + 0.26 * len(rows))
    axes = figure.subplots()
    values = floats(row["figures"].get(metric) for row in rows)
    variants = list(dict.fromkeys(row["name"] for row in rows))
    colours = [PALETTE[variants.index(row["name"]) % len(PALETTE)] for row in rows]
    axes.barh(np.arange(len(rows)), np.nan_to_num(values), 0.62, color=colours)
    for place, value in enumerate(values):
        text = written(metric, None if np.isnan(value) else float(value))
        axes.annotate(text, (float(np.nan_to_num(value)), place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(np.arange(len(rows)), [shorten(title(listing, row), 36) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)
    axes.set_xlabel(METRICS[metric].label)
    if listing.study.picture.get("log"):
        axes.set_xscale("log")
        logarithmic(axes.xaxis)
    figure.suptitle(shorten(listing.study.title), x=0.01, ha="left")


def finished(figure: Figure, axes: Axes, listing: Listing, chosen: Mapping[str, Any]) -> None:
    """Title, scale and legend."""
    if chosen.get("log"):
        axes.set_yscale("log", nonpositive="mask")
        logarithmic(axes.yaxis)
    if chosen.get("log_over"):
        axes.set_xscale("log", nonpositive="mask")
        logarithmic(axes.xaxis)
    elif chosen["over"] != "seconds":
        axes.locator_params(axis="x", integer=True)
    labels = axes.get_legend_handles_labels()[1]
    longest = max(map(len, labels))
    axes.legend(**LEGEND | {"ncols": 3 if longest <= SHORT else 2 if longest <= MIDDLING else 1})
    figure.suptitle(shorten(listing.study.title), x=0.01, ha="left")


def draw_temperatures(figure: Figure, found: Mapping[str, Any]) -> None:
    """Each measure against the temperature, a panel each; dashed: the held-out text."""
    measured = [each for run in found.values() for each in run["temperatures"]]
    applying = [name for name in MEASURES if name != "characters" and any(each[name] is not None for each in measured)]
    lines = -(-len(applying) // 2)
    figure.set_size_inches(1.3 * WIDTH, 0.6 + 1.7 * lines)
    panels = figure.subplots(lines, 2, sharex=True, squeeze=False)
    for axes, name in zip_longest(panels.flat, applying):
        if name is None:
            axes.set_axis_off()
            continue
        axes.set_title(label(name))
        for place, (run, each) in enumerate(found.items()):
            values = floats(written_at[name] for written_at in each["temperatures"])
            temperatures = [written_at["temperature"] for written_at in each["temperatures"]]
            colour = PALETTE[place % len(PALETTE)]
            axes.plot(temperatures, values, ".-", color=colour, label=shorten(run, 30))
            if each["held_out"] and each["held_out"][name] is not None:
                axes.axhline(each["held_out"][name], color=colour, linewidth=1, linestyle=(0, (4, 3)))
    panels[-1, 0].set_xlabel("temperature")
    panels[0, 0].axhline(np.nan, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="held-out text")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
