"""`convert`, with the libraries themselves: every layout there and back, and models trained elsewhere."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from flax import serialization

from runner import convert
from runner.cli import Convert
from runner.sample import model_of
from shared import layouts
from shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from shared.config import CorpusConfig, ModelConfig, OptimizerConfig, RuntimeConfig, TrainingConfig, to_json
from shared.errors import CheckpointError, ConfigError, ParameterError
from shared.parameters import parameter_shapes
from shared.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
V, H, E = 11, 7, 5
SYMBOLS = tuple("abcdefghij\n")
MODELS = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "rnn": {"cell": "rnn", "nonlinearity": "relu", "embedding_activation": "sigmoid"},
    "residual": {"num_layers": 3, "residual": True, "many_to_one": True},
    "one-hot": {"cell": "gru", "embedding_size": 0, "residual": True},
    "tied": {"cell": "rnn", "embedding_size": H, "tied_weights": True, "many_to_one": True},
    "reset before": {"cell": "gru", "gru_reset": "before"},
}
TARGETS = {
    "pt": ("x.pt", "auto"),
    "torch names": ("x.safetensors", "torch"),
    "keras": ("x.keras", "auto"),
    "keras weights": ("x.weights.h5", "auto"),
    "linen": ("x.msgpack", "auto"),
    "linen names": ("x.safetensors", "linen"),
    "nnx": ("x.msgpack", "nnx"),
    "nnx-optimized": ("x.safetensors", "nnx-optimized"),
}


CASES = [(name, target) for name in MODELS for target in ("pt", "keras", "linen")]
CASES += [(name, target) for name in ("lstm", "gru") for target in TARGETS if (name, target) not in CASES]
CASES += [("rnn", "nnx"), ("residual", "keras weights"), ("residual", "torch names")]
# Keras' own variables know NumPy's older ways only.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def libraries():
    """One worker for each library, for all conversions here."""
    with ExitStack() as stack:
        yield convert.Libraries(stack)


@pytest.fixture
def carry(libraries, monkeypatch, tmp_path, capfd):
    """Convert in a folder of its own -> what was said. The workers are elsewhere, hence absolute paths."""
    monkeypatch.setattr(convert, "Libraries", lambda _: libraries)
    monkeypatch.chdir(tmp_path)

    def run(source, target, layout="auto", **options):
        paths = {name: tmp_path / each for name, each in options.items() if isinstance(each, Path)}
        assert convert.run(Convert(tmp_path / source, tmp_path / target, layout, **options | paths)) == 0
        return " ".join(capfd.readouterr().out.split())

    return run


def make(path, dtype=np.float32, zero=(), **options):
    """A checkpoint with random weights."""
    model = ModelConfig(**{"hidden_size": H, "embedding_size": E, "num_layers": 2, **options})
    numbers = np.random.default_rng(1)
    given = {name: numbers.normal(0, 0.5, shape).astype(dtype) for name, shape in parameter_shapes(model, V).items()}
    for name in given:
        if any(part in name for part in zero):
            given[name][:] = 0
    parts = {"model": model, "optimizer": OptimizerConfig(), "training": TrainingConfig(), "corpus": CorpusConfig()}
    config = {name: to_json(part) for name, part in parts.items()}
    save_checkpoint(Path(path), Checkpoint(given, {}, 0, {}, config, Vocabulary(SYMBOLS), {}))
    return load_checkpoint(Path(path))


def logits(path, tokens, impl="numpy"):
    checkpoint = load_checkpoint(Path(path))
    model = model_of(checkpoint, impl, RuntimeConfig(device="cpu", dtype="float64"))
    return model.logits(tokens, model.initial_state(len(tokens)))[0]


def some_tokens(size=V):
    return np.random.default_rng(2).integers(size, size=(4, 9)).astype(np.int32)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_there_and_back_every_bit_stays(carry, name, target):
    file, layout = TARGETS[target]
    dtype = np.float64 if name == "gru" else np.float32
    before = make("a.safetensors", dtype, zero=("bias_hn",) if "nnx" in target else (), **MODELS[name])
    if name == "reset before" and "keras" not in target:
        with pytest.raises(ParameterError, match="resets after the product, this one before"):
            carry("a.safetensors", file, layout)
        assert not Path(file).exists()
        return
    assert "logits of 3 x 16 tokens differ by" in carry("a.safetensors", file, layout)
    carry(file, "b.safetensors", like=Path("a.safetensors"))
    after = load_checkpoint(Path("b.safetensors"))
    assert (after.config, after.vocabulary) == (before.config, before.vocabulary)
    assert {n: e.tobytes() for n, e in after.parameters.items()} == {
        n: e.tobytes() for n, e in before.parameters.items()
    }
    assert {each.dtype for each in after.parameters.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("name", MODELS)
def test_a_keras_model_says_itself_what_it_is(carry, name):
    before = make("a.safetensors", **MODELS[name])
    carry("a.safetensors", "x.keras")
    assert "placeholder" in carry("x.keras", "b.safetensors")
    assert load_checkpoint(Path("b.safetensors")).config["model"] == before.config["model"]


def test_an_lstm_trained_elsewhere(carry):
    """Two layers, both biases not zero, prefixes, within a dictionary with other things."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.Embedding(V, E),
            "lstm": torch.nn.LSTM(E, H, num_layers=2, batch_first=True),
            "fc": torch.nn.Linear(H, V),
        }
    )
    parallel = {f"module.{name}": each for name, each in network.state_dict().items()}
    adam = torch.optim.Adam(network.parameters()).state_dict()
    torch.save({"epoch": 3, "model_state_dict": parallel, "optimizer_state_dict": adam}, "theirs.pt")
    Path("symbols.json").write_text(json.dumps({symbol: token for token, symbol in enumerate(SYMBOLS)}), "utf-8")
    shown = carry("theirs.pt", "ours.safetensors", vocabulary=Path("symbols.json"))
    assert "the sum of two biases, rounded to float32 as the file has it, changes logits by" in shown
    assert "a checkpoint, lstm, 2 layers of 7 units, 11 symbols, float32" in shown
    tokens = some_tokens()
    with torch.no_grad():
        wanted = network["fc"](network["lstm"](network["encoder"](torch.tensor(tokens)))[0]).numpy()
    np.testing.assert_allclose(logits("ours.safetensors", tokens), wanted, rtol=1e-5, atol=1e-6)
    assert load_checkpoint(Path("ours.safetensors")).vocabulary.symbols == SYMBOLS
    carry("theirs.pt", "theirs.keras")
    np.testing.assert_allclose(keras.saving.load_model("theirs.keras")(tokens), wanted, rtol=1e-5, atol=1e-6)


