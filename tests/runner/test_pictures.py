"""The figures: true to the numbers, the same every time, and readable wherever they are looked at."""

import math
import warnings

import matplotlib
import numpy as np
import pytest
from made_up import check_row, read_svg
from matplotlib import font_manager
from matplotlib.figure import Figure

from runner.reporting import pictures
from runner.reporting.findings import agreement
from runner.reporting.pictures import (
    Series,
    cjk_fonts,
    curves,
    differences,
    heat_map,
    png,
    smooth,
    svg,
    timing_bars,
    variants,
)
from runner.text import visible


@pytest.fixture
def no_cjk_font(monkeypatch):
    left = [font for font in font_manager.fontManager.ttflist if "DejaVu" in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", left)
    assert cjk_fonts() == []


def test_chinese_without_a_chinese_font(no_cjk_font):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = svg(curves, {"numpy": Series([1, 2], [2.0, 1.0])}, "唐詩三百首 🎋")
        assert png(curves, {"numpy": Series([1, 2], [2.0, 1.0])}, "唐詩三百首").startswith(b"\x89PNG")
    assert "唐詩三百首 🎋" in read_svg(drawn)
    families = drawn[drawn.index("font-family") :].partition(";")[0]
    assert "'Noto Sans CJK SC'" in families
    assert "'Microsoft YaHei'" in families
    assert families.endswith("sans-serif") or families.partition('"')[0].endswith("sans-serif")


def test_installed_chinese_fonts_are_found(monkeypatch):
    fonts = [font_manager.FontEntry(name=name) for name in ("Zapfino", "SimHei", "Noto Sans CJK SC")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    assert cjk_fonts() == ["Noto Sans CJK SC", "SimHei"]


def test_nothing_global_changes():
    before = dict(matplotlib.rcParams)
    svg(curves, {"numpy": Series([1, 2], [2.0, 1.0])})
    assert dict(matplotlib.rcParams) == before


def test_losses_that_are_no_numbers_leave_gaps():
    broken = Series([1, 2, 3], [2.0, math.nan, math.inf], [(3, None)])
    read_svg(svg(curves, {"numpy": broken, "torch": Series([1, 2], [2.5, None])}, unigram=3.0))
    read_svg(svg(curves, {"numpy": Series([1], [None]), "torch": Series([1], [None])}))


def test_a_dollar_is_no_formula():
    title = r"from $5 to $6, $x^2$, $\nonsense{$"
    assert title in read_svg(svg(curves, {"numpy": Series([1, 2], [2.0, 1.0])}, title))


def test_differences_from_the_first():
    runs = {
        "numpy": Series([1, 2, 3], [4.0, 3.0, 2.0]),
        "torch": Series([2, 3, 4], [3.0, 1.5, 9.0]),
        "tf": Series([1], [4.0]),
    }
    assert differences(runs) == {"torch": ([2, 3], [0.0, 0.5])}


def test_the_logarithmic_panel_has_its_decades():
    runs = {"numpy": Series([1, 2, 3], [2.0, 2.0, 2.0]), "torch": Series([1, 2, 3], [2.0, 2.0 + 3e-7, 2.0])}
    assert {"1e-7", "1e-6"} <= set(read_svg(svg(curves, runs)).split())


@pytest.mark.parametrize("high", [1.5, 3.0, 20.0, 900.0, 1e6, 3e26])
def test_a_logarithmic_axis_has_numbers_over_every_range(high):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0.9, high])
    axes.set_yscale("log")
    pictures.logarithmic(axes.yaxis)
    low, high = axes.get_ylim()
    shown = [f"{value:g}" for value in axes.get_yticks() if low <= value <= high]
    assert 2 <= len(shown) <= 8
    assert [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high] == shown


def test_smoothing_keeps_lines_straight():
    line = np.linspace(3, 1, 200)
    np.testing.assert_allclose(smooth(line), line, rtol=1e-12)
    noise = np.where(np.arange(200) % 2, 1.0, -1.0)
    assert np.abs(smooth(noise)[5:-5]).max() < 0.2
    assert smooth(np.array([])).size == 0


