"""A study as a user runs it: its table and picture, and that it goes on where it stopped, however it was stopped."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.console import console
from runner.study_plan import load_study
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPE = """[options]
corpus = "rhyme.txt"
hidden_size = 12
embedding_size = 6
batch_size = 8
seq_length = 16
epochs = 40
patience = 0
length = 10
"""
STUDY = """title = "Rates <b> & \\u4e2d"
recipe = "small.toml"
columns = ["held_out_loss", "training_loss", "steps"]
[picture]
kind = "lines"
split = "train"
value = "loss"
over = "step"
[[variants]]
name = "slow"
learning_rate = 1e-3
[[variants]]
name = "GRU, fast"
cell = "gru"
learning_rate = 1e-2
[[variants]]
name = "two layers"
num_layers = 2
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 60, "utf-8")
    (tmp_path / "small.toml").write_text(RECIPE, "utf-8")
    (tmp_path / "rates.toml").write_text(STUDY, "utf-8")
    return tmp_path


def begin(folder, *words):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"}
    command = [sys.executable, "-m", "runner", "study", "rates.toml", "--device", "cpu", "--threads", "1", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=settings, **pipes)


def run(folder, *words, status=0):
    process = begin(folder, *words)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == status, shown
    assert "Traceback" not in shown
    return shown


def rows(folder, name="study-rates"):
    return json.loads((folder / "runs" / name / "study.json").read_text("utf-8"))["runs"]


def figures(folder, name="study-rates"):
    kept = ("held_out_loss", "training_loss", "steps", "gradient_norm")
    return {row["name"]: {key: row["figures"][key] for key in kept} for row in rows(folder, name)}


def metrics(folder, place):
    return next((folder / "runs/study-rates").glob(f"{place:02}-*/metrics.jsonl"), None)


def wait_for(happened):
    """Until something is there, 60 seconds at most."""
    ends = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.01)


def begun_second(folder):
    """Whether the second run has been training for a while."""
    path = metrics(folder, 2)
    return path is not None and path.read_bytes().count(b"\n") > 30


