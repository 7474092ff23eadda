"""The command's effects against direct calculations, and docs/differences.md against the command."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from inline import Inline

from runner import differences
from runner.cli import Differences, parse
from runner.differences import Surveyor
from runner.effects.catalogue import DIFFERENCES, SECTIONS
from runner.effects.fixtures import distance
from runner.effects.optimizer import keras_adam
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "differences.md").read_text("utf-8")
IN_NUMPY = [name for name, each in DIFFERENCES.items() if each.impl == "numpy"]
DRAWN = ("embedding-width", "fused-fan", "summed-biases")
"""Where what is left after the option is the chance of one draw."""


@cache
def measure(name):
    return Surveyor().measure(name)


@pytest.mark.parametrize("name", IN_NUMPY)
def test_an_option_settles_what_differs(name):
    before, after = measure(name)
    assert before > 1e-9
    assert after <= (0.06 if name in DRAWN else 1e-12)
    assert after < before / 10


@pytest.mark.parametrize("name", IN_NUMPY)
def test_the_page_has_the_numbers_of_the_command(name):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`:"))
    shown = re.search(r"\*\*([0-9.e+-]+) -> ", row)
    assert shown, row
    assert float(shown[1]) == pytest.approx(measure(name)[0], rel=0.05)


def test_the_page_names_every_difference_once_and_no_other():
    rows = re.findall(r"^\| `([a-z0-9-]+)`:", PAGE, re.MULTILINE)
    assert rows == list(DIFFERENCES)


def test_every_section_of_the_page_has_the_rows_of_the_command():
    for section in SECTIONS:
        part = PAGE.split(f"<!-- differences:{section} -->")[1].split("<!-- /differences -->")[0]
        for name, each in DIFFERENCES.items():
            assert (f"`{name}`:" in part) == (each.section == section)
            if each.section == section:
                for text in (each.left, each.right, each.unit, each.option, each.proof):
                    assert text.replace("|", "\\|") in part


@pytest.mark.parametrize("proof", sorted({each.proof for each in DIFFERENCES.values()}))
def test_what_shows_it_is_there(proof):
    file, _, test = proof.partition("::")
    assert f"\ndef {test}(" in (ROOT / file).read_text("utf-8")


def test_names_that_the_introduction_gives_are_names():
    introduction = PAGE.split("<!-- differences:")[0]
    named = re.findall(r"\[`([a-z0-9-]+)`\]", introduction)
    assert named
    assert set(named) <= set(DIFFERENCES)


def test_keras_epsilon_is_that_of_the_formula_at_the_first_step():
    p, g = np.array([1.0, -2.0]), np.array([1e-6, 0.5])
    hat = keras_adam(p, g, {}, 1, 0.1)
    exact = p - 0.1 * g / (np.abs(g) + 1e-8 / np.sqrt(1 - 0.999))
    np.testing.assert_allclose(hat, exact, rtol=1e-12)


def test_the_mean_over_padding_is_the_share_of_padding():
    lengths = np.arange(2, 17, 2)
    assert measure("mean-over-padding")[0] == pytest.approx(1 - lengths.sum() / (8 * 16), rel=1e-12)


def test_the_forget_gate_of_keras_is_open():
    assert measure("forget-bias")[0] == pytest.approx(1 / (1 + np.exp(-1)) - 0.5, rel=1e-12)


def test_kerass_fan_is_that_of_four_gates():
    assert measure("fused-fan")[0] == pytest.approx(np.sqrt((24 + 4 * 64) / (24 + 64)) - 1, rel=0.02)


def test_the_clipped_probability():
    exact = 50 + np.log(40 + np.exp(-50))
    assert measure("from-probabilities")[0] == pytest.approx(exact + np.log(1e-7), rel=1e-12)


def test_distances_are_relative_and_over_all_arrays():
    truth = {"a": np.array([3.0, 0.0]), "b": np.array([4.0])}
    assert distance({"a": np.array([3.0, 1.0]), "b": np.array([4.0])}, truth) == pytest.approx(0.2)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (3e-16, "< 1e-12"), (0.0346, "0.035"), (5.1e-7, "5.1e-07")])
def test_numbers_have_two_digits_and_rounding_none(value, text):
    assert differences.number(value) == text


def test_the_command_shows_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(differences, "Worker", Inline)
    path = tmp_path / "rows.json"
    options = parse(["differences", "forget-bias", "keras-constants", "--impl", "numpy", "--json", str(path)])
    assert isinstance(options, Differences)
    assert differences.run(options) == 0
    (row,) = json.loads(path.read_text("utf-8"))["rows"]
    assert row["name"] == "forget-bias"
    assert row["before"] == pytest.approx(0.2310586)
    shown = capsys.readouterr().out
    assert "--forget-bias 1" in shown
    assert "TensorFlow is not among the implementations: keras-constants" in shown


def test_an_unknown_name_is_said_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"no adam-epsilom; there are sections: cells, .* names: gate-order"):
        differences.asked_for(("adam-epsilom",))


def test_a_section_stands_for_all_in_it():
    assert differences.asked_for(("clipping",)) == ["clip-epsilon", "clip-per-variable", "gathered-rows"]


def test_a_measurement_that_breaks_down_is_said(monkeypatch, capsys):
    from runner.workers import WorkerError

    class Dying(Inline):
        def call(self, method, *arguments):
            raise WorkerError("numpy: the worker died")

    monkeypatch.setattr(differences, "Worker", Dying)
    assert differences.run(Differences(names=("forget-bias",), impl="numpy")) == 1
    assert "failed: numpy: the worker died" in " ".join(capsys.readouterr().out.split())