def test_long_runs_stay_small():
    steps = range(1, 100_001)
    assert len(svg(curves, {"numpy": Series(steps, [1.0 + step % 7 for step in steps])})) < 300_000


def test_bars_are_as_long_as_the_medians():
    figure = Figure()
    rows = [
        {"impl": "numpy", "phase": "train", "tokens_per_second": 70.0, "low": 60.0, "high": 90.0},
        {"impl": "torch", "phase": "train", "tokens_per_second": 50.0, "low": 40.0, "high": 55.0},
    ]
    timing_bars(figure, rows)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [70.0, 50.0]
    (whiskers,) = axes.collections
    assert [sorted(each[:, 0]) for each in whiskers.get_segments()] == [[60.0, 90.0], [40.0, 55.0]]


def test_hidden_characters_are_shown():
    assert visible("a\x1b[0m\x00\r\n\t\x9b\u202e\ud800\ufffe\ufeff") == (
        "a␛[0m␀␍\n\t\\u009b\\u202e\\ud800\\ufffe\\ufeff"
    )
    assert visible("春　眠\u00a0é 🎋") == "春　眠\u00a0é 🎋"


def test_colours_can_be_read_on_white_and_on_black():
    for colour in (*pictures.COLOURS.values(), *pictures.PALETTE, pictures.GREY):
        for ground in ("#ffffff", "#14161a"):
            assert contrast(colour, ground) >= 3, colour


def contrast(first, second):
    """WCAG 2: relative luminances, lighter over darker."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_learning_rates_are_drawn_where_they_change():
    constant, falling = (Series([1, 2], [2.0, 1.0], (), rates) for rates in ([0.004, 0.004], [0.004, 0.0]))
    assert "learning rate" not in read_svg(svg(curves, {"numpy": constant}))
    drawn = read_svg(svg(curves, {"numpy": falling}))
    assert "learning rate" in drawn
    assert "0.004" in drawn.split()
    both = read_svg(svg(curves, {"numpy": falling, "torch": falling._replace(losses=[2.0, 1.5])}))
    assert "learning rate" in both
    assert "from numpy" in both


def test_gradient_norms_are_drawn_where_they_are_known():
    steps, losses = range(1, 9), [float(loss) for loss in range(8, 0, -1)]
    run = Series(steps, losses, norms=[0.5, 2.0, None, math.inf, 0.25, 0.0, 1.0, 3.0])
    assert "gradient norm" not in read_svg(svg(curves, {"jax": Series(steps, losses)}))
    assert "clipped" not in read_svg(svg(curves, {"jax": run}))
    drawn = read_svg(svg(curves, {"jax": run}, clip=1.0)).split()
    assert {"clipped", "0.5", "2"} <= set(drawn)


def test_a_study_draws_every_run():
    runs = {f"run {place}": Series([1, 2], [2.0 + place, 1.0], [(2, 1.5)]) for place in range(12)}
    drawn = read_svg(svg(variants, runs | {"nothing yet": Series([], [])}, "many"))
    assert all(name in drawn for name in (*runs, "nothing yet", "many"))
    assert "learning rate" not in drawn


def test_a_heat_map_is_darker_nearer_to_the_bound():
    rows = [check_row("torch", "logits", 1e-10), check_row("jax", "logits", 1e-13), check_row("tf", "logits", 0.5)]
    figure = Figure()
    heat_map(figure, agreement([*rows, check_row("numpy", "logits", 0.0)]))
    (axes,) = figure.axes
    full, some, beyond, nothing = (patch.get_facecolor() for patch in axes.patches)
    assert full[3] > some[3] > nothing[3]
    assert full[:3] == nothing[:3] != beyond[:3]
    assert {text.get_text() for text in axes.texts} == {"1e-10", "1e-13", "5e-01", "0"}
