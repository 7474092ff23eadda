"""Stopped anywhere and resumed is never stopped: between any two stacks, at any checkpoint, in any part of the end."""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import kill_and_resume as script
import numpy as np
import pytest

import runner.train
import runner.training.run
from runner import rundir
from runner.cli import parse
from runner.experiment import stacks
from runner.resume import resumed
from runner.rundir import RunDirectory
from shared.batching import StreamBatches
from shared.checkpoint import load_checkpoint

OPTIONS = [
    *["--corpus", "rhyme.txt", "--hidden-size", "7", "--embedding-size", "5", "--num-layers", "2", "--dropout", "0.3"],
    *["--batch-size", "4", "--seq-length", "16", "--epochs", "2", "--length", "5", "--device", "cpu"],
    *["--schedule", "cosine", "--restart-period", "5", "--schedule-unit", "step", "--patience", "0"],
]
STACK = 3
"""Steps of a stack; an epoch has 8 steps, so its last stack is smaller."""
STOPS = 6
"""Stacks of the run."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the undisturbed run already lies, in whole/run."""
    monkeypatch.setattr("runner.training.run.stack_size", lambda *_: STACK)
    monkeypatch.setattr("runner.report.write_run_report", lambda run: run / "report.html")  # half of such a run's time
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rhyme.txt").write_text("the cat sat on the mat and the rat ran.\n" * 14, "utf-8")
    monkeypatch.chdir(tmp_path / "whole")
    assert train() == 0
    assert sum(line["split"] == "train" for line in script.logged(Path("run"))) == 16
    monkeypatch.chdir(tmp_path / "parts")
    return tmp_path


def train(*more):
    return runner.train.run(parse([*OPTIONS, "--run-dir", "run", *more]))


def resume(*more):
    return runner.train.run(resumed(["--resume", "run", *more]))


def same(folder):
    assert script.differences(folder / "whole", folder / "parts") == []


@contextmanager
def stopped_after(monkeypatch, count):
    """SIGTERM while the count-th stack is trained."""
    left = iter(range(count - 1, -100, -1))
    train_steps = runner.training.run.Run.advance

    def advance(self, *arguments):
        train_steps(self, *arguments)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(runner.training.run.Run, "advance", advance)
        yield


@pytest.mark.parametrize("count", range(1, STOPS + 1))
def test_stopped_after_any_stack(folder, monkeypatch, count):
    """The last one of an epoch and of the run, too: what is evaluated there is evaluated once, and not left out."""
    with stopped_after(monkeypatch, count):
        assert train() == 143
    assert load_checkpoint(Path("run/last.safetensors")).progress["step"] == [3, 6, 8, 11, 14, 16][count - 1]
    assert resume() == 0
    same(folder)


def test_stopped_and_told_to_end_there(folder, monkeypatch):
    """--max-steps below what is done: evaluated where it stands, and finished."""
    with stopped_after(monkeypatch, 2):
        train()
    assert not Path("run/best.safetensors").exists()
    assert resume("--max-steps", "2") == 0
    lines = script.logged(Path("run"))
    assert (lines[-1]["split"], lines[-1]["step"], len(lines)) == ("held-out", 6, 7)
    assert resume() == 0
    assert script.logged(Path("run")) == lines


class Died(BaseException):
    """As a process dies: nothing catches it."""


def dying(function, count):
    """The function, but the count-th call dies: before it has done anything."""
    left = iter(range(count - 1, -1000, -1))

    def call(*arguments, **named):
        if next(left) == 0:
            raise Died
        return function(*arguments, **named)

    return call


@pytest.mark.parametrize("count", range(1, 9))
def test_dies_instead_of_writing_any_checkpoint(folder, monkeypatch, count):
    """The first is written before the first step; at the end of an epoch `best` is written and then `last`."""
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "save_checkpoint", dying(rundir.save_checkpoint, count))
        with pytest.raises(Died):
            train("--checkpoint-seconds", "0.000001")
    assert Path("run/last.safetensors").exists() == (count > 1)
    assert resume() == 0
    same(folder)


@pytest.mark.parametrize("place", ["write_config", "load_best", "write_samples", "add_result"])
def test_dies_in_any_part_of_the_beginning_and_the_end(folder, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, place, dying(getattr(RunDirectory, place), 1))
        with pytest.raises(Died):
            train()
    assert (train() if place == "write_config" else resume()) == 0
    same(folder)


