"""Every recipe, shortened, in every implementation: its own sizes, two steps, on texts that come with the program."""

import json

import pytest

from runner.__main__ import main
from runner.recipe import load_recipe, names
from shared.corpora import REGISTRY

STEPS = 2


def starter(recipe):
    """A text of the same kind as the recipe's, and not much of it."""
    if REGISTRY[recipe.options["corpus"]].poems:
        return ["--corpus", "starter-quatrains"]
    return ["--corpus", "starter-play", "--first-characters", "15000"]


@pytest.mark.parametrize("name", names())
def test_a_shortened_recipe_runs(impl, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runner.report.write_run_report", lambda folder: folder)  # a second each, and tested elsewhere
    recipe, folder = load_recipe(name), tmp_path / "run"
    words = ["--impl", impl, "--max-steps", STEPS, "--length", 8, "--threads", 1, "--device", "cpu"]
    words += [*starter(recipe), "--run-dir", folder]
    assert main(["train", "--recipe", name, *map(str, words)]) == 0
    shown = capsys.readouterr().out
    assert f"Expected of {name}" in shown
    assert "differs from the recipe" in shown
    assert f"--max-steps {STEPS}" in shown
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["impl"], config["recipe"], config["result"]["steps"]) == (impl, name, STEPS)
    options = config["model"] | config["training"] | config["optimizer"] | config["schedule"] | config["corpus"]
    kept = {
        key: value
        for key, value in recipe.options.items()
        if key in options and key not in ("corpus", "first_characters")
    }
    assert len(kept) > 8
    assert {key: options[key] for key in kept} == kept
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["split"] for line in lines] == ["train"] * STEPS + ["held-out"]
    assert all(0 < line["loss"] < 10 for line in lines)
