"""A checkpoint comes back bit for bit, or is refused with a reason."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save

from shared.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from shared.errors import CheckpointError, UserError
from shared.vocabulary import Vocabulary, build_vocabulary

GROUPS = ("parameters", "slots", "state")


def example() -> Checkpoint:
    numbers = np.random.default_rng(3)
    shapes = {"rnn.weight_ih_l0": (8, 3), "rnn.bias_l0": (8,), "decoder.weight": (5, 2)}
    parameters = {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Checkpoint(
        parameters=parameters,
        slots={f"exp_avg.{name}": numbers.normal(size=shape) for name, shape in shapes.items()},
        step=41,
        state={"hidden_l0": numbers.normal(size=(4, 2)).astype(np.float32)},
        config={"corpus": {"corpus": "诗.txt"}, "training": {"learning_rate": 0.002}},
        vocabulary=build_vocabulary(['"红\\\n\t山', "\x7f\u2028"], 1, poems=True),
        progress={"epoch": 2, "index": 7, "best_loss": None},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "last.safetensors"
    save_checkpoint(target, example())
    return target


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    for group in GROUPS:
        mine, other = getattr(left, group), getattr(right, group)
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].dtype == other[name].dtype
            assert mine[name].shape == other[name].shape
            assert mine[name].tobytes() == other[name].tobytes()
    for rest in ("step", "config", "vocabulary", "progress"):
        assert getattr(left, rest) == getattr(right, rest)


def take_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def assemble(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refused(path: Path, content: bytes) -> str:
    """The message with which the file is refused."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_comes_back(path: Path) -> None:
    assert_same(load_checkpoint(path), example())


def test_loaded_arrays_can_be_written(path: Path) -> None:
    load_checkpoint(path).parameters["rnn.bias_l0"][0] = 1.0


def test_names_in_the_file_are_as_promised(path: Path) -> None:
    names = set(load_file(path))
    assert {"rnn.weight_ih_l0", "optimizer.exp_avg.rnn.weight_ih_l0", "state.hidden_l0"} < names
    metadata = take_apart(path.read_bytes())[0]["__metadata__"]
    assert metadata["format"] == FORMAT == "rosetta-rnn/1"
    assert json.loads(metadata["config"])["corpus"] == {"corpus": "诗.txt"}
    assert "诗" in metadata["config"]
    assert Vocabulary.from_json(json.loads(metadata["vocabulary"])) == example().vocabulary


def test_transposed_arrays_are_not_scrambled(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    checkpoint = replace(example(), parameters={"a": weight.T, "b": weight[:, ::2]})
    save_checkpoint(tmp_path / "t", checkpoint)
    loaded = load_checkpoint(tmp_path / "t").parameters
    np.testing.assert_array_equal(loaded["a"], weight.T)
    np.testing.assert_array_equal(loaded["b"], weight[:, ::2])


finite = {kind: hnp.from_dtype(np.dtype(kind), allow_nan=False, allow_infinity=False) for kind in ("f4", "f8")}
arrays = st.sampled_from(("f4", "f8")).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=3, max_side=4), elements=finite[kind])
)
json_values = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["embedding.weight", "rnn.bias_l0", "decoder.bias"]), arrays, min_size=1),
    arrays,
    st.text(min_size=1),
    json_values,
    st.integers(0, 2**40),
)
def test_any_checkpoint_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    parameters: dict[str, np.ndarray],
    state: np.ndarray,
    text: str,
    progress: dict[str, Any],
    step: int,
) -> None:
    vocabulary = build_vocabulary([text], 1, poems=True)
    slots = {f"exp_avg.{name}": -each for name, each in parameters.items()}
    checkpoint = Checkpoint(parameters, slots, step, {"cell_l0": state}, {"text": text}, vocabulary, progress)
    target = tmp_path_factory.mktemp("any") / "c.safetensors"
    save_checkpoint(target, checkpoint)
    assert_same(load_checkpoint(target), checkpoint)


def test_every_truncation_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        refused(path, content[:length])
    refused(path, content[:-1])


