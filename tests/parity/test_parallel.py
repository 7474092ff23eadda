"""Workers that share each batch compute what one computes: loss, gradients, parameters, optimizer and state, in every
framework. And the mistakes that are easily made in sharing are such as these tests see."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import REQUIRED

from runner.cli import parse
from runner.parallel import free_ports
from runner.registry import create_model, open_team
from runner.workers import Worker
from shared.checkpoint import load_checkpoint
from shared.config import ModelConfig, OptimizerConfig, ParallelConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ConfigError, ImplementationError
from shared.initializers import initial_parameters
from shared.parameters import state_shapes

ROOT = Path(__file__).parents[2]
FRAMEWORKS = [impl for impl in REQUIRED if impl != "numpy"]
BOUND = 1e-10
K, B, T, V = 20, 6, 7, 11
RATES = np.linspace(2e-3, 1e-3, K)
SEED = 5


class Case(NamedTuple):
    engine: Any
    model: ModelConfig
    poems: bool


DEEP = {"num_layers": 2, "embedding_size": 4, "hidden_size": 5, "dropout": 0.3}
CASES = {
    "lstm, carried state": Case("scratch", ModelConfig(cell="lstm", embedding_size=4, hidden_size=5), poems=False),
    "gru, poems, dropout": Case("fused", ModelConfig(cell="gru", **DEEP), poems=True),
    "lstm of the framework, last step only": Case(
        "native", ModelConfig(cell="lstm", hidden_size=5, embedding_size=0, many_to_one=True), poems=True
    ),
}
MISTAKEN = Case("scratch", ModelConfig(cell="rnn", **DEEP), poems=False)
TURNS = 4
"""Parts of the training, of one size, so that each framework compiles it once."""
OPTIMIZER = OptimizerConfig(optimizer="adam", clip_norm=0.4)


def batches_of(case: Case) -> Batch:
    """Rows of very different lengths; of poems, the last batch has none for the second worker. A state that is carried
    ends in one row now and then."""
    random = np.random.default_rng(7)
    tokens, targets = random.integers(0, V, (2, K, B, T), dtype=np.int32)
    lengths = random.integers(1, T + 1, (K, B)) * np.array([1, 1, 1, 1, 0, 1])
    lengths[-1, B // 2 :] = 0
    reset = np.full((K, B), case.poems)
    reset[0], reset[K // 2, 4] = True, True
    mask = np.arange(T) < lengths[..., None]
    return Batch(tokens, targets[..., -1] if case.model.many_to_one else targets, mask, reset)


def part(batches: Batch, steps: slice) -> Batch:
    return Batch(*(each[steps] for each in batches))


class Process:
    """A process that belongs to a team, and computes alone, too."""

    def __init__(self, impl: str, parallel: ParallelConfig) -> None:
        self._impl = impl
        self._team = open_team(impl, parallel, RuntimeConfig(device="cpu"))

    def _model(self, case: Case, together: bool) -> Any:
        runtime = RuntimeConfig(engine=case.engine, device="cpu", dtype="float64", threads=1)
        team = self._team if together else None
        model = create_model(self._impl, case.model, OPTIMIZER, V, runtime, SEED, team)
        model.load_parameters(initial_parameters(case.model, V, 1))
        return model

    def gradients(self, case: Case, together: bool) -> dict[str, np.ndarray]:
        """Of one batch in the middle of training, from a state that is not zero."""
        model, random = self._model(case, together), np.random.default_rng(3)
        state = {key: random.normal(size=shape) for key, shape in state_shapes(case.model, B).items()}
        one = Batch(*(each[K // 2] for each in batches_of(case)))
        loss, gradients, after = model.loss_and_gradients(one, model.load_state(state), step=4)
        d_state = {f"gradient of {key}": value for key, value in gradients.initial_state.items()}
        return {"loss": np.array(loss), **gradients.parameters, **d_state, **model.dump_state(after)}

    def train(self, case: Case, turns: list[bool]) -> dict[str, np.ndarray]:
        """Some steps together or alone, in turn; whoever goes on takes over everything. How it ends."""
        batches, held, losses = batches_of(case), None, []
        for turn, together in enumerate(turns):
            model = self._model(case, together)
            state = model.initial_state(B)
            if held:
                model.load_parameters(held[0])
                model.load_optimizer(*held[1])
                state = model.load_state(held[2])
            now = slice(turn * K // TURNS, (turn + 1) * K // TURNS)
            made = model.train_steps(part(batches, now), state, RATES[now])
            assert made.finite.all()
            losses += [made.losses, made.gradient_norms]
            held = model.dump_parameters(), model.dump_optimizer(), model.dump_state(made.state)
        assert held is not None
        parameters, (slots, step), state = held
        evaluated = model.evaluate(part(batches, now), model.load_state(state))
        scores = np.array([evaluated.nats, evaluated.tokens, evaluated.hits])
        told = {"losses": np.concatenate(losses[::2]), "norms": np.concatenate(losses[1::2]), "evaluation": scores}
        return {**parameters, **slots, **state, **told, "step": np.array(step)}

    def mistaken(self, mistake: str) -> dict[str, np.ndarray]:
        """`gradients` with a mistake in sharing."""
        with pytest.MonkeyPatch.context() as patch:
            MISTAKES[mistake](patch, self._impl)
            forget_programs(self._impl)
            found = self.gradients(MISTAKEN, together=True)
        forget_programs(self._impl)
        return found

    def told(self, content: bytes) -> bytes:
        """What the first process gives."""
        return self._team.first(content)


def forget_programs(impl: str) -> None:
    """What was compiled stays as it was when its functions are replaced."""
    if impl == "jax":
        importlib.import_module("impl_jax.model")._gradients.clear_cache()
    if impl == "tf":
        importlib.import_module("impl_tf.arrays").compiled.cache_clear()


def patched_mean(patch: pytest.MonkeyPatch, impl: str, workers: int) -> None:
    """The mean over a worker's own tokens, divided by the workers."""
    model = importlib.import_module(f"impl_{impl}.model")
    right = model.mean_nats
    patch.setattr(model, "mean_nats", lambda logits, targets, mask, count: right(logits, targets, mask) / workers)


