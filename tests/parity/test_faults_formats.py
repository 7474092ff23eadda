"""Files of libraries as an enemy would make them: `convert` executes nothing in them, and refuses or understands each
with a message of its own, in no more memory than the file deserves. Nobody can tell whether the numbers in them were
changed: they hold no hash."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from runner import convert
from runner.cli import Convert
from runner.workers import WorkerError
from shared.checkpoint import Checkpoint, save_checkpoint
from shared.config import (
    CorpusConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    to_json,
)
from shared.errors import UserError
from shared.initializers import initial_parameters
from shared.vocabulary import Vocabulary

FILES = ("x.pt", "x.keras", "x.weights.h5", "x.msgpack", "torch.safetensors", "linen.safetensors")
COUNT = 40
"""Spoiled files of each format."""
V = 11


@pytest.fixture(scope="module")
def libraries() -> Iterator[convert.Libraries]:
    with ExitStack() as stack:
        yield convert.Libraries(stack)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, libraries: convert.Libraries) -> Path:
    """One model in every format."""
    folder = tmp_path_factory.mktemp("formats")
    parts = (OptimizerConfig(), ScheduleConfig(), TrainingConfig(), CorpusConfig())
    config = {type(each).__name__.removesuffix("Config").lower(): to_json(each) for each in parts}
    model = ModelConfig("gru", 7, embedding_size=5)
    parameters = {name: each.astype(np.float32) for name, each in initial_parameters(model, V, 3).items()}
    parameters["rnn.bias_hn_l0"] += np.float32(0.5)
    config["model"] = to_json(model)
    vocabulary = Vocabulary(tuple("abcdefghij\n"))
    save_checkpoint(folder / "c", Checkpoint(parameters, {}, 0, {}, config, vocabulary, {}))
    (folder / "c").rename(folder / "c.safetensors")
    source = convert.read(Convert(folder / "c.safetensors", folder / "x.pt"), libraries)
    for name in FILES:
        options = Convert(
            folder / "c.safetensors", folder / name, layout=name.split(".")[0] if "safe" in name else "auto"
        )
        convert.write_layers(folder / name, convert.layout_of(options), source, libraries)
    return folder


def opened(path: Path, libraries: convert.Libraries) -> str:
    """What `convert` says of a file, "" where it takes it. WorkerError, which no file may cause, passes through."""
    try:
        convert.read(Convert(path, path.with_name("new.safetensors")), libraries)
    except WorkerError:
        raise
    except UserError as error:
        return str(error)
    return ""


def spoiled(content: bytes, choose: random.Random) -> bytes:
    """Bytes changed, lost, gained or moved."""
    place, length = choose.randrange(len(content)), choose.choice([1, 3, 64, 1000])
    end = min(len(content), place + length)
    return choose.choice(
        [
            content[:place],
            content[:place] + bytes([content[place] ^ 1 << choose.randrange(8)]) + content[place + 1 :],
            content[:place] + choose.randbytes(length) + content[end:],
            content[:place] + choose.randbytes(length) + content[place:],
            content[:place] + content[end:],
            content[:place] + b"\xff" * (end - place) + content[end:],
            content[:place] + b"\0" * (end - place) + content[end:],
        ]
    )


@pytest.mark.parametrize("name", FILES)
def test_spoiled_files_are_refused_or_understood(
    name: str, originals: Path, libraries: convert.Libraries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No crash, no hang, no error that is not ours."""
    monkeypatch.setattr(convert, "prove", lambda *_: None)  # the same layers again, for the numbers' sake
    content = (originals / name).read_bytes()
    assert opened(originals / name, libraries) == ""
    refused = 0
    for number in range(COUNT):
        (tmp_path / name).write_bytes(spoiled(content, random.Random(f"{name} {number}")))
        refused += bool(opened(tmp_path / name, libraries))
    assert refused > COUNT / 4


# ---- code


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def pickles(trap: Path) -> dict[str, bytes]:
    """Files that execute something in whoever unpickles them."""
    import torch

    evil = Evil(trap)
    saved, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"rnn.weight_ih_l0": torch.zeros(3, 3), "x": evil}, saved)
    torch.save({"rnn.weight_ih_l0": evil}, legacy, _use_new_zipfile_serialization=False)
    module = b"cposix\nmkdir\n(V" + str(trap).encode() + b"\ntR."
    return {"plain": pickle.dumps(evil), "saved": saved.getvalue(), "legacy": legacy.getvalue(), "bare": module}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".keras", ".weights.h5", ".msgpack", ".safetensors"])
@pytest.mark.parametrize("kind", ["plain", "saved", "legacy", "bare"])
def test_no_pickle_is_executed(kind: str, suffix: str, libraries: convert.Libraries, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickles(trap)[kind])
    said = opened(path, libraries)
    assert not trap.exists()
    assert str(path) in said
    if suffix in (".pt", ".pth"):
        assert "would execute what the file holds" in said
        assert "weights_only" not in said  # PyTorch's own advice is to set it to False


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").exists()


