"""A run that moves from framework to framework, through checkpoint files, ends where it would have ended had it never
moved: parameters, optimizer, recurrent state; and so does a run that a user resumes elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import REQUIRED

from runner.experiment import Experiment, prepare, stacks
from runner.registry import create_model
from runner.workers import Worker
from shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from shared.config import (
    CorpusConfig,
    Dtype,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
    from_json,
    to_json,
)
from shared.initializers import initial_parameters
from shared.optimizers import slot_shapes
from shared.parameters import parameter_shapes, state_shapes
from shared.schedules import learning_rates

ROOT = Path(__file__).parents[2]
TRAINING = TrainingConfig(batch_size=6, seq_length=12, learning_rate=2e-3, seed=3)
SCHEDULE = ScheduleConfig(
    "cosine", restart_period=9, restart_factor=2, minimum_rate=1e-4, schedule_unit="step", warmup_steps=4
)
PART = 10
"""Steps between two moves; one number, so that each framework compiles its training once."""
BOUNDS: dict[Dtype, float] = {"float64": 1e-9, "float32": 40 * 2e-5}
"""float32: each step may turn the rounding of a small gradient into 2e-5 of what adam or rmsprop moves (the bound of
`check` for training)."""


class Run(NamedTuple):
    model: ModelConfig
    optimizer: OptimizerConfig


RUNS = {
    "lstm": Run(
        ModelConfig(cell="lstm", hidden_size=14, num_layers=2, embedding_size=9, dropout=0.3),
        OptimizerConfig(optimizer="adam"),
    ),
    "gru": Run(
        ModelConfig(cell="gru", hidden_size=13, embedding_size=8),
        OptimizerConfig(optimizer="rmsprop", centered=True, rmsprop_momentum=0.6, alpha=0.9, epsilon=1e-6),
    ),
}


class Trainer:
    """An implementation in its own process, which knows a run by its checkpoint only."""

    def __init__(self, impl: str) -> None:
        self._impl = impl
        self._experiment: Experiment = prepare(CorpusConfig(), TRAINING, ModelConfig())

    def go_on(self, source: Path, target: Path, dtype: Dtype) -> None:
        """Open a checkpoint, train `PART` steps more, and write another."""
        before = load_checkpoint(source)
        config, start = before.config, before.progress["step"]
        options = from_json(ModelConfig, config["model"]), from_json(OptimizerConfig, config["optimizer"])
        runtime = RuntimeConfig(device="cpu", dtype=dtype)
        model = create_model(self._impl, *options, len(before.vocabulary), runtime, TRAINING.seed)
        model.load_parameters(before.parameters)
        model.load_optimizer(before.slots, before.step)
        every = len(self._experiment.training)
        (batches,) = stacks(self._experiment.training, 0, start, start + PART, PART)
        rates = learning_rates(SCHEDULE, TRAINING.learning_rate, range(start, start + PART), every)
        steps = model.train_steps(batches, model.load_state(before.state), rates)
        parts = model.dump_parameters(), *model.dump_optimizer(), model.dump_state(steps.state)
        save_checkpoint(target, Checkpoint(*parts, config, before.vocabulary, {"step": start + PART}))


@pytest.fixture(scope="module")
def trainers() -> Iterator[dict[str, Worker]]:
    """Every implementation, ready."""
    workers = {impl: Worker(impl, Trainer, impl) for impl in REQUIRED}
    yield workers
    for worker in workers.values():
        worker.close()


def beginning(path: Path, run: Run, dtype: Dtype) -> Path:
    """The checkpoint of a run before its first step."""
    vocabulary = prepare(CorpusConfig(), TRAINING, ModelConfig()).vocabulary
    shapes = parameter_shapes(run.model, len(vocabulary))
    parts = (
        initial_parameters(run.model, len(vocabulary), TRAINING.seed),
        {name: np.zeros(shape) for name, shape in slot_shapes(run.optimizer, shapes).items()},
        0,
        {name: np.zeros(shape) for name, shape in state_shapes(run.model, TRAINING.batch_size).items()},
    )
    config = {"model": to_json(run.model), "optimizer": to_json(run.optimizer)}
    rounded = [{k: v.astype(dtype) for k, v in each.items()} if isinstance(each, dict) else each for each in parts]
    save_checkpoint(path, Checkpoint(*rounded, config, vocabulary, {"step": 0}))
    return path


def through(trainers: dict[str, Worker], impls: Any, start: Path, dtype: Dtype) -> Path:
    """The run from a checkpoint on, a part in each of the implementations -> its last checkpoint."""
    path = start
    for impl in impls:
        target = path.with_name(f"{path.stem}-{impl}.safetensors")
        trainers[impl].call("go_on", path, target, dtype)
        path = target
    return path


def largest_difference(first: Path, second: Path) -> float:
    """Of any parameter, slot or state, relative to each tensor's magnitude."""
    left, right = load_checkpoint(first), load_checkpoint(second)
    assert (left.step, left.progress) == (right.step, right.progress)
    assert left.step > 0
    found = []
    for mine, yours in ((left.parameters, right.parameters), (left.slots, right.slots), (left.state, right.state)):
        assert mine.keys() == yours.keys()
        found += [float(np.abs(mine[name] - yours[name]).max() / np.abs(yours[name]).max()) for name in yours]
    return max(found)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_moves_is_one_that_never_did(trainers: Any, tmp_path: Path, name: str, dtype: Dtype) -> None:
    """40 steps, ten in each of the four."""
    start = beginning(tmp_path / "moved.safetensors", RUNS[name], dtype)
    stayed = beginning(tmp_path / "stayed.safetensors", RUNS[name], dtype)
    moved, stayed = through(trainers, REQUIRED, start, dtype), through(trainers, ["numpy"] * 4, stayed, dtype)
    assert load_checkpoint(stayed).step == 40
    difference = largest_difference(moved, stayed)
    print(f"{name} {dtype}: {difference:.1e}")
    assert difference <= BOUNDS[dtype]


