import json

import numpy as np
import pytest
from inline import Inline

from runner import accuracy
from runner.accuracy import Gauge, ulps
from runner.cli import Check


def test_an_ulp_is_that_of_the_largest_number():
    truth = np.array([1.0, -0.25])
    assert ulps(truth, truth) == 0
    assert ulps(truth + np.array([0, 2.0**-23]), truth) == 1
    assert ulps(8 * truth + np.array([2.0**-20, 0]), 8 * truth) == 1


def test_float32_is_a_few_units_off_and_bfloat16_is_refused(tmp_path, capsys):
    options = Check(impl="numpy", accuracy=True, json=tmp_path / "league.json")
    assert accuracy.run(options, Inline, lengths=(5, 40)) == 0
    rows = json.loads((tmp_path / "league.json").read_text("utf-8"))["rows"]
    assert [(row["dtype"], row["length"]) for row in rows] == [("float32", 5), ("float32", 40)]
    for row in rows:
        assert 0.1 < row["logits_ulps"] < 20
        assert row["logits_ulps"] < row["gradients_ulps"] < 300
    assert "numpy float32" in capsys.readouterr().out


def test_a_wrong_model_is_far_off(monkeypatch, tmp_path):
    real = Gauge.measure

    def measure(self, length, dtype):
        found = real(self, length, dtype)
        if dtype == "float32":
            found["arrays"]["logits"] = found["arrays"]["logits"] * 1.001
        return found

    monkeypatch.setattr(Gauge, "measure", measure)
    options = Check(impl="numpy", accuracy=True, json=tmp_path / "league.json")
    accuracy.run(options, Inline, lengths=(5,))
    row = json.loads((tmp_path / "league.json").read_text("utf-8"))["rows"][0]
    assert row["logits_ulps"] == pytest.approx(0.001 * 2**23, rel=0.6)
