"""Figures of a search, in the style of `pictures`: every trial as a line through its options, and the loss over the two
options that matter most."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from runner.reporting.pictures import GREY, WIDTH, shorten

COLOURS = colormaps["viridis"].resampled(32)
"""Dark is low, which is good. More than 50 would be drawn as an image, and pages load none."""


class Scale(NamedTuple):
    """How the values of one option lie on an axis from 0 to 1; `ticks` are positions and what stands there."""

    positions: Mapping[Any, float]
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Scale":
        """Numbers by size, those that span decades by their logarithm; anything else in order of appearance."""
        different = list(dict.fromkeys(values))
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in different)
        if not numbers or len(different) == 1:
            spread = {value: (k + 0.5) / len(different) for k, value in enumerate(different)}
            return cls(spread, [(place, shorten(text(value), 12)) for value, place in spread.items()])
        different.sort()
        decades = different[0] > 0 and different[-1] / different[0] >= 50
        lengths = [math.log(value) if decades else float(value) for value in different]
        spread = {v: (x - lengths[0]) / (lengths[-1] - lengths[0]) for v, x in zip(different, lengths, strict=True)}
        shown = different[:: max(1, math.ceil(len(different) / 6))]
        return cls(spread, [(spread[value], text(value)) for value in shown])


def text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parallel(
    figure: Figure, points: Sequence[Mapping[str, Any]], losses: Sequence[float], ended: Sequence[bool]
) -> None:
    """A line for each trial through its options to its loss; thin where it was `ended` early."""
    names, colour = list(points[0]), normed(losses)
    figure.set_size_inches(WIDTH, 3.6)
    axes = figure.subplots()
    scales = {name: Scale.of([point[name] for point in points]) for name in names}
    heights = [[scales[name].positions[point[name]] for name in names] for point in points]
    for early in (True, False):  # the others on top
        chosen = [k for k, each in enumerate(ended) if each == early]
        lines = [list(enumerate([*heights[k], float(colour(losses[k]))])) for k in chosen]
        style: dict[str, Any] = {"linewidths": 0.5, "alpha": 0.35} if early else {"linewidths": 1.3, "alpha": 0.9}
        drawn = LineCollection(lines, cmap=COLOURS, norm=colour, **style)
        drawn.set_array(np.array([losses[k] for k in chosen]))
        axes.add_collection(drawn)
    for place, name in enumerate(names):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for height, word in scales[name].ticks:
            axes.annotate(word, (place, height), (3, 0), textcoords="offset points", fontsize=7.5, va="center")
    axes.set(xlim=(-0.1, len(names) + 0.02), ylim=(-0.04, 1.04), yticks=[])
    axes.set_xticks(range(len(names) + 1), [*map(title, names), ""])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.axvline(len(names), color=GREY, linewidth=0.8)
    bar(figure, axes, colour)


def contour(
    figure: Figure, xs: Sequence[Any], ys: Sequence[Any], losses: Sequence[float], names: Sequence[str]
) -> None:
    """The loss over two options: every trial a point, and levels between them where they span a plane."""
    figure.set_size_inches(WIDTH, 3.8)
    axes, colour = figure.subplots(), normed(losses)
    across, up = Scale.of(xs), Scale.of(ys)
    places = np.array([(across.positions[x], up.positions[y]) for x, y in zip(xs, ys, strict=True)])
    lowest: dict[tuple[float, float], float] = {}
    for (x, y), loss in zip(places.tolist(), losses, strict=True):
        lowest[x, y] = min(loss, lowest.get((x, y), math.inf))
    plane, heights = np.array(list(lowest)), np.array(list(lowest.values()))
    if len(plane) > 3 and np.linalg.matrix_rank(plane - plane[0]) == 2:
        style: dict[str, Any] = {"extend": "both", "alpha": 0.55, "cmap": COLOURS, "norm": colour}
        axes.tricontourf(plane[:, 0], plane[:, 1], heights, levels(colour, 13), **style)

    across_places, up_places = places.T
    axes.scatter(across_places, up_places, c=losses, cmap=COLOURS, norm=colour, s=14, edgecolors=GREY, linewidths=0.4)
    axes.set_xticks([place for place, _ in across.ticks], [word for _, word in across.ticks])
    axes.set_yticks([place for place, _ in up.ticks], [word for _, word in up.ticks])
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel=title(names[0]), ylabel=title(names[1]))
    bar(figure, axes, colour)


def normed(losses: Sequence[float]) -> Normalize:
    """Colours that tell good from better: what diverged must not take them all."""
    low, high = min(losses), float(np.quantile(losses, 0.9))
    high = high if high > low else low * 1.01 + 1e-9
    return LogNorm(low, high, clip=True) if low > 0 else Normalize(low, high, clip=True)


def levels(colour: Normalize, count: int) -> list[float]:
    """Losses that lie evenly in the colours."""
    return [float(colour.inverse(share)) for share in np.linspace(0, 1, count)]


def bar(figure: Figure, axes: Axes, colour: Normalize) -> None:
    """What the colours mean."""
    shown = figure.colorbar(ScalarMappable(colour, COLOURS), ax=axes, label="held-out loss, nats per token")
    marks = levels(colour, 5)
    shown.ax.minorticks_off()
    shown.set_ticks(marks, labels=[f"{mark:.3g}" for mark in marks])


def title(name: str) -> str:
    """An option as an axis calls it."""
    return shorten(name.rpartition(".")[2].replace("_", " "), 18)