def mean_of_means(patch: pytest.MonkeyPatch, impl: str) -> None:
    """Every worker's mean weighs the same, however many tokens it has."""
    patched_mean(patch, impl, workers=2)


def unscaled(patch: pytest.MonkeyPatch, impl: str) -> None:
    """The sum of means."""
    patched_mean(patch, impl, workers=1)


def others_state(patch: pytest.MonkeyPatch, impl: str) -> None:
    """A worker goes on from the other's state."""
    if impl == "tf":
        team = importlib.import_module("impl_tf.parallel").Team
        right = team._rows
        patch.setattr(team, "_rows", lambda self, x, k: right(self, x, k if isinstance(x, Batch) else 1 - k))
        return
    model = importlib.import_module(f"impl_{impl}.model")
    plain, swap = model.zero_rows, swapped[impl]
    patch.setattr(model, "zero_rows", lambda state, reset: plain(swap(state), reset))


def swapped_torch(state: Any) -> Any:
    from impl_torch.model import map_state

    distributed = importlib.import_module("torch.distributed")
    team = importlib.import_module("impl_torch.parallel").Team(distributed.get_rank(), 2)
    return map_state(lambda rows: 0 * rows + team.whole(rows.detach()).chunk(2)[1 - team.rank], state)


def swapped_jax(state: Any) -> Any:
    jax = importlib.import_module("jax")
    return jax.lax.ppermute(state, "workers", [(0, 1), (1, 0)])


swapped: dict[str, Callable[[Any], Any]] = {"torch": swapped_torch, "jax": swapped_jax}


def same_masks(patch: pytest.MonkeyPatch, impl: str) -> None:
    """Every worker drops what the first rows of the batch drop."""
    module = importlib.import_module(f"impl_{impl}.dropout")
    right = module.keep_mask
    patch.setattr(module, "keep_mask", lambda outputs, k, dropout: right(outputs, k, dropout._replace(worker=0)))


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch, str], None]] = {
    "mean of means": mean_of_means,
    "unscaled": unscaled,
    "the other's state": others_state,
    "the same masks": same_masks,
}


