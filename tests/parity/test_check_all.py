"""`python -m runner check` over everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_check_agrees(tmp_path):
    """One cell, through processes; tests/conformance examines them all."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    words = [sys.executable, "-m", "runner", "check", "--cell", "gru", "--dtype", "float64", "--json", "check.json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=settings, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "check.json").read_text("utf-8"))
    assert report["ok"]
    assert {row["impl"] for row in report["rows"]} == {"numpy", "torch", "jax", "tf"}
    assert all(row["max_relative_error"] <= 1e-9 for row in report["rows"])
    assert {row["device"] for row in report["rows"]} == {"cpu"}
