"""Numbers going wrong, in every implementation alike: which steps are left out, which parameter is named, what is left
behind; and a run that goes on."""

import importlib
import json
from pathlib import Path

import limited
import numpy as np
import pytest

from runner.__main__ import main
from runner.memory import is_shortage
from runner.registry import create_model
from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.parameters import parameter_shapes, state_shapes

B, T, V, E, H, K = 3, 5, 19, 4, 6, 4  # V > B T: no table of all tokens is made, which the infinite one would spoil
TINY = ["--hidden-size", "5", "--embedding-size", "3", "--batch-size", "4", "--seq-length", "7", "--device", "cpu"]


def make(impl, dtype="float64", config=None):
    config = config or ModelConfig(cell="gru", hidden_size=H, embedding_size=E)
    model = create_model(impl, config, OptimizerConfig(), V, RuntimeConfig(device="cpu", dtype=dtype))
    random = np.random.default_rng(3)
    model.load_parameters({name: random.normal(0, 0.5, shape) for name, shape in parameter_shapes(config, V).items()})
    return model


def stacked(count, seed=5):
    """Batches of tokens below V - 1."""
    random = np.random.default_rng(seed)
    tokens, targets = (random.integers(0, V - 1, (count, B, T)).astype(np.int32) for _ in range(2))
    return Batch(tokens, targets, np.ones((count, B, T), bool), np.zeros((count, B), bool))


def random_state(model, config):
    random = np.random.default_rng(11)
    return model.load_state({name: random.normal(size=shape) for name, shape in state_shapes(config, B).items()})


def test_a_poisoned_batch_is_as_if_it_were_not_there(impl):
    """Only the third batch reads the last token, whose vector is infinite: the step is left out, the state starts from
    zero behind it, and nothing else differs from a run without that batch."""
    batches, rates = stacked(K), np.array([0.1, 0.2, 0.05, 0.3])
    batches.tokens[2, 1, 3] = V - 1
    left, right = make(impl), make(impl)
    poisoned = left.dump_parameters()
    poisoned["embedding.weight"][V - 1, 2] = np.inf
    config = ModelConfig(cell="gru", hidden_size=H, embedding_size=E)
    for model in (left, right):
        model.load_parameters(poisoned)
    steps = left.train_steps(batches, random_state(left, config), rates)
    assert steps.finite.tolist() == [True, True, False, True]
    assert np.isfinite(steps.gradient_norms).tolist() == steps.finite.tolist()
    assert steps.parameter_norms.shape == (K, len(poisoned))

    state, losses = random_state(right, config), []
    for k in (0, 1, 3):
        state = right.initial_state(B) if k == 3 else state
        one = right.train_steps(Batch(*(each[k : k + 1] for each in batches)), state, rates[k : k + 1])
        state, losses = one.state, [*losses, *one.losses]
    np.testing.assert_allclose(steps.losses[[0, 1, 3]], losses, rtol=1e-13)
    same(left.dump_parameters(), right.dump_parameters())
    slots, step = left.dump_optimizer()
    assert step == right.dump_optimizer()[1] == 3
    same(slots, right.dump_optimizer()[0])
    same(left.dump_state(steps.state), right.dump_state(state))


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_allclose(left[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_a_poisoned_row_of_the_state_is_not_carried_on(impl):
    model, config = make(impl), ModelConfig(cell="gru", hidden_size=H, embedding_size=E)
    arrays = model.dump_state(random_state(model, config))
    arrays["hidden_l0"][1, 4] = np.nan
    before = model.dump_parameters()
    steps = model.train_steps(stacked(1), model.load_state(arrays), np.array([0.1]))
    assert steps.finite.tolist() == [False]
    assert all(np.all(value == 0) for value in model.dump_state(steps.state).values())
    assert all(np.array_equal(value, before[name]) for name, value in model.dump_parameters().items())
    again = model.train_steps(stacked(1), steps.state, np.array([0.1]))
    assert again.finite.tolist() == [True]


def test_one_gradient_overflows_and_is_known(impl):
    """A tanh of zero hands on the decoder's gradients as they are; each is finite, and only the bias adds them up."""
    config = ModelConfig(cell="rnn", hidden_size=H, embedding_size=E)
    model, batches = make(impl, "float32", config), stacked(1)
    parameters = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config, V).items()}
    parameters["decoder.weight"][:, 3] = 3e38
    parameters["decoder.weight"][6, 3] = -3e38
    model.load_parameters(parameters)
    batches.targets[:] = 6
    steps = model.train_steps(batches, model.initial_state(B), np.array([0.1]))
    assert steps.losses[0] == pytest.approx(np.log(V), rel=1e-6)
    assert steps.finite.tolist() == [False]
    broken = [name for name, norm in zip(parameters, steps.parameter_norms[0], strict=True) if not np.isfinite(norm)]
    assert broken == ["rnn.bias_l0"]
    assert steps.parameter_norms[0, 0] == 0 < steps.parameter_norms[0, -1]  # of the embedding, of the decoder's bias
    assert all(np.array_equal(value, parameters[name]) for name, value in model.dump_parameters().items())