@pytest.mark.parametrize(("seconds", "steps"), [(0, [0, 8, 16]), (2, [0, 6, 8, 14, 16]), (9, [0, 8, 16])])
def test_saved_as_often_as_asked(folder, monkeypatch, seconds, steps):
    """Of a run whose stacks take a second each; not twice at the end of an epoch, where it is saved anyway."""
    ticks, saved, save = iter(range(1000)), [], RunDirectory.save
    monkeypatch.setattr(runner.training.run.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(
        RunDirectory,
        "save",
        lambda self, checkpoint, best: (saved.append(checkpoint.step), save(self, checkpoint, best)),
    )
    assert train("--checkpoint-seconds", str(seconds)) == 0
    assert saved == steps
    same(folder)


def test_stacks_begin_where_they_would_have():
    batches = StreamBatches(np.arange(12 * 3 * 2 + 1) % 7, 2, 3)
    assert len(batches) == 12
    for start in range(12):
        found = list(stacks(batches, 0, start, 11, 4))
        edges = [edge for edge in (0, 4, 8, 11) if edge > start]
        assert [len(each.tokens) for each in found] == np.diff([start, *edges]).tolist()[: len(found)]
        tokens = [batch for each in found for batch in each.tokens]
        assert np.array_equal(tokens, [batches.batch(0, index).tokens for index in range(start, 11)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the script that nobody disturbed."""
    folder = script.folder_with_texts(tmp_path_factory.mktemp("numpy"), "whole", seed=1)
    return script.undisturbed("numpy", "gru-poems", folder, epochs=3)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_first(tmp_path, whole, number, status):
    """A real process, and what is saved is all that was done."""
    folder = script.folder_with_texts(tmp_path, "parts", seed=1)
    process = script.start([*whole.words, "--checkpoint-seconds", "0"], folder)
    moment, run = script.at_line(whole.lines // 3), folder / "run"
    while process.poll() is None and not moment(run):
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(60) == status
    assert "saved. Go on with: python -m runner --resume run" in (folder / "log").read_text("utf-8")
    assert script.look(run) == script.Kill("training", 0)
    assert 0 < len(script.logged(run)) < whole.lines
    assert script.disturbed(whole, folder, "0", []) == []
    assert script.differences(whole.folder, folder) == []


def test_the_script_sees_what_differs(folder):
    """One number of the log, one bit of an array, one letter of a text."""
    assert train() == 0
    run = Path("run")
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    other = json.dumps(json.loads(lines[-1]) | {"loss": 1.0}) + "\n"
    (run / "metrics.jsonl").write_text("".join([*lines[:-1], other]))
    assert script.differences(folder / "whole", folder / "parts") == ["metrics.jsonl"]
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "samples.txt").write_text((run / "samples.txt").read_text("utf-8").replace("temperature 0.5", "Temperature"))
    last = load_checkpoint(run / "last.safetensors")
    last.slots["exp_avg.decoder.bias"].view(np.uint32)[0] ^= 1
    RunDirectory(run).save(last, best=False)
    wrong = ["last: slots exp_avg.decoder.bias", "samples.txt"]
    assert script.differences(folder / "whole", folder / "parts") == wrong


def test_the_script_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys, whole):
    path = tmp_path / "figures.json"
    path.write_text('{"torch": {"kills": 7}}', "utf-8")
    monkeypatch.setattr(script, "DESIGNS", {"gru-poems": script.DESIGNS["gru-poems"]})
    monkeypatch.setattr(script, "undisturbed", lambda *_: whole)
    words = ["kill_and_resume.py", "--impl", "numpy", "--seed", "1", "--json", str(path), "--times", "1"]
    monkeypatch.setattr(sys, "argv", words)
    assert script.main() == 0
    found = json.loads(path.read_text("utf-8"))
    assert found["numpy"]["kills"] >= 1
    assert found["numpy"]["runs_that_differ"] == 0
    assert found["torch"] == {"kills": 7}
    first = capsys.readouterr().out.splitlines()
    assert script.main() == 0
    assert capsys.readouterr().out.splitlines() == first[-1:]