def archive(path: Path, changes: dict[str, bytes]) -> bytes:
    """A zip archive with some members changed or added."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in ({each: old.read(each) for each in old.namelist()} | changes).items():
            new.writestr(name, content)
    return made.getvalue()


def keras_config(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A .keras file with another description."""
    with zipfile.ZipFile(path) as old:
        config = json.loads(old.read("config.json"))
    change(config)
    return archive(path, {"config.json": json.dumps(config).encode()})


def layer(config: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in config["config"]["layers"] if each["class_name"] == kind)
    return found


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


KERAS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a function for an activation": lambda c: layer(c, "Dense")["config"].update(activation=function("os", "system")),
    "a builtin": lambda c: layer(c, "GRU")["config"].update(activation=function("builtins", "exec")),
    "a lambda": lambda c: layer(c, "Dense")["config"].update(activation={"class_name": "__lambda__", "config": {}}),
    "a Lambda layer": lambda c: layer(c, "Dense").update(class_name="Lambda"),
    "a class of any module": lambda c: layer(c, "Dense").update(module="subprocess", class_name="Popen"),
    "a module to import": lambda c: layer(c, "Dense").update(module="antigravity", class_name="x"),
    "the whole": lambda c: c.update(module="os", class_name="system"),
    "a function of keras": lambda c: layer(c, "Dense").update(module="keras.utils", class_name="get_file"),
    "a function of numpy": lambda c: layer(c, "Dense").update(module="numpy", class_name="load"),
    "a layer that reads files": lambda c: layer(c, "Dense").update(class_name="TFSMLayer"),
    "units": lambda c: layer(c, "GRU")["config"].update(units=10**9),
    "rows": lambda c: layer(c, "Embedding")["config"].update(input_dim=10**12),
    "columns": lambda c: layer(c, "Dense")["config"].update(units=10**10),
    "units of another type": lambda c: layer(c, "GRU")["config"].update(units="7"),
    "nothing": lambda c: c.clear(),
}


@pytest.mark.parametrize("kind", KERAS)
def test_keras_looks_nothing_up(kind: str, originals: Path, libraries: convert.Libraries, tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    path.write_bytes(keras_config(originals / "x.keras", KERAS[kind]))
    assert str(path) in opened(path, libraries)


# ---- archives and sizes


def bomb(path: Path) -> bytes:
    return archive(path, {"bomb": bytes(30_000_000)})


ARCHIVES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "bomb": (bomb, "would unpack to"),
    "parent": (lambda path: archive(path, {"../escaped": b"x"}), "leads out"),
    "root": (lambda path: archive(path, {"/tmp/escaped": b"x"}), "leads out"),  # noqa: S108
    "steering": (lambda path: archive(path, {"../\x1b[2J": b"x"}), "leads out"),
    "cut": (lambda path: path.read_bytes()[:-30], ""),
    "empty": (lambda path: b"PK\x05\x06" + bytes(18), ""),
}


@pytest.mark.parametrize("name", ["x.pt", "x.keras"])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(kind: str, name: str, originals: Path, libraries: convert.Libraries, tmp_path: Path) -> None:
    change, reason = ARCHIVES[kind]
    (tmp_path / name).write_bytes(change(originals / name))
    said = opened(tmp_path / name, libraries)
    assert str(tmp_path / name) in said
    assert reason in said
    assert "\x1b" not in said
    assert [path.name for path in tmp_path.iterdir()] == [name]


def hdf5(path: Path, change: Callable[[Any], None]) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        change(file)


def elsewhere(file: Any) -> None:
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", (V,), "f4", external=[("/etc/passwd", 0, 4 * V)])