def test_a_keras_model_trained_elsewhere(carry):
    """One-hot windows of a fixed length, dropout, one prediction, softmax; and its bare weights."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    parts = [keras.Input((9, V)), layers.GRU(H, return_sequences=True), layers.Dropout(0.2), layers.GRU(H)]
    model = keras.Sequential([*parts, layers.Dense(V), layers.Activation("softmax")])
    model.set_weights([np.random.default_rng(3).normal(0, 0.5, each.shape) for each in model.get_weights()])
    model.save("theirs.keras")
    model.save_weights("theirs.weights.h5")
    tokens = some_tokens()
    wanted = np.log(model(np.eye(V, dtype=np.float32)[tokens]))
    for file, options in (("theirs.keras", {}), ("theirs.weights.h5", {"many_to_one": True})):
        carry(file, "ours.safetensors", **options)
        found = logits("ours.safetensors", tokens)
        np.testing.assert_allclose(found - np.log(np.exp(found).sum(-1, keepdims=True)), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (keras.layers.Bidirectional(keras.layers.GRU(H, return_sequences=True)), "of class Bidirectional"),
        (keras.layers.LSTM(H, return_sequences=True, activation="relu"), "LSTM with activation='relu'"),
        (keras.layers.LSTM(H, return_sequences=True, go_backwards=True), "go_backwards=True"),
    ],
)
def test_keras_layers_that_no_model_here_has(carry, layer, reason):
    keras.Sequential([keras.Input((None, V)), layer, keras.layers.Dense(V)]).save("theirs.keras")
    with pytest.raises(CheckpointError, match=reason):
        carry("theirs.keras", "ours.safetensors")


def test_a_network_that_does_something_else_is_not_converted(carry):
    """Keras' own network runs, so that what its layers do between them counts: here the input is doubled."""
    inputs = keras.Input((None,), dtype="int32")
    vectors = keras.layers.Embedding(V, E)(inputs) * 2.0
    outputs = keras.layers.Dense(V)(keras.layers.LSTM(H, return_sequences=True)(vectors))
    keras.Model(inputs, outputs).save("theirs.keras")
    with pytest.raises(convert.UnequalError, match=r"Keras .* other logits than NumPy.* Nothing was written"):
        carry("theirs.keras", "ours.safetensors")
    assert not Path("ours.safetensors").exists()


def test_a_mistake_that_undoes_itself_on_the_way_back_is_found(carry, monkeypatch):
    """Gates permuted in both directions: every number comes back, and the layers would compute something else."""
    right = layouts.CELLS["torch", "lstm"]

    def permuted(arrays):
        return {name: each.reshape(4, H, -1)[[1, 0, 2, 3]].reshape(each.shape) for name, each in arrays.items()}

    wrong = layouts.Cell(
        right.fields, lambda each: permuted(right.to_native(each)), lambda each: right.to_canonical(permuted(each))
    )
    monkeypatch.setitem(layouts.CELLS, ("torch", "lstm"), wrong)
    make("a.safetensors")
    Path("x.pt").write_text("what stood here", "utf-8")
    with pytest.raises(convert.UnequalError) as caught:
        carry("a.safetensors", "x.pt")
    assert caught.value.exit_status == 1
    assert Path("x.pt").read_text("utf-8") == "what stood here"