def test_a_run_stops_or_goes_on_past_the_bad_step(impl, tmp_path, monkeypatch, capsys):
    """The checkpoint is edited: its numbers are finite, but so large that one row of the next step overflows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 12, "utf-8")
    common = [
        "--impl",
        impl,
        "--corpus",
        "rhyme.txt",
        "--length",
        "5",
        *TINY,
        "--cell",
        "rnn",
        "--nonlinearity",
        "relu",
    ]
    assert main([*common, "--max-steps", "10", "--run-dir", "run"]) == 0  # in the middle of an epoch
    checkpoint = load_checkpoint(tmp_path / "run/last.safetensors")
    made = checkpoint.step
    checkpoint.parameters["rnn.weight_hh_l0"][:, 0] = 0, 2, 2, 2, 2
    checkpoint.state["hidden_l0"][2, 0] = 3e38
    save_checkpoint(tmp_path / "run/last.safetensors", checkpoint)
    before = (tmp_path / "run/last.safetensors").read_bytes()
    capsys.readouterr()

    assert main(["--resume", "run", "--max-steps", "20"]) == 1
    said = capsys.readouterr().err
    assert f"error: Step {made + 1}: the loss is nan, and the first parameter whose gradient is not a" in said
    assert "gradient is not a finite number is embedding.weight. With" in said
    assert "With --resume run --skip-nonfinite, such steps are left out. Lower --learning-rate (0.004)" in said
    assert (tmp_path / "run/last.safetensors").read_bytes() == before
    assert [line["step"] for line in metrics("run") if line["split"] == "train"] == list(range(1, made + 1))

    assert main(["--resume", "run", "--max-steps", "20", "--skip-nonfinite"]) == 0
    assert f"{2 * made} steps in" in (shown := " ".join(capsys.readouterr().out.split()))
    assert "(finished, 1 of them skipped: not finite)" in shown
    lines = metrics("run")
    assert [line["step"] for line in lines if line["split"] == "skipped"] == [made + 1]
    assert next(line["step"] for line in lines if line["split"] == "train" and line["step"] > made) == made + 2
    after = load_checkpoint(tmp_path / "run/last.safetensors")
    assert (after.progress["step"], after.step) == (2 * made, 2 * made - 1)
    assert [after.progress[name] for name in ("skipped", "in_a_row", "skips")] == [1, 0, True]
    config = json.loads((tmp_path / "run/config.json").read_text("utf-8"))
    assert config["result"]["skipped"] == 1
    assert config["skip_nonfinite"] is True


def metrics(folder):
    """The lines of a run, read as strict JSON."""
    with open(f"{folder}/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line, parse_constant=pytest.fail) for line in file]


ENDLESS = {
    "numpy": lambda: np.ones(2**46, np.float32),
    "torch": lambda: importlib.import_module("torch").ones(2**46),
    "jax": lambda: importlib.import_module("jax.numpy").ones(2**46, np.float32).block_until_ready(),
    "tf": lambda: importlib.import_module("tensorflow").ones(2**46),
}
"""2**48 bytes, which no process of today can address."""


def test_the_errors_of_the_frameworks_are_known(impl):
    make(impl, "float32")  # settles the device
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each framework has its own
        ENDLESS[impl]()
    assert is_shortage(caught.value), repr(caught.value)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells there how much memory is held")
def test_the_memory_of_the_host_runs_out_in_torch(tmp_path):
    said = limited.train(tmp_path, "torch", 300)
    assert said.startswith("error: Out of memory. gates and states take 492 MB (--batch-size 256, --seq-length 200, ")
    assert "Checkpoints saved before are kept." in said
    assert load_checkpoint(tmp_path / "run/last.safetensors").progress["step"] == 0
