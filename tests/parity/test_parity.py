"""All four implementations, each in a process of its own, through the commands that a user types."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REQUIRED

from runner.compare import train_float32, train_float64
from runner.participants import Field
from runner.workers import Worker, WorkerError
from shared.errors import UserError

ROOT = Path(__file__).parents[2]
ALL = ["numpy", "torch", "jax", "tf"]


def run(*arguments, folder, status=0):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    words = [sys.executable, "-m", "runner", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=settings, timeout=280)
    assert done.returncode == status, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_this_environment_holds_all_four():
    assert list(REQUIRED) == ALL


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A small comparison."""
    folder = tmp_path_factory.mktemp("compared")
    sizes = ["--hidden-size", 24, "--embedding-size", 10, "--batch-size", 16, "--seq-length", 24, "--max-steps", 60]
    shown = run("compare", "--run-dir", "page", "--json", "out.json", *sizes, folder=folder)
    return folder, shown, json.loads((folder / "out.json").read_text("utf-8"))


def test_compare_finds_all_in_agreement(compared):
    _, shown, result = compared
    assert result["ok"]
    assert "all agree" in shown
    assert [each["impl"] for each in result["participants"]] == ALL
    assert not result["failures"]


def test_compare_proves_before_it_times(compared):
    _, _, result = compared
    assert {row["impl"] for row in result["check"]} == set(ALL)
    assert all(row["ok"] for row in result["check"])
    assert len(result["timing"]) == 2 * len(ALL)
    for row in result["timing"]:
        assert row["same_work"]
        assert 0 < row["low"] <= row["tokens_per_second"] <= row["high"]


def test_the_float32_runs_end_together(compared):
    _, _, result = compared
    losses = [each["loss"] for each in result["training"]]
    assert (max(losses) - min(losses)) / min(losses) < 1e-3
    assert all(len(each["losses"]) == 60 for each in result["training"])
    assert losses[0] < result["training"][0]["losses"][0] - 0.5


def test_the_float64_runs_have_the_same_parameters_and_texts(compared):
    _, _, result = compared
    assert all(each["points"][-1]["max_relative_difference"] <= 1e-10 for each in result["growth"])
    assert result["samples_identical"]
    texts = {(each["temperature"], each["text"]) for each in result["samples"]}
    assert len(texts) == 5


def test_compare_leaves_one_page_that_needs_nothing_else(compared):
    folder, _, _ = compared
    page = (folder / "page/comparison.html").read_text("utf-8")
    assert all(name in page for name in ("NumPy", "PyTorch", "JAX", "TensorFlow")) or all(name in page for name in ALL)
    assert "<script" not in page
    assert "python -m runner compare" in page


def test_every_implementation_opens_every_checkpoint(tmp_path):
    """The same text from the same seed, whoever trained."""
    sizes = ["--hidden-size", 20, "--embedding-size", 0, "--cell", "gru", "--max-steps", 4, "--length", 8]
    run(
        "--impl",
        "jax",
        "--corpus",
        "starter-quatrains",
        "--seq-length",
        40,
        "--run-dir",
        "run",
        *sizes,
        folder=tmp_path,
    )
    texts, scores = set(), []
    for impl in ALL:
        common = ["--impl", impl, "--checkpoint", "run", "--dtype", "float64"]
        texts.add(run("sample", *common, "--prompt", "月", "--length", 60, folder=tmp_path).partition("\n")[2])
        run("evaluate", *common, "--json", f"{impl}.json", folder=tmp_path)
        scores.append(json.loads((tmp_path / f"{impl}.json").read_text("utf-8"))["loss"])
    assert len(texts) == 1
    assert max(scores) - min(scores) < 1e-12


class Fragile:
    """An object whose methods fail in every way."""

    def answer(self):
        return 42

    def wrong(self):
        raise ValueError("a defect")

    def mistaken(self):
        raise UserError("a mistake")

    def noisy(self):
        print("garbage on standard output")
        return "done"

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self):
        signal.pause()


def test_a_worker_tells_what_happened_to_it():
    with Worker("it", Fragile) as worker:
        assert worker.call("answer") == 42
        assert worker.call("noisy") == "done"
        with pytest.raises(UserError, match="a mistake"):
            worker.call("mistaken")
        with pytest.raises(WorkerError, match=r"it: ValueError: a defect \(.*test_parity\.py:\d+\)"):
            worker.call("wrong")
        assert worker.call("answer") == 42
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.call("die")


def test_a_worker_that_hangs_is_ended():
    with Worker("it", Fragile) as worker:
        worker.start("sleep")
        with pytest.raises(WorkerError, match="no answer"):
            worker.result(timeout=0.5)
        assert not worker._process.is_alive()


def test_the_others_go_on_when_one_dies():
    field = Field.__new__(Field)
    field.failures, field.workers = [], {name: Worker(name, Fragile) for name in ("one", "two", "three")}
    os.kill(field.workers["two"]._process.pid, signal.SIGKILL)
    assert field.each("answer") == {"one": 42, "three": 42}
    assert [failure["impl"] for failure in field.failures] == ["two"]
    for worker in field.workers.values():
        worker.close()


@pytest.mark.parametrize("part", [train_float32, train_float64])
def test_a_part_survives_the_death_of_all(part):
    field = Field.__new__(Field)
    field.failures, field.workers = [], {"one": Worker("one", Fragile)}
    field.workers["one"].call("answer")
    os.kill(field.workers["one"]._process.pid, signal.SIGKILL)
    result = {"settings": {"steps": 10}}
    part(field, None, result)
    assert not any(result.get(name) for name in ("training", "growth"))
    assert [failure["impl"] for failure in field.failures] == ["one"]