def test_files_that_would_execute_something_are_not_read(carry):
    torch.save(torch.nn.LSTM(E, H), "whole.pt")
    with pytest.raises(CheckpointError, match=r"whole.pt: .*would execute what the file holds.*state_dict\(\)"):
        carry("whole.pt", "ours.safetensors")
    keras.Sequential([keras.Input((None, V)), keras.layers.Lambda(lambda x: x)]).save("lambda.keras")
    with pytest.raises(CheckpointError, match=r"lambda.keras: no model that Keras alone can load"):
        carry("lambda.keras", "ours.safetensors")


@pytest.mark.parametrize("name", ["bad.pt", "bad.keras", "bad.weights.h5", "bad.msgpack", "bad.safetensors"])
def test_damaged_files_are_refused(carry, name):
    Path(name).write_bytes(b"\x81no such file")
    with pytest.raises(CheckpointError, match=name):
        carry(name, "ours.pt" if name.endswith("tensors") else "ours.safetensors")


def test_names_in_a_file_cannot_steer_the_terminal(carry):
    tree = {"a\x1b[31m": {"kernel": np.ones((2, 2), np.float32)}}
    Path("x.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(CheckpointError) as caught:
        carry("x.msgpack", "ours.safetensors")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (("a.safetensors", "b.safetensors"), {}, "would be one, too: copy the file"),
        (("a.safetensors", "b.pt"), {"layout": "linen"}, "--layout linen does not go with .pt, a file of PyTorch"),
        (("a.safetensors", "b.onnx"), {}, "b.onnx: its suffix names no format"),
        (("a.safetensors", "b.pt"), {"many_to_one": True}, "says itself what --many-to-one would say"),
        (("x.pt", "b.keras"), {"vocabulary": Path("v.txt")}, "--vocabulary names the symbols of a checkpoint"),
        (("x.pt", "b.safetensors"), {"vocabulary": Path("v.txt")}, "has 2 symbols, and the model in .*x.pt 11"),
        (("x.pt", "b.safetensors"), {"vocabulary": Path("w.json")}, "must be the numbers from 0 on"),
        (("x.pt", "b.safetensors"), {"vocabulary": Path("none")}, "none cannot be read"),
        (("x.pt", "b.safetensors"), {"nonlinearity": "relu"}, "--nonlinearity belongs to --cell rnn"),
    ],
)
def test_mistakes_are_said(carry, arguments, options, reason):
    make("a.safetensors")
    carry("a.safetensors", "x.pt")
    Path("v.txt").write_text("a\nb\n", "utf-8")
    Path("w.json").write_text('{"a": 1, "b": 2}', "utf-8")
    with pytest.raises((ConfigError, CheckpointError), match=reason):
        carry(*arguments, **options)
    assert not Path(arguments[1]).exists()


def test_the_symbols_can_travel_beside(carry):
    make("a.safetensors")
    carry("a.safetensors", "x.msgpack", write_vocabulary=Path("v.json"))
    carry("x.msgpack", "b.safetensors", vocabulary=Path("v.json"))
    assert load_checkpoint(Path("b.safetensors")).vocabulary.symbols == SYMBOLS


@pytest.mark.parametrize(("cell", "file"), [("lstm", "x.pt"), ("gru", "x.keras"), ("rnn", "x.msgpack")])
def test_through_the_command(tmp_path, cell, file):
    """As a user types it: there, back, and once a text from what came back."""

    def run(*arguments, status=0):
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        words = [sys.executable, "-m", "runner", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=settings, timeout=120)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    before = make(tmp_path / "a.safetensors", cell=cell)
    assert f"{file}: layers of" in run("convert", "a.safetensors", file)
    run("convert", file, "b.safetensors", "--like", "a.safetensors")
    after = load_checkpoint(tmp_path / "b.safetensors")
    assert {n: e.tobytes() for n, e in after.parameters.items()} == {
        n: e.tobytes() for n, e in before.parameters.items()
    }
    if cell == "lstm":
        texts = [run("sample", "--checkpoint", f"{name}.safetensors", "--length", "20") for name in "ab"]
        assert texts[0].partition("\n")[2] == texts[1].partition("\n")[2]
        (tmp_path / file).write_bytes(b"damaged")
        assert f"error: {file}" in run("convert", file, "c.safetensors", status=2)