def test_every_flipped_bit_is_refused(path: Path) -> None:
    content = path.read_bytes()
    choose = random.Random(5)
    header_end = 8 + int.from_bytes(content[:8], "little")
    places = [*range(header_end), *choose.sample(range(header_end, len(content)), 100)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << choose.randrange(8)
        refused(path, bytes(flipped))


def test_appended_bytes_are_refused(path: Path) -> None:
    assert "appended" in refused(path, path.read_bytes() + b"\0" * 4)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read the checkpoint .*gone: No such file"):
        load_checkpoint(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="Cannot read"):
        load_checkpoint(tmp_path)


def test_a_header_of_any_declared_size_allocates_nothing(path: Path) -> None:
    assert "cut short" in refused(path, (2**63).to_bytes(8, "little") + b"{}")
    with path.open("wb") as file:
        file.write((4_000_001).to_bytes(8, "little"))
        file.truncate(4_000_100)
    with pytest.raises(CheckpointError, match="at most 4000000"):
        load_checkpoint(path)


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff\xfe", b'"text"', b"[" * 100_000, b"1" * 5000])
def test_a_header_that_is_no_object_is_refused(path: Path, header: bytes) -> None:
    assert "not a checkpoint" in refused(path, assemble(header, b""))


def test_repeated_names_are_refused(path: Path) -> None:
    header, data = take_apart(path.read_bytes())
    entry = json.dumps(header["rnn.bias_l0"])
    twice = json.dumps(header)[:-1] + f', "rnn.bias_l0": {entry}}}'
    assert "'rnn.bias_l0' stands twice" in refused(path, assemble(twice.encode(), data))
    metadata = json.dumps(header["__metadata__"])[:-1] + ', "format": "rosetta-rnn/1"}'
    rest = json.dumps({name: each for name, each in header.items() if name != "__metadata__"})
    doubled = f'{{"__metadata__": {metadata}, {rest[1:]}'
    assert "'format' stands twice" in refused(path, assemble(doubled.encode(), data))


def test_another_safetensors_file_is_named_as_such(path: Path) -> None:
    others = [save({"a": np.zeros(3)}), save({"a": np.zeros(3, np.int8)}, {"format": "pt"}), assemble({}, b"")]
    for content in others:
        assert f"this is a safetensors file, but not a {FORMAT} checkpoint" in refused(path, content)


@pytest.mark.parametrize("name", ["config", "progress", "sha256", "step", "vocabulary"])
def test_missing_metadata_is_named(path: Path, name: str) -> None:
    header, data = take_apart(path.read_bytes())
    del header["__metadata__"][name]
    assert f"the metadata lacks {name}" in refused(path, assemble(header, data))


def test_metadata_that_is_no_string_is_refused(path: Path) -> None:
    header, data = take_apart(path.read_bytes())
    header["__metadata__"]["step"] = 41
    assert "else than strings" in refused(path, assemble(header, data))
    header["__metadata__"]["step"] = "\ud800"
    assert "hash" in refused(path, assemble(header, data))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "BF16"}, "F32 and F64 only"),
        ({"dtype": ["F32"]}, "F32 and F64 only"),
        ({"shape": [2**62, 2**62]}, "do not hold"),
        ({"shape": [-8]}, "lists of sizes"),
        ({"shape": [True, 8]}, "lists of sizes"),
        ({"shape": [0, 10**30], "data_offsets": [0, 0]}, "lists of sizes"),
        ({"shape": [1] * 99}, "lists of sizes"),
        ({"shape": [8.0]}, "lists of sizes"),
        ({"data_offsets": [0]}, "lists of sizes"),
        ({"data_offsets": "ab"}, "lists of sizes"),
        ({"data_offsets": [32, 0]}, "do not hold"),
        ({"data_offsets": [10**6, 10**6 + 32]}, "begins at byte|ends at"),
        ({"extra": 1}, "not described by"),
    ],
)
def test_wrong_entries_are_refused(path: Path, change: dict[str, Any], reason: str) -> None:
    header, data = take_apart(path.read_bytes())
    header["rnn.bias_l0"] |= change
    message = refused(path, assemble(header, data))
    assert any(part in message for part in reason.split("|"))


def test_overlapping_tensors_are_refused(path: Path) -> None:
    header, data = take_apart(path.read_bytes())
    header["rnn.bias_l1"] = header["rnn.bias_l0"]
    assert "begins at byte" in refused(path, assemble(header, data))


def test_changed_contents_are_refused(path: Path) -> None:
    header, data = take_apart(path.read_bytes())
    assert "hash" in refused(path, assemble(header, bytes([data[0] ^ 1]) + data[1:]))
    header["__metadata__"]["progress"] = '{"epoch": 3}'
    assert "hash" in refused(path, assemble(header, data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    checkpoint = example()
    checkpoint.parameters["rnn.bias_l0"][3] = value
    save_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(CheckpointError, match=r"rnn\.bias_l0 holds infinite"):
        load_checkpoint(tmp_path / "c")


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shared.files.os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, replace(example(), step=42))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
