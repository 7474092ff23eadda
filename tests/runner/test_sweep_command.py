"""Searches as a user starts them: real processes, real files, NumPy alone."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from made_up import read_page, read_svg
from test_cli import ROOT, run
from test_sweep import VARY, states, words

from runner.cli import Train
from runner.rundir import RunDirectory
from runner.sweeping import space
from runner.sweeping.search import Search
from runner.sweeping.storage import open_storage
from shared.config import ModelConfig

SMALL = ["--embedding-size", 5, "--batch-size", 4, "--seq-length", 7, "--epochs", 99, "--max-steps", 150]
SMALL += ["--threads", 1]
TEXT = ["--corpus", "words.txt", "--reader", "text", "--device", "cpu"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with a finished search by two workers, and what it said."""
    folder = tmp_path_factory.mktemp("searched")
    words(folder / "words.txt")
    vary = ["--vary", "hidden_size", "4,6,9", "--vary", "learning_rate", "log", "3e-3", "1e-1"]
    place = ["--workers", 2, "--run-dir", "search", "--json", "all.json"]
    shown = run("sweep", *vary, "--trials", 20, "--pruner", "median", *place, *SMALL, *TEXT, folder=folder)
    return folder, shown


def test_a_search_by_two_workers(searched):
    folder, shown = searched
    result = json.loads((folder / "all.json").read_text("utf-8"))
    assert result == json.loads((folder / "search/results.json").read_text("utf-8"))
    assert [row["trial"] for row in result["rows"]] == list(range(20))
    assert result["counts"]["done"] + result["counts"]["pruned"] == 20
    assert 0 < result["pruned_share"] < 1
    assert result["saved_seconds"] > 0
    best = result["best"]
    assert best["loss"] == min(row["loss"] for row in result["rows"])
    for word in ("20 trials by tpe, 2 workers", "The best trials", "pruned, which saved about", "sweep.html"):
        assert word in shown, shown
    points = [json.dumps(row["options"]) for row in result["rows"]]
    assert len(set(points)) == 20


def test_the_trials_are_runs_of_train(searched):
    folder, _ = searched
    for row in json.loads((folder / "all.json").read_text("utf-8"))["rows"]:
        run_directory = Path(row["run"])
        config = json.loads((run_directory / "config.json").read_text("utf-8"))
        lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert config["model"]["hidden_size"] == row["options"]["model.hidden_size"]
        assert config["training"]["learning_rate"] == row["options"]["training.learning_rate"]
        assert max(line["step"] for line in lines) == row["steps"] == config["result"]["steps"]
        if row["state"] == "done":
            assert min(line["loss"] for line in lines if line["split"] == "held-out") == row["loss"]


def test_only_the_best_keeps_its_checkpoint(searched):
    folder, _ = searched
    result = json.loads((folder / "all.json").read_text("utf-8"))
    kept = {path.parent.name for path in (folder / "search/trials").glob("*/best.safetensors")}
    done = [row for row in result["rows"] if row["state"] == "done"]
    assert f"{min(done, key=lambda row: row['loss'])['trial']:05d}" in kept
    assert not list((folder / "search/trials").glob("*/last.safetensors"))


def test_the_best_options_are_a_recipe(searched, tmp_path):
    folder, _ = searched
    best = json.loads((folder / "all.json").read_text("utf-8"))["best"]
    recipe = tomllib.loads((folder / "search/best.toml").read_text("utf-8"))
    assert set(recipe) == {"title", "options"}
    point = {space.full_name(name): value for name, value in recipe["options"].items()}
    options = space.configured(Train(), point)
    assert options.training.learning_rate == best["options"]["training.learning_rate"]
    assert options.model == ModelConfig(hidden_size=best["options"]["model.hidden_size"], embedding_size=5)
    assert options.corpus.corpus == str(folder / "words.txt")


def test_the_page_is_one_file_without_scripts(searched):
    folder = searched[0] / "search"
    page = read_page(folder / "sweep.html")
    assert page.tags.count("svg") == 2
    assert "the best of 20 trials" in page.text
    assert "learning rate" in read_svg((folder / "parallel.svg").read_text("utf-8"))
    assert "hidden size" in read_svg((folder / "contour.svg").read_text("utf-8"))


def test_a_finished_search_is_shown_again_and_nothing_runs(searched):
    folder, _ = searched
    before = (folder / "all.json").read_text("utf-8")
    shown = run("sweep", "--resume", "search", "--workers", 1, "--json", "again.json", folder=folder)
    again = json.loads((folder / "again.json").read_text("utf-8"))
    assert again["rows"] == json.loads(before)["rows"]
    assert "The best trials" in shown


def test_limits_leave_trials_open_and_others_can_join(tmp_path):
    words(tmp_path / "words.txt")
    vary = ["--vary", "hidden_size", "4,6", "--vary", "learning_rate", "0.01,0.03", "--method", "grid"]
    place = ["--workers", 1, "--run-dir", "search", "--tokens", 1]
    longer = ["--max-steps", 3000]  # than the time between two looks at the limits
    shown = run("sweep", *vary, "--pruner", "none", *place, *SMALL, *longer, *TEXT, folder=tmp_path)
    assert "Not done: 1 tokens were trained on" in shown
    assert "--resume" in shown
    shown = run("sweep", "--join", "search", folder=tmp_path)
    assert "is closed: 1 tokens" in shown
    search = Search(open_storage(str(tmp_path / "search/journal.log")), "search")
    search.close("")
    shown = run("sweep", "--join", tmp_path / "search/journal.log", "--name", "search", folder=tmp_path / "search")
    assert "1 more for the search" in shown
    assert states(search) == ["COMPLETE"] * 4


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    words(tmp_path / "words.txt")
    more = ["--method", "grid", "--workers", 1, "--run-dir", "search", *SMALL, *TEXT, "--max-steps", 20000]
    more += ["--epochs", 9999, "--patience", 0]
    command = [sys.executable, "-m", "runner", "sweep", *VARY, *map(str, more)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 100
        while not list(tmp_path.glob("search/trials/*/metrics.jsonl")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=100)[0]
    assert process.returncode == 130
    assert "Stopped, saved. Go on with: python -m runner sweep --resume" in shown
    search = Search(open_storage(str(tmp_path / "search/journal.log")), "search")
    assert states(search) == ["RUNNING", "WAITING"]
    progress = RunDirectory(search.run_directory(0)).load_last().progress
    assert progress["step"] > 0
    assert progress["lines"] == len((search.run_directory(0) / "metrics.jsonl").read_text("utf-8").splitlines())
    assert search.take().trial.number == 0


def test_workers_as_jobs(tmp_path):
    words(tmp_path / "words.txt")
    vary = ["--vary", "hidden_size", "4,6", "--method", "grid", "--executor", "jobs", "--learning-rate", 0.05]
    run("sweep", *vary, "--workers", 1, "--run-dir", "search", *SMALL, *TEXT, folder=tmp_path)
    rows = json.loads((tmp_path / "search/results.json").read_text("utf-8"))["rows"]
    assert sorted(row["state"] for row in rows) in (["done", "done"], ["done", "pruned"])
    assert list((tmp_path / "search/jobs").glob("*_log.out"))


def test_what_is_not_installed_is_named():
    code = "import sys; sys.modules['optuna'] = None; from runner.__main__ import main; sys.exit(main(['sweep']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "sweep needs optuna, not installed here. Install with: pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_shows_no_traceback(tmp_path):
    assert "did you mean model.hidden_size" in run("sweep", "--vary", "hidden_sise", 4, folder=tmp_path, status=2)
