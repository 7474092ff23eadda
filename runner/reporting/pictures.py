"""Figures of losses, differences and speed, as SVG text or PNG bytes: `svg(curves, series)`, `png(timing_bars, rows)`.

Only matplotlib's objects are used, no pyplot, so that nothing global changes. Backgrounds are transparent and text is
mid-grey: a picture can be read on white and on black. Text stays text, set by the reader's browser in its own fonts.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, NamedTuple, ParamSpec

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from runner.text import visible

Arguments = ParamSpec("Arguments")
Drawing = Callable[Concatenate[Figure, Arguments], None]

GREY = "#777b82"
COLOURS = {"numpy": "#2a7fc4", "torch": "#d9622b", "jax": "#1a9a72", "tf": "#b765a8"}
"""One for each implementation: told apart by colour-blind readers, and 3:1 or more against white and near-black."""

PALETTE = ("#2a7fc4", "#d9622b", "#1a9a72", "#b765a8", "#a67c00", "#5f6fd0", "#c94f6d", "#4c8f3a", "#8a6d5a", "#008c95")
"""For lines that are no implementations, in this order."""

DASHES: tuple[Any, ...] = ("-", "-", (0, (5, 1.5)), (0, (1.5, 1.5)))
WIDTH = 5.4
"""Inches; narrow, so that text is not too small on a phone."""

LEGEND: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "ncols": 6}
POINTS = 1500
"""More steps than this are thinned out: no screen shows them."""

CJK = (
    *(f"{family} {country}" for country in ("SC", "TC", "JP", "KR") for family in ("Noto Sans CJK", "Source Han Sans")),
    *("Noto Sans SC", "PingFang SC", "Microsoft YaHei", "Heiti SC", "Hiragino Sans GB", "SimHei", "WenQuanYi Zen Hei"),
    *("WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS"),
)
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("font.size", "axes.titlesize", "figure.titlesize"), 9.5),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    "axes.titlelocation": "left",
    "figure.constrained_layout.h_pad": 0.08,
    "grid.color": GREY,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "legend.columnspacing": 1.0,
    "legend.fontsize": 9,
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.5,
    "svg.fonttype": "none",
}


class Series(NamedTuple):
    """The losses of a run, in nats per token, and the learning rate and gradient norm of each step."""

    steps: Sequence[int]
    losses: Sequence[float]
    held_out: Sequence[tuple[int, float]] = ()  # (step, loss)
    rates: Sequence[float] = ()
    norms: Sequence[float | None] = ()  # before clipping


def svg(draw: Drawing[Arguments], *args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
    """A figure as SVG; the same input gives the same text."""
    figure, file = Figure(layout="constrained"), io.StringIO()
    with style("svg", draw.__name__):
        draw(figure, *args, **kwargs)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return file.getvalue()


def png(draw: Drawing[Arguments], *args: Arguments.args, **kwargs: Arguments.kwargs) -> bytes:
    """A figure as PNG."""
    figure, file = Figure(layout="constrained", dpi=200), io.BytesIO()
    with style("png", draw.__name__):
        draw(figure, *args, **kwargs)
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@contextmanager
def style(kind: str, name: str) -> Iterator[None]:
    """Our settings, for the time of a drawing."""
    ours: dict[Any, Any] = {"font.sans-serif": ["DejaVu Sans", *CJK], "svg.hashsalt": name}
    ours["font.family"] = ["DejaVu Sans", *cjk_fonts(), "sans-serif"]
    with rc_context(STYLE | ours), warnings.catch_warnings():
        # In an SVG the reader's browser finds the glyphs. In a PNG they would be missing, but where no such font is
        # installed the user can see that, and a warning for each character would say no more.
        if kind == "svg" or not cjk_fonts():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def cjk_fonts() -> list[str]:
    """The installed fonts that can set Chinese."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in CJK if name in installed]