class Group:
    """All processes of a team of two; they make the same calls."""

    def __init__(self, impl: str) -> None:
        if impl == "torch":
            hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
            self._workers = [Worker(f"torch {k}", Process, impl, ParallelConfig(hosts=hosts, rank=k)) for k in (0, 1)]
        else:
            self._workers = [Worker(impl, Process, impl, ParallelConfig(data_parallel=2))]

    def call(self, method: str, *arguments: Any) -> Any:
        """What all of them return alike."""
        return self.same(self.each(method, *[arguments] * len(self._workers)))

    def each(self, method: str, *arguments: tuple[Any, ...]) -> list[Any]:
        """What each returns of its own arguments."""
        for worker, own in zip(self._workers, arguments, strict=True):
            worker.start(method, *own)
        return [worker.result() for worker in self._workers]

    def same(self, found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The results of one, if the others have the same bits."""
        for other in found[1:]:
            assert other.keys() == found[0].keys()
            assert all(np.array_equal(other[name], value) for name, value in found[0].items())
        return found[0]

    @property
    def size(self) -> int:
        """Processes."""
        return len(self._workers)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


@pytest.fixture(scope="module", params=FRAMEWORKS)
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """Two workers of a framework."""
    made = Group(request.param)
    yield made
    made.close()


def difference(mine: dict[str, np.ndarray], yours: dict[str, np.ndarray]) -> float:
    """The largest, relative to the magnitude of each array."""
    assert mine.keys() == yours.keys()
    return max(float(np.abs(mine[name] - value).max() / (np.abs(value).max() or 1)) for name, value in yours.items())


@pytest.mark.parametrize("name", CASES)
def test_two_workers_are_one(group: Group, name: str) -> None:
    """Loss, gradients and state of one batch; parameters, slots, state, losses and norms of 20 steps; so, too, where
    two workers become one and that one two again."""
    case = CASES[name]
    assert difference(group.call("gradients", case, True), group.call("gradients", case, False)) <= BOUND
    together, alone, mixed = (
        group.call("train", case, turns) for turns in ([True] * 4, [False] * 4, [True, False, False, True])
    )
    assert difference(together, alone) <= BOUND
    assert difference(mixed, alone) <= BOUND
    assert int(alone["step"]) == K


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_sharing_show(group: Group, mistake: str) -> None:
    """The tests' own test."""
    wrong, right = group.call("mistaken", mistake), group.call("gradients", MISTAKEN, False)
    assert difference(wrong, right) > 1e-3


def test_the_first_is_heard(group: Group) -> None:
    """Every process gets what the first gives, nothing included."""
    for content in (b"", "\u96ea".encode() * 999):
        found = group.each("told", *[(content if k == 0 else b"not this",) for k in range(group.size)])
        assert found == [content] * group.size


def run(*arguments: Any, folder: Path) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "runner", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=settings, timeout=120)
    assert done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_a_run_with_two_workers_one_and_two(tmp_path: Path) -> None:
    """The command line: NumPy did it all alone."""
    sizes = ["--hidden-size", 12, "--num-layers", 2, "--embedding-size", 7, "--batch-size", 8, "--seq-length", 16]
    how = ["--dropout", 0.2, "--dtype", "float64", "--length", 4, "--no-statistics", "--device", "cpu", "--threads", 1]
    run("--impl", "numpy", "--max-steps", 24, "--run-dir", "alone", *sizes, *how, folder=tmp_path)
    run("--impl", "torch", "--max-steps", 11, "--run-dir", "r", "--data-parallel", 2, *sizes, *how, folder=tmp_path)
    run("--resume", "r", "--data-parallel", 1, "--max-steps", 16, folder=tmp_path)
    run("--resume", "r", "--data-parallel", 2, "--max-steps", 24, folder=tmp_path)
    ends = [load_checkpoint(tmp_path / name / "last.safetensors") for name in ("r", "alone")]
    assert [each.step for each in ends] == [24, 24]
    for kind in ("parameters", "slots", "state"):
        assert difference(*(getattr(each, kind) for each in ends)) <= BOUND, kind
    lines = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("r", "alone")]
    assert lines[0] == lines[1] + 2  # it was evaluated at each end


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc tells which processes a process has started")
def test_a_worker_that_is_lost(tmp_path: Path) -> None:
    """SIGKILL for the second: the first names it, ends with 1, and what it saved is there."""
    words = [sys.executable, "-m", "runner", "--impl", "torch", "--data-parallel", "2", "--run-dir", "r"]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*words, "--threads", "1"], cwd=tmp_path, env=settings, **pipes) as first:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        while not (tmp_path / "r/metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.1)
        commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()}
        second = next(pid for pid, command in commands.items() if "spawn_main" in command)
        os.kill(second, signal.SIGKILL)
        _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert b"error: worker 1: the worker died (signal SIGKILL" in said
    assert b"go on with --resume" in said
    load_checkpoint(tmp_path / "r/last.safetensors")


def test_what_cannot_be_shared() -> None:
    """Each error says what to do."""
    with pytest.raises(ConfigError, match=r"--batch-size 32 cannot be shared equally by 5 workers.*2, 4, 8, 16, 32"):
        parse(["train", "--data-parallel", "5"])
    with pytest.raises(ConfigError, match="--rank belongs to --hosts"):
        parse(["train", "--rank", "1"])
    with pytest.raises(ConfigError, match="host:port"):
        parse(["train", "--hosts", "here,there:80"])
    with pytest.raises(ConfigError, match="--rank must be below 2"):
        parse(["train", "--hosts", "here:80,there:80", "--rank", "2"])
    with pytest.raises(ConfigError, match="leave that out"):
        parse(["train", "--hosts", "here:80,there:80", "--data-parallel", "4"])
    with pytest.raises(ImplementationError, match=r"NumPy has none.*--impl torch"):
        open_team("numpy", ParallelConfig(data_parallel=2), RuntimeConfig())