def test_a_killed_study_goes_on_and_repeats_no_run(folder):
    process = begin(folder)
    wait_for(lambda: begun_second(folder))
    process.kill()
    process.communicate()
    time.sleep(0.5)  # the worker dies with its parent
    stopped_at = metrics(folder, 2).read_bytes().count(b"\n")
    assert [row["status"] for row in rows(folder)] == ["finished", "waiting", "waiting"]
    first = [path for path in (folder / "runs/study-rates").glob("01-*/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in first}
    time.sleep(0.3)
    assert metrics(folder, 2).read_bytes().count(b"\n") == stopped_at, "no worker outlives the study"

    shown = run(folder)
    assert "1 of 3 runs have ended already" in shown
    assert {path: path.stat().st_mtime_ns for path in first} == before
    log = next((folder / "runs/study-rates").glob("02-*.log")).read_text("utf-8")
    assert "Going on at step" in log, "the run in the middle was not begun anew"
    assert [row["status"] for row in rows(folder)] == ["finished"] * 3
    assert "3 of 3 runs have ended already" in run(folder)

    run(folder, "--run-dir", "runs/whole", "--workers", "2")
    assert figures(folder, "whole") == figures(folder), "stopped or not, the same figures to the last bit"


def test_ctrl_c_saves_and_the_same_command_goes_on(folder):
    process = begin(folder)
    wait_for(lambda: begun_second(folder))
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "the same command goes on from here" in shown
    log = next((folder / "runs/study-rates").glob("02-*.log"))
    assert "saved. Go on with" in log.read_text("utf-8")
    run(folder)
    assert "Going on at step" in log.read_text("utf-8")
    assert {row["figures"]["steps"] for row in rows(folder)} == {rows(folder)[0]["figures"]["steps"]}


def test_table_picture_and_files(folder, monkeypatch, capsys):
    shown = run(folder, "--max-steps", "4", "--workers", "2", "--json", "table.json")
    assert re.search(r"held-out loss +training loss of the last epoch +steps", shown)
    assert len(re.findall(r"(?m)^(?:slow|GRU, fast|two layers) +\d\.\d{4} +\d\.\d{4} +4$", shown)) == 3
    study = folder / "runs/study-rates"
    assert json.loads((folder / "table.json").read_text("utf-8"))["runs"] == rows(folder)
    picture = (study / "study.svg").read_text("utf-8")
    assert all(name in picture for name in ("slow", "GRU, fast", "two layers", "Rates &lt;b&gt; &amp; 中"))
    assert (study / "study.png").read_bytes().startswith(b"\x89PNG")
    assert all(row["command"].startswith("python -m runner --impl numpy ") for row in rows(folder))
    shown = run(folder, "--max-steps", "4", "--markdown")
    assert (
        "|  | held-out loss | training loss of the last epoch | steps |\n| --- | ---: | ---: | ---: |\n| slow |"
        in shown
    )
    monkeypatch.chdir(folder)
    assert main(["study", "rates.toml", "--max-steps", "4", "--markdown", "--device", "cpu", "--threads", "1"]) == 0
    monkeypatch.setattr(console, "stderr", False)
    assert capsys.readouterr().out.count("\n|") == 4, "nothing but the table"
    shown = run(folder, "--max-steps", "5", status=2)
    assert "holds a study of other runs" in shown
    assert "--run-dir" in shown


def test_seconds_marks_and_another_recipe(folder):
    (folder / "small.toml").write_text(whole := RECIPE + "held_out = 0.0\n", "utf-8")
    (folder / "large.toml").write_text(whole.replace("hidden_size = 12", "hidden_size = 20"), "utf-8")
    marks = 'over = "seconds"\nlog_over = true\nmarks = [{ name = "nobody\'s <i>", at = 0.5, value = 3.0 }]'
    text = STUDY.replace('over = "step"', marks).replace(
        'name = "two layers"', 'name = "larger"\nrecipe = "large.toml"'
    )
    (folder / "rates.toml").write_text(text, "utf-8")
    run(folder, "--max-steps", "3", "--workers", "2")
    assert ["--hidden-size 20" in row["command"] for row in rows(folder)] == [False, False, True]
    picture = (folder / "runs/study-rates/study.svg").read_text("utf-8")
    assert "nobody's &lt;i&gt;" in picture
    assert "seconds" in picture
    lines = [json.loads(line) for line in metrics(folder, 1).read_text("utf-8").splitlines()]
    trained = [line["seconds"] for line in lines if line["split"] == "train"]
    assert trained == sorted(trained)
    assert lines[-1]["split"] == "held-out"
    assert trained[-1] == pytest.approx(lines[-1]["seconds"], abs=2e-3)
    (folder / "rates.toml").write_text(text.replace('split = "train"', 'split = "held-out"'), "utf-8")
    run(folder, "--max-steps", "3")  # only drawn again
    assert "training text's loss" in html.unescape((folder / "runs/study-rates/study.svg").read_text("utf-8"))
    assert metrics(folder, 1).read_text("utf-8").count("\n") == len(lines)


def test_bars_and_temperatures(folder):
    bars = STUDY.replace(
        'kind = "lines"\nsplit = "train"\nvalue = "loss"\nover = "step"', 'kind = "bars"\nmetric = "steps"'
    )
    (folder / "rates.toml").write_text(bars, "utf-8")
    run(folder, "--max-steps", "3", "--workers", "3")
    assert "two layers" in (folder / "runs/study-rates/study.svg").read_text("utf-8")
    one = (
        'statistics = "last"\n'
        + bars.replace('"bars"\nmetric = "steps"', '"temperatures"').partition('[[variants]]\nname = "GRU')[0]
    )
    (folder / "rates.toml").write_text(one, "utf-8")
    shown = run(folder, "--max-steps", "3", "--run-dir", "runs/warm")
    assert re.search(r"(?m)^slow +\d\.\d{4} +\d\.\d{4} +3$", shown)
    assert re.search(r"slow, held-out text +\d", shown)
    assert re.search(r"slow, temperature 1\.5 +20,0", shown)
    assert "word validity" in (folder / "runs/warm/study.svg").read_text("utf-8")


def test_a_run_that_diverges_is_a_result_and_one_that_fails_is_not(folder):
    broken = STUDY.replace("learning_rate = 1e-3", 'learning_rate = 3e38\noptimizer = "sgd"\nclip_norm = 0.0').replace(
        "num_layers = 2", 'engine = "native"'
    )
    (folder / "rates.toml").write_text(broken, "utf-8")
    for _ in range(2):
        shown = run(folder, "--max-steps", "5", status=1)
        assert [row["status"] for row in rows(folder)] == ["diverged", "finished", "failed"]
        assert "two layers: NumPy has no recurrent layers" in shown
    assert "2 of 3 runs have ended already" in shown


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "learning_rate = 1e-3",
            "learning_rat = 1e-3",
            "variant 'slow': 'learning_rat' is unknown. Did you mean learn",
        ),
        ("learning_rate = 1e-3", "learning_rate = 'x'", "variant 'slow': learning_rate must be float"),
        ("learning_rate = 1e-3", "learning_rate = -1.0", "variant 'slow': --learning-rate must be a positive"),
        ("small.toml", "smal.toml", "neither a recipe nor a file called 'smal.toml'"),
        ('"training_loss"', '"training_los"', "columns: 'training_los' is unknown. Did you mean training_loss"),
        (
            'kind = "lines"',
            'kind = "line"',
            "kind: 'line' is unknown. Did you mean lines? Allowed: bars, lines, temperatures",
        ),
        ('value = "loss"', 'value = "lose"', "value: 'lose' is unknown. Did you mean loss"),
        (
            'over = "step"',
            'over = "seconds"\nmarks = [{ name = "x", at = 1 }]',
            "at of a mark must be of type float, got 1",
        ),
        ('over = "step"', 'over = "step"\nmarks = [{ place = 1.0 }]', "marks: 'place' is unknown"),
        ('name = "GRU, fast"', 'name = "GRU"\nrecipe = "smal.toml"', "neither a recipe nor a file called 'smal.toml'"),
        ('name = "GRU, fast"', 'name = "slow"', "needs variants, each of another name"),
        ('name = "GRU, fast"', "", "name of variant 2 must be of type str, got None"),
        ("title =", "titel =", "'titel' is unknown. Did you mean title"),
    ],
)
def test_a_study_with_a_mistake_says_what_is_allowed(folder, monkeypatch, capsys, old, new, said):
    monkeypatch.chdir(folder)
    (folder / "rates.toml").write_text(STUDY.replace(old, new, 1), "utf-8")
    assert main(["study", "rates.toml"]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_study_that_is_not_there():
    with pytest.raises(ConfigError, match="Did you mean optimizers"):
        load_study("optimisers")


def test_the_list(capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    assert main(["study"]) == 0
    shown = capsys.readouterr().out
    assert "time-machine-tuning" in shown
    assert "Five optimizers" in shown