def curves(
    figure: Figure, series: Mapping[str, Series], title: str = "", unigram: float | None = None, clip: float = 0
) -> None:
    """Training loss, raw and smoothed, and held-out loss against the step; `unigram` is a loss to beat, `clip` the norm
    at which gradients are clipped, 0 for nowhere.

    Coinciding lines lie on each other like rings, the widest first. Where there are several runs that are not equal to
    the last bit, a panel below shows how far each is from the first; where learning rates change, and where gradient
    norms are known, others show them.
    """
    differing = differences(series)
    scheduled, measured = scheduled_of(series), measured_of(series)
    colours = {name: colour_of(name) for name in series}
    heights = [3, *(1 for panel in (differing, scheduled, measured) if panel)]
    figure.set_size_inches(WIDTH, 2.5 + 1.1 * len(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    draw_losses(panels[0], series, unigram)
    figure.suptitle(shorten(title), x=0.01, ha="left")
    below = iter(panels[1:])
    if differing:
        log_lines(axes := next(below), differing)
        axes.set_ylabel(shorten(f"from {next(iter(series))}", 16))
    if scheduled:
        draw_rates(next(below), scheduled, colours)
    if measured:
        draw_norms(next(below), measured, colours, clip)
    panels[-1].set_xlabel("step")


def draw_losses(axes: Axes, series: Mapping[str, Series], unigram: float | None) -> None:
    """The panel that matters."""
    for place, (name, each) in enumerate(series.items()):
        draw_run(axes, name, each, len(series) - 1 - place, place)
    if unigram is not None:
        axes.axhline(unigram, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="unigram")
    axes.set_ylabel("nats per token")
    axes.legend(**LEGEND)


def variants(figure: Figure, series: Mapping[str, Series], title: str = "") -> None:
    """The runs of a study against the step: held-out losses, smoothed training losses on the same scale, and learning
    rates where they change and gradient norms where they are known. Of lines that coincide the first is the widest."""
    scheduled, measured = scheduled_of(series), measured_of(series)
    heights = [2, 2, *(1 for panel in (scheduled, measured) if panel)]
    figure.set_size_inches(WIDTH, 1.2 + 1.2 * sum(heights) + 0.2 * math.ceil(len(series) / 2))
    above, below, *others = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    below.sharey(above)
    colours = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(series)}
    for place, (name, run) in enumerate(series.items()):
        look: dict[str, Any] = {"color": colours[name], "linestyle": DASHES[place // len(PALETTE) % len(DASHES)]}
        look["linewidth"] = 1.2 + 1.6 * (1 - place / len(series))
        steps, values = zip(*run.held_out, strict=True) if run.held_out else ((), ())
        above.plot(steps, floats(values), marker="o", markersize=2.5, label=shorten(name, 34), **look)
        thin = slice(None, None, max(1, len(run.steps) // POINTS))
        below.plot(run.steps[thin], smooth(floats(run.losses))[thin], **look)
    above.set_ylabel("held-out nats")
    below.set_ylabel("training nats")
    figure.suptitle(shorten(title), x=0.01, ha="left")
    above.legend(**LEGEND | {"ncols": 2})
    if scheduled:
        draw_rates(others[0], scheduled, colours)
    if measured:
        draw_norms(others[-1], measured, colours)
    figure.axes[-1].set_xlabel("step")


def scheduled_of(series: Mapping[str, Series]) -> dict[str, Series]:
    """Those whose learning rate changes."""
    return {name: run for name, run in series.items() if len(set(run.rates)) > 1}


def measured_of(series: Mapping[str, Series]) -> dict[str, Series]:
    """Those whose gradient norms are known."""
    return {name: run for name, run in series.items() if np.isfinite(floats(run.norms)).any()}


def heat_map(figure: Figure, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """How much of its bound each quantity uses, by precision (`findings.agreement`): the darker the more, on a
    logarithmic scale; beyond it, red. The number is the error itself."""
    counts = [sum(map(len, each["bodies"].values())) for each in tables.values()]
    widest = max(len(each["columns"]) for each in tables.values())
    figure.set_size_inches(1.6 + 0.85 * widest, 0.6 + sum(0.9 + 0.24 * count for count in counts))
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=[2 + count for count in counts])[:, 0]
    for axes, (dtype, each) in zip(panels, tables.items(), strict=True):
        rows = [(f"{impl} {line['cell']}", line) for impl, lines in each["bodies"].items() for line in lines]
        for y, (_, line) in enumerate(rows):
            for x, name in enumerate(each["columns"]):
                if found := line["worst"][name]:
                    draw_cell(axes, x, y, found, line["heat"][name])
        axes.set_xlim(-0.5, len(each["columns"]) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        names = [shorten(name, 22).replace(" ", "\n") for name in each["columns"]]
        axes.set_xticks(range(len(names)), names, fontsize=7.5)
        axes.set_yticks(range(len(rows)), [shorten(name, 36) for name, _ in rows])
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(shorten(f"{dtype}: share of the bound, none to all (logarithmic)"))


def draw_cell(axes: Axes, x: int, y: int, row: Mapping[str, Any], heat: float) -> None:
    """One quantity of one implementation; `heat` from 0 to 1."""
    colour, alpha = (COLOURS["numpy"], 0.04 + 0.4 * heat) if row["ok"] else ("#d43a28", 0.6)
    axes.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor=colour, alpha=alpha, linewidth=0))
    text = f"{row['max_relative_error']:.0e}" if row["max_relative_error"] else "0"
    axes.text(x, y, text, ha="center", va="center", fontsize=7)


def draw_run(axes: Axes, name: str, run: Series, outer: int, place: int) -> None:
    """The lines of a run; `outer` more of them will be drawn over it."""
    colour, losses = colour_of(name), floats(run.losses)
    line: dict[str, Any] = {"linewidth": 1.3 * 1.5**outer, "linestyle": DASHES[place % len(DASHES)]}
    ring: dict[str, Any] = {"marker": "o", "markersize": 4.5 + 2.2 * outer, "markerfacecolor": "none"}
    thin = slice(None, None, max(1, len(losses) // POINTS))
    axes.plot(run.steps[thin], losses[thin], color=colour, linewidth=0.6, alpha=0.25)
    axes.plot(run.steps[thin], smooth(losses)[thin], color=colour, label=shorten(name, 24), **line)
    if run.held_out:
        steps, values = zip(*run.held_out, strict=True)
        label = "_" if outer else "held-out"  # an underscore keeps a line out of the legend
        axes.plot(steps, floats(values), linestyle="none", color=colour, zorder=3, label=label, **ring)


def draw_rates(axes: Axes, series: Mapping[str, Series], colours: Mapping[str, str]) -> None:
    """The learning rate against the step."""
    for name, run in series.items():
        thin = slice(None, None, max(1, len(run.steps) // POINTS))
        axes.plot(run.steps[thin], floats(run.rates)[thin], color=colours[name], linewidth=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("learning rate")


def draw_norms(axes: Axes, series: Mapping[str, Series], colours: Mapping[str, str], clip: float = 0) -> None:
    """The norm of all gradients before clipping against the step, logarithmic; zeros are gaps."""
    for name, run in series.items():
        norms = floats(run.norms)
        known = np.isfinite(norms)
        steps, norms = np.asarray(run.steps)[known], norms[known]
        thin = slice(None, None, max(1, len(norms) // POINTS))
        axes.plot(steps[thin], norms[thin], color=colours[name], linewidth=0.6, alpha=0.3)
        axes.plot(steps[thin], smooth(norms)[thin], color=colours[name], linewidth=1)
    if clip:
        axes.axhline(clip, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "clipped",
            (1, clip),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axes.set_yscale("log", nonpositive="mask")
    logarithmic(axes.yaxis)
    axes.set_ylabel("gradient norm")


def differences(series: Mapping[str, Series]) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> steps and |loss - the first run's loss|, at steps that both have; no entry where all are equal."""
    found = {}
    runs = {name: dict(zip(run.steps, floats(run.losses), strict=True)) for name, run in series.items()}
    first = next(iter(runs.values()), {})
    for name, losses in list(runs.items())[1:]:
        steps = [step for step in losses if step in first]
        distances = [abs(losses[step] - first[step]) for step in steps]
        if any(distance > 0 for distance in distances):
            found[name] = steps, distances
    return found


def timing_bars(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Tokens a second, a panel for each phase: median as a bar, lowest to highest as a whisker."""
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    figure.set_size_inches(WIDTH, 0.5 + 0.8 * len(phases) + 0.26 * len(rows))
    heights = [1.5 + sum(row["phase"] == phase for row in rows) for phase in phases]
    panels = figure.subplots(len(phases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, phase in zip(panels, phases, strict=True):
        bars(axes, [row for row in rows if row["phase"] == phase])
        axes.set_title(shorten(f"{phase}, tokens a second"))


def race(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """What `bench` found, tokens a second: a panel for each workload and phase, peers pale."""
    panels = list(dict.fromkeys((row["workload"], row["phase"]) for row in rows))
    figure.set_size_inches(1.3 * WIDTH, 0.3 + 0.8 * len(panels) + 0.26 * len(rows))
    heights = [1.5 + sum((row["workload"], row["phase"]) == panel for row in rows) for panel in panels]
    places = figure.subplots(max(1, len(panels)), 1, squeeze=False, height_ratios=heights or None)[:, 0]
    for axes, panel in zip(places, panels, strict=False):
        bars(axes, [row for row in rows if (row["workload"], row["phase"]) == panel])
        axes.set_title(shorten(f"{', '.join(panel)}: tokens a second"))


def bars(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """One panel; the first row on top."""
    middle, low, high = (floats(row[name] for row in rows) for name in ("tokens_per_second", "low", "high"))
    places, short = np.arange(len(rows)), EngFormatter(places=1, sep="")
    reach = np.maximum(0, [middle - low, high - middle])
    whisker = {"ecolor": GREY, "elinewidth": 1.2, "capsize": 3}
    drawn = axes.barh(
        places, middle, 0.62, color=[colour_of(row["impl"]) for row in rows], xerr=reach, error_kw=whisker
    )
    for bar, row in zip(drawn, rows, strict=True):
        bar.set_alpha(0.4 if row.get("peer") else 1.0)
    for place, value, end in zip(places, middle, np.fmax(high, middle), strict=True):
        axes.annotate(short(value), (end, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [shorten(row.get("name", row["impl"]), 36) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.14 * float(np.nanmax(high, initial=1e-9)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=False, axis="y")


def growth(figure: Figure, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], bound: float) -> None:
    """How rounding grows: the largest relative difference of the parameters against the step, and what is allowed."""
    figure.set_size_inches(WIDTH, 2.6)
    axes = figure.subplots()
    log_lines(axes, lines, bound)
    axes.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="bound")
    axes.set_xlabel("step")
    axes.set_ylabel("relative difference")
    axes.legend(**LEGEND)


def log_lines(axes: Axes, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], *others: float) -> None:
    """Lines on a logarithmic axis of whole decades, which `others` must lie on too; zeros are gaps."""
    axes.set_yscale("log", nonpositive="mask")
    for name, (steps, values) in lines.items():
        thin, line = slice(None, None, max(1, len(steps) // POINTS)), dict[str, Any](linewidth=1, markersize=2.5)
        axes.plot(steps[thin], floats(values)[thin], ".-", color=colour_of(name), label=shorten(name, 24), **line)
    found = [
        value for value in [*others, *(each for _, values in lines.values() for each in floats(values))] if value > 0
    ]
    if found:
        low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
        axes.set_ylim(10.0**low / 1.3, 10.0 ** max(high, low + 1) * 1.3)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{round(math.log10(value))}"))


def logarithmic(axis: Axis) -> None:
    """Ticks of a logarithmic scale, written out: matplotlib's are TeX, which is not read here. The finer the less is
    shown."""
    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a window centred on each step, a twenty-fifth of the run wide, narrower towards both ends."""
    place = np.arange(len(values))
    half = np.minimum(np.minimum(place, place[::-1]), len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[place + half + 1] - sums[place - half]) / (2 * half + 1)


def floats(values: Iterable[float | None]) -> np.ndarray:
    """Numbers to draw; JSON's null and infinities leave a gap."""
    found = np.array([math.nan if value is None else value for value in values], np.float64)
    return np.where(np.isfinite(found), found, math.nan)


def colour_of(name: str) -> str:
    """The implementation's own colour."""
    return COLOURS.get(name, GREY)


def shorten(text: str, width: int = 64) -> str:
    """One line that fits."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"