@pytest.mark.parametrize("name", RUNS)
def test_every_ordered_pair(trainers: Any, tmp_path: Path, name: str) -> None:
    """20 steps in float64: ten in the one, ten in the other."""
    start = beginning(tmp_path / "run.safetensors", RUNS[name], "float64")
    stayed = through(trainers, ["numpy", "numpy"], start, "float64")
    pairs = list(permutations(REQUIRED, 2))
    assert len(pairs) == 12
    for first, second in pairs:
        moved = through(trainers, [first, second], start, "float64")
        assert largest_difference(moved, stayed) <= BOUNDS["float64"], (first, second)


@pytest.mark.parametrize("forgotten", ["slots", "step", "state"])
def test_what_is_not_handed_over_shows(trainers: Any, tmp_path: Path, forgotten: str) -> None:
    """The test's own test."""
    start = beginning(tmp_path / "run.safetensors", RUNS["lstm"], "float64")
    half = through(trainers, ["torch"], start, "float64")
    whole = load_checkpoint(half)
    lost = (
        {name: np.zeros_like(value) for name, value in getattr(whole, forgotten).items()} if forgotten != "step" else 0
    )
    poor = tmp_path / "poor.safetensors"
    parts = {**vars(whole), forgotten: lost}
    save_checkpoint(poor, Checkpoint(**parts))
    ends = [through(trainers, ["numpy"], each, "float64") for each in (half, poor)]
    left, right = (load_checkpoint(each).parameters for each in ends)
    assert max(np.abs(left[name] - right[name]).max() / np.abs(right[name]).max() for name in left) > 1e-5


def run(*arguments: Any, folder: Path) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "runner", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=settings, timeout=120)
    assert done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_resuming_in_another_implementation(tmp_path: Path) -> None:
    """The command line: trained in PyTorch, resumed in JAX; NumPy did it all alone."""
    sizes = ["--hidden-size", 12, "--num-layers", 2, "--embedding-size", 7, "--batch-size", 8, "--seq-length", 16]
    how = ["--dropout", 0.2, "--dtype", "float64", "--length", 4, "--no-statistics", "--device", "cpu"]
    run("--impl", "numpy", "--max-steps", 24, "--run-dir", "alone", *sizes, *how, folder=tmp_path)
    run("--impl", "torch", "--max-steps", 11, "--run-dir", "moved", *sizes, *how, folder=tmp_path)
    run("--resume", "moved", "--impl", "jax", "--max-steps", 24, folder=tmp_path)
    ends = [load_checkpoint(tmp_path / name / "last.safetensors") for name in ("moved", "alone")]
    assert [each.step for each in ends] == [24, 24]
    for part in ("parameters", "slots", "state"):
        mine, yours = (getattr(each, part) for each in ends)
        assert mine.keys() == yours.keys()
        for name, value in yours.items():
            assert np.abs(mine[name] - value).max() <= 1e-9 * np.abs(value).max(), name
