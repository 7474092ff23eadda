"""One run in a directory at a time: another says so, touches nothing, and a process that dies leaves nothing locked."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner import rundir, train
from runner.cli import parse
from runner.resume import resumed
from runner.rundir import RunDirectory, is_blank
from shared.errors import ConfigError, UserError
from shared.files import WriteError

ROOT = Path(__file__).parents[2]
SMALL = ["--hidden-size", "8", "--embedding-size", "4", "--batch-size", "4", "--seq-length", "8", "--device", "cpu"]
LONG = ["--epochs", "100000", "--patience", "0", "--checkpoint-seconds", "0"]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 20, "utf-8")
    return ["--corpus", "rhyme.txt", "--length", "5"]


@pytest.fixture
def running(tmp_path, corpus):
    """A run that goes on until the test ends, stopped in its tracks so that its files stay as they are."""
    words = [sys.executable, "-m", "runner", *corpus, *SMALL, *LONG, "--run-dir", "run"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=tmp_path, env=settings, stdout=subprocess.DEVNULL)
    until(lambda: (tmp_path / "run/metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def until(true, process):
    end = time.monotonic() + 60
    while not true():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def files(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def second(*arguments):
    """Another process in the same directory: its status and what it says."""
    words = [sys.executable, "-m", "runner", *arguments]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def test_a_second_run_says_so_and_touches_nothing(running, corpus):
    before = files(Path("run"))
    status, shown = second("--resume", "run")
    assert (status, shown) == (2, "error: Another run is at work in run: wait until it ends, or stop it.\n")
    status, shown = second(*corpus, *SMALL, "--run-dir", "run")
    assert status == 2
    assert "exists already" in shown
    assert files(Path("run")) == before
    assert ".lock" in before


def test_a_killed_run_leaves_nothing_locked(running):
    running.kill()
    running.wait()
    assert Path("run/.lock").exists()
    Path("run/.last.safetensors.abcdefgh.part").write_bytes(b"half a checkpoint")
    assert train.run(resumed(["--resume", "run", "--epochs", "1"])) == 0
    assert not list(Path("run").glob(".*"))


def test_two_that_start_at_once(corpus, monkeypatch):
    """Both find the folder free; the one that comes second to the lock leaves the other alone."""
    options = parse([*corpus, *SMALL, "--max-steps", "2", "--run-dir", "run"])
    Path("run").mkdir()
    with RunDirectory(Path("run")).locked(new=True), pytest.raises(UserError, match="Another run is at work in run"):
        train.run(options)
    assert is_blank(Path("run"))
    create = RunDirectory.create

    def slow(given):
        folder = create(given)
        if given.training.max_steps == 2:
            assert train.run(parse([*corpus, *SMALL, "--max-steps", "1", "--run-dir", "run"])) == 0
        return folder

    monkeypatch.setattr(RunDirectory, "create", slow)
    with pytest.raises(UserError, match="run exists already"):
        train.run(options)
    assert len(Path("run/metrics.jsonl").read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".config.json.abcdefgh.part")])
def test_killed_before_anything_was_written(corpus, left):
    """The same command works again."""
    Path("run").mkdir()
    for name in left:
        Path("run", name).touch()
    assert train.run(parse([*corpus, *SMALL, "--max-steps", "1", "--run-dir", "run"])) == 0
    assert not list(Path("run").glob(".*"))


def test_killed_before_the_first_checkpoint(corpus):
    """Resuming is beginning."""
    words = [*corpus, *SMALL, "--max-steps", "3", "--run-dir"]
    for name in ("whole", "parts"):
        assert train.run(parse([*words, name])) == 0
    for path in Path("parts").iterdir():
        if path.name != "config.json":
            path.unlink()
    assert train.run(resumed(["--resume", "parts"])) == 0
    assert Path("whole/samples.txt").read_bytes() == Path("parts/samples.txt").read_bytes()
    Path("parts/last.safetensors").unlink()
    before = files(Path("parts"))
    with pytest.raises(UserError, match=r"no last\.safetensors there"):
        train.run(resumed(["--resume", "parts"]))
    assert files(Path("parts")) == before


def test_a_file_of_mine_is_no_leftover(corpus):
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="run exists already"):
        train.run(parse([*corpus, *SMALL, "--run-dir", "run"]))
    assert files(Path("run")).keys() == {"thesis.txt"}


@pytest.mark.parametrize(("number", "refused"), [(errno.ENOSYS, False), (errno.EACCES, True)])
def test_where_the_disk_knows_no_locks(corpus, monkeypatch, capsys, number, refused):
    def acquire(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rundir.FileLock, "acquire", acquire)
    options = parse([*corpus, *SMALL, "--max-steps", "1", "--run-dir", "run"])
    if refused:
        with pytest.raises(WriteError, match="Cannot lock run: Permission denied"):
            train.run(options)
    else:
        assert train.run(options) == 0
        assert "knows no locks" in capsys.readouterr().out


def test_a_finished_run_says_so_and_writes_its_samples_again(corpus, capsys):
    assert train.run(parse([*corpus, *SMALL, "--max-steps", "3", "--run-dir", "run"])) == 0
    before = files(Path("run"))
    for name in ("samples.txt", "report.html", "curves.svg"):
        Path("run", name).unlink()
    capsys.readouterr()
    assert train.run(resumed(["--resume", "run"])) == 0
    assert "It has ended (finished)" in capsys.readouterr().out
    after = files(Path("run"))
    assert after.keys() == before.keys()
    for name in ("samples.txt", "metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert after[name][0] == before[name][0]


@pytest.mark.parametrize("flags", [["--schedule", "step"], ["--schedule=step"], ["--no-tied-weights", "--cell", "rnn"]])
def test_what_cannot_change_is_said_whatever_else_would_be_wrong(corpus, flags):
    cosine = ["--schedule", "cosine", "--restart-period", "1", "--forget-bias", "1"]
    assert train.run(parse([*corpus, *SMALL, *cosine, "--max-steps", "1", "--run-dir", "run"])) == 0
    with pytest.raises(
        ConfigError, match=r"--(schedule|cell, --tied-weights) cannot change with --resume: the run in run would"
    ):
        resumed(["--resume", "run", *flags])
    with pytest.raises(ConfigError, match="--epochs must be at least 1"):
        resumed(["--resume", "run", "--epochs", "0"])


def test_the_seconds_between_checkpoints_may_change(corpus):
    assert train.run(parse([*corpus, *SMALL, "--max-steps", "1", "--run-dir", "run"])) == 0
    assert resumed(["--resume", "run"]).checkpoint_seconds == 60
    assert resumed(["--resume", "run", "--checkpoint-seconds", "7"]).checkpoint_seconds == 7
    for wrong in ("-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="--checkpoint-seconds must be 0"):
            parse(["--checkpoint-seconds", wrong])