def virtual(file: Any) -> None:
    import h5py

    del file["layers/dense/vars/1"]
    layout = h5py.VirtualLayout((V,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (V,), "f4")
    file["layers/dense/vars"].create_virtual_dataset("1", layout)


def unallocated(file: Any) -> None:
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", (10**12,), "f4", chunks=(1000,))


def squeezed(file: Any) -> None:
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", data=np.zeros(5_000_000, "f4"), chunks=True, compression="gzip")


def nameless(file: Any) -> None:
    del file["layers/dense/vars"].attrs["name"]


def outside(file: Any) -> None:
    import h5py

    del file["layers/dense/vars/1"]
    file["layers/dense/vars/1"] = h5py.ExternalLink("other.h5", "/x")


HDF5 = {
    "elsewhere": (elsewhere, "another file"),
    "virtual": (virtual, "another file"),
    "unallocated": (unallocated, "would hold"),
    "squeezed": (squeezed, "would hold"),
    "nameless": (nameless, ""),
    "outside": (outside, ""),
}


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5(kind: str, originals: Path, libraries: convert.Libraries, tmp_path: Path) -> None:
    change, reason = HDF5[kind]
    path = tmp_path / "x.weights.h5"
    path.write_bytes((originals / path.name).read_bytes())
    hdf5(path, change)
    said = opened(path, libraries)
    if kind == "outside":  # links out are not followed, so the decoder has no bias, which it need not have
        assert said == ""
    else:
        assert str(path) in said
        assert reason in said


def test_hdf5_within_keras(originals: Path, libraries: convert.Libraries, tmp_path: Path) -> None:
    path, inner = tmp_path / "x.keras", tmp_path / "x.h5"
    with zipfile.ZipFile(originals / path.name) as old:
        inner.write_bytes(old.read("model.weights.h5"))
    hdf5(inner, unallocated)
    path.write_bytes(archive(originals / path.name, {"model.weights.h5": inner.read_bytes()}))
    assert "would hold 4,000,0" in opened(path, libraries)


def torch_files() -> dict[str, Any]:
    """What torch.save can write and nobody should believe."""
    import torch

    itself: dict[Any, Any] = {"x": torch.zeros(2)}
    itself["again"] = itself
    deep: dict[Any, Any] = {}
    for _ in range(200):
        deep = {"deeper": deep}
    name = "rnn.weight_ih_l0"
    return {
        "strides": {name: torch.zeros(1).expand(10**12)},
        "shared": {f"{name}{k}": torch.zeros(1000, 30)[None].expand(50, 1000, 30) for k in range(9)},
        "no name": {name: torch.zeros(3, 3), 7: torch.zeros(3)},
        "text": {name: "text"},
        "sparse": {name: torch.zeros(3, 3).to_sparse()},
        "meta": {name: torch.zeros(3, 3, device="meta")},
        "complex": {name: torch.zeros(3, 3, dtype=torch.complex64)},
        "whole numbers": {name: torch.zeros(3, 3, dtype=torch.int64)},
        "scalar": {name: torch.tensor(1.0)},
        "nothing": {name: torch.zeros(0, 3)},
        "no numbers": {name: torch.full((4, 1), torch.nan), "rnn.weight_hh_l0": torch.full((4, 1), torch.inf)},
        "itself": itself,
        "deep": deep,
        "list": [1, 2],
        "steering": {"\x1b[2Jrnn.weight_ih_l0": torch.zeros(3)},
    }


def test_tensors_that_are_none(libraries: convert.Libraries, tmp_path: Path) -> None:
    import torch

    for kind, content in torch_files().items():
        path = tmp_path / f"{kind}.pt"
        torch.save(content, path)
        said = opened(path, libraries)
        assert str(path) in said, kind
        assert "\x1b" not in said


def packed(shape: Any, dtype: str, data: bytes) -> bytes:
    """An array as flax packs it."""
    import msgpack

    inner = msgpack.packb((shape, dtype, data), use_bin_type=True)
    return msgpack.packb({"params": {"decoder": {"kernel": msgpack.ExtType(1, inner)}}}, use_bin_type=True)


MSGPACK = {
    "objects": lambda: packed([1], "object", bytes(8)),
    "size": lambda: packed([10**12], "float32", bytes(8)),
    "negative": lambda: packed([-1, -1], "float32", bytes(8)),
    "no dtype": lambda: packed([2], "os.system", bytes(8)),
    "deep": lambda: b"\x81\xa1a" * 5000 + b"\xc0",
    "length": lambda: b"\xdd" + struct.pack(">I", 2**32 - 1),
    "long text": lambda: b"\xdb" + struct.pack(">I", 2**32 - 1) + b"x",
    "no tree": lambda: b"\x01",
    "numbers for names": lambda: b"\x82\x01\x02\xa1a\x03",
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", MSGPACK)
def test_msgpack(kind: str, libraries: convert.Libraries, tmp_path: Path) -> None:
    path = tmp_path / "x.msgpack"
    path.write_bytes(MSGPACK[kind]())
    assert str(path) in opened(path, libraries)


SAFETENSORS = {
    "wrong types": {"rnn.weight_ih_l0": np.zeros((4, 3), np.int32)},
    "huge name": {"rnn.weight_ih_l0" + "x" * 10_000: np.zeros((4, 3), np.float32)},
    "steering": {"\x1b[2Jrnn.weight_ih_l0": np.zeros((4, 3), np.float32)},
    "no numbers": {"rnn.weight_ih_l0": np.full((4, 3), np.nan, np.float32)},
    "nothing": {},
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_foreign_safetensors(kind: str, libraries: convert.Libraries, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(SAFETENSORS[kind], path)
    said = opened(path, libraries)
    assert str(path) in said
    assert "\x1b" not in said


def test_weights_that_are_no_numbers(originals: Path, libraries: convert.Libraries, tmp_path: Path) -> None:
    import torch

    state = torch.load(originals / "x.pt", weights_only=True)
    state["rnn.weight_hh_l0"][0, 0] = torch.nan
    torch.save(state, tmp_path / "x.pt")
    assert "rnn.weight_hh_l0 holds infinite values or no numbers" in opened(tmp_path / "x.pt", libraries)
