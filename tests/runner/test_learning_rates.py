"""Schedules in training: what the log says, stopping within an epoch, going on for longer, plateau."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import runner.train
from runner import compare
from runner.cli import Compare, Train
from runner.reporting.records import TIMED
from runner.resume import resumed
from shared.checkpoint import load_checkpoint
from shared.config import CorpusConfig, ModelConfig, RuntimeConfig, ScheduleConfig, TrainingConfig
from shared.errors import ConfigError
from shared.schedules import learning_rates

BASE = 0.01
COSINE = ScheduleConfig("cosine", schedule_unit="step", minimum_rate=1e-4, warmup_steps=5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a short text, in which a stack holds 3 steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.training.run.stack_size", lambda *_: 3)
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 60, "utf-8")
    return tmp_path


def options(name, schedule, **training):
    sizes = {"batch_size": 8, "seq_length": 16, "learning_rate": BASE, "patience": 0, "epochs": 4}
    return Train(
        model=ModelConfig(hidden_size=7, embedding_size=5),
        training=TrainingConfig(**{**sizes, **training}),
        schedule=schedule,
        corpus=CorpusConfig("rhyme.txt"),
        runtime=RuntimeConfig(device="cpu", dtype="float64"),
        run_dir=Path(name),
        length=1,
    )


def logged(name, split="train"):
    """The lines of a run's log, without what is timed."""
    lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines if line["split"] == split]


def rates_of(name):
    return [line["learning_rate"] for line in logged(name)]


def stop_after(monkeypatch, stacks):
    """SIGTERM once so many stacks are trained."""

    class Stop:
        left = stacks

        @property
        def requested(self):
            self.left -= 1
            return 15 if self.left <= 0 else 0

    @contextmanager
    def interruption():
        yield Stop()

    monkeypatch.setattr(runner.train, "interruption", interruption)


def test_every_step_is_logged_with_its_own_rate(folder):
    assert runner.train.run(options("run", COSINE)) == 0
    found = rates_of("run")
    config = json.loads(Path("run/config.json").read_text("utf-8"))
    stored = ScheduleConfig(**config["schedule"])
    assert stored.schedule_steps == len(found)
    assert found == learning_rates(stored, BASE, range(len(found)), 1).tolist()
    assert len(set(found)) == len(found)
    assert "learning rate" in Path("run/curves.svg").read_text("utf-8")


def test_a_schedule_changes_what_is_learned(folder):
    runner.train.run(options("constant", ScheduleConfig(), epochs=1))
    for kind in ("exponential", "step"):
        runner.train.run(options(kind, ScheduleConfig(kind, decay_rate=0.5, decay_steps=4), epochs=1))
    losses = {name: [line["loss"] for line in logged(name)] for name in ("constant", "exponential", "step")}
    assert losses["constant"][:5] == losses["step"][:5]
    assert losses["constant"][5] != losses["step"][5]
    assert losses["constant"][2] != losses["exponential"][2]


@pytest.mark.parametrize(
    "schedule",
    [
        COSINE,
        ScheduleConfig("cosine", restart_period=1, restart_factor=2, minimum_rate=1e-4),
        ScheduleConfig("plateau", decay_rate=0.5, plateau_patience=0),
    ],
    ids=lambda each: f"{each.schedule}-{each.schedule_unit}",
)
def test_stopped_within_an_epoch_and_resumed_is_never_stopped(folder, monkeypatch, schedule):
    assert runner.train.run(options("whole", schedule, learning_rate=0.3)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert runner.train.run(options("parts", schedule, learning_rate=0.3)) == 143
    stopped = load_checkpoint(Path("parts/last.safetensors")).progress
    assert stopped["epoch"] >= 1
    assert stopped["index"] > 0
    assert runner.train.run(resumed(["--resume", "parts"])) == 0
    assert logged("whole") == logged("parts")
    whole, parts = (load_checkpoint(Path(name) / "last.safetensors") for name in ("whole", "parts"))
    assert all(np.array_equal(value, parts.parameters[name]) for name, value in whole.parameters.items())


def test_a_longer_run_does_not_stretch_its_schedule(folder):
    runner.train.run(options("run", COSINE, max_steps=20))
    before = rates_of("run")
    assert runner.train.run(resumed(["--resume", "run", "--max-steps", "30"])) == 0
    after = rates_of("run")
    assert after[:20] == before
    assert after[20:] == [1e-4] * 10


def test_plateau_lowers_the_rate_where_the_held_out_loss_stalls(folder):
    """At a rate this high the loss goes up and down, so that every rule has its occasion."""
    schedule = ScheduleConfig("plateau", decay_rate=0.5, plateau_patience=0, minimum_rate=0.1)
    runner.train.run(options("run", schedule, learning_rate=3.0, epochs=12))
    best, expected = np.inf, [3.0]
    for loss in (line["loss"] for line in logged("run", "held-out")):
        expected.append(expected[-1] if loss < best else max(0.1, expected[-1] / 2))
        best = min(best, loss)
    epochs = [line["epoch"] for line in logged("run")]
    assert rates_of("run") == [expected[epoch - 1] for epoch in epochs]
    assert 1 < len(set(expected[:12])) < 12


@pytest.mark.parametrize("flag", [["--minimum-rate", "0.1"], ["--schedule-steps", "99"], ["--warmup-steps", "7"]])
def test_resume_refuses_another_schedule(folder, flag):
    runner.train.run(options("run", COSINE, max_steps=2))
    with pytest.raises(ConfigError, match=f"{flag[0]} cannot change with --resume"):
        resumed(["--resume", "run", *flag])


def test_a_minimum_above_the_rate_is_refused_before_anything_is_written(folder):
    with pytest.raises(ConfigError, match=r"--minimum-rate 0\.5 is above --learning-rate 0\.01"):
        runner.train.run(options("run", ScheduleConfig("plateau", minimum_rate=0.5)))
    assert not Path("run").exists()


def test_compare_refuses_plateau():
    with pytest.raises(ConfigError, match="--schedule plateau follows each run's own held-out loss"):
        compare.run(Compare(schedule=ScheduleConfig("plateau")))
