"""Checkpoints as an enemy or a failing disk would make them: each is opened as `sample`, `evaluate`, `convert` and
`train --resume` do, in a process of its own. None may crash one, hang, take more memory than the file and 100 MB, or be
believed where it holds something else than was saved.

    python tests/faults/hostile_checkpoints.py --count 2000 --seed 0
    python tests/faults/hostile_checkpoints.py --seed 0 --only 1234    # one of them, with what each command said

Most mutations leave the hash in the file as it was. Those with "hashed anew" in their name have the right one and show
what stands behind it. File N of a seed is always spoiled in the same way. Linux only, since it measures memory.
"""

import argparse
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

from runner.cli import Convert, Evaluate, Train  # noqa: E402
from runner.convert import Libraries, logits, read  # noqa: E402
from runner.evaluate import held_out_of  # noqa: E402
from runner.experiment import Experiment, prepare  # noqa: E402
from runner.interruption import Interruption  # noqa: E402
from runner.registry import create_model  # noqa: E402
from runner.resume import stored_options  # noqa: E402
from runner.rundir import RunDirectory  # noqa: E402
from runner.sample import model_of, open_checkpoint, write_texts  # noqa: E402
from runner.train import describe_run  # noqa: E402
from runner.training.run import Run  # noqa: E402
from runner.workers import Worker, WorkerError  # noqa: E402
from shared.checkpoint import Checkpoint, content_hash, load_checkpoint  # noqa: E402
from shared.config import (  # noqa: E402
    CorpusConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
)
from shared.contract import LanguageModel  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.files import strict_json, write_atomically  # noqa: E402
from shared.initializers import initial_parameters  # noqa: E402

MEMORY = 100_000_000
"""Bytes beyond the file's size that opening it may take."""
SECONDS, PATIENCE = 10.0, 200.0
"""Of processor time that all commands together may take, and of a clock on a busy machine."""
COMMANDS = ("load", "sample", "evaluate", "convert", "resume")
"""load is what all of them do first."""
RUNTIME = RuntimeConfig(device="cpu")
TEXT = "a quick brown fox; jumps\nover the lazy dog, 山高月小 水落石出\n" * 12
POEMS = "床前明月光\n疑是地上霜\n举头望明月\n低头思故乡\nlow, in the west\n" * 6

# ---- the checkpoints that were really trained


def variants(folder: Path) -> dict[str, Train]:
    """A few runs that differ in everything a checkpoint holds."""
    text, poems = folder / "text.txt", folder / "poems.txt"
    write_atomically(text, TEXT)
    write_atomically(poems, POEMS)
    short = TrainingConfig(batch_size=3, seq_length=9, epochs=1, max_steps=4)
    running, lines = CorpusConfig(str(text), "text", held_out=0.2), CorpusConfig(str(poems), "poems", held_out=0.2)
    base = {"lstm": Train(model=ModelConfig(hidden_size=7, embedding_size=5), corpus=running, training=short)}
    base["gru"] = Train(
        model=ModelConfig("gru", 6, 2, 6, gru_reset="before", residual=True, tied_weights=True, dropout=0.2),
        optimizer=OptimizerConfig("adamw", "keras"),
        schedule=ScheduleConfig("cosine", restart_period=1),
        corpus=lines,
        training=replace(short, seq_length=20),
    )
    base["rnn"] = Train(
        model=ModelConfig("rnn", 8, 2, 0, nonlinearity="relu", many_to_one=True),
        optimizer=OptimizerConfig("rmsprop", rmsprop_momentum=0.5, centered=True),
        corpus=running,
        training=replace(short, stride=4),
        runtime=replace(RUNTIME, dtype="float64"),
    )
    base["wrnn"] = Train(
        model=ModelConfig("wrnn", 5, 1, 4),
        optimizer=OptimizerConfig("adagrad", clip_layers=("l0=1",)),
        corpus=replace(running, subwords=55),
        training=short,
    )
    return {name: replace(each, run_dir=folder / name, runtime=each.runtime) for name, each in base.items()}


def train(options: Train) -> None:
    """A run directory after a few steps, as `train` leaves it."""
    experiment, model = prepared(options)
    model.load_parameters(initial_parameters(options.model, len(experiment.vocabulary), 0))
    folder = RunDirectory.create(options)
    folder.write_config(describe_run(options, model, experiment.facts()))
    Run(options, experiment, model, folder).train(Interruption())


def prepared(options: Train) -> tuple[Experiment, LanguageModel]:
    """The corpus and a model."""
    experiment = prepare(options.corpus, options.training, options.model)
    model = create_model("numpy", options.model, options.optimizer, len(experiment.vocabulary), options.runtime)
    return experiment, model


class Original(NamedTuple):
    """A checkpoint, taken apart."""

    content: bytes
    header: dict[str, Any]
    data: bytes

    @classmethod
    def read(cls, path: Path) -> "Original":
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        return cls(content, json.loads(content[8 : 8 + length]), content[8 + length :])

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.header["__metadata__"])

    @property
    def names(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        found = {}
        for name in self.names:
            entry = self.header[name]
            begin, end = entry["data_offsets"]
            kind = {"F32": "<f4", "F64": "<f8"}[entry["dtype"]]
            found[name] = np.frombuffer(self.data[begin:end], kind).reshape(entry["shape"]).copy()
        return found

    def entry(self, name: str) -> Any:
        """An entry of the metadata, parsed."""
        return json.loads(self.metadata[name])


# ---- the mutations

Change = Callable[[Original, random.Random], bytes]


class Kind(NamedTuple):
    """A way to spoil a file, and the first command that must refuse it where its hash is right."""

    change: Change
    refused_by: str


KINDS: dict[str, Kind] = {}
NONSENSE: tuple[Any, ...] = (
    10**30, -1, 1.5, True, "8", None, [], {}, 10**4000, 2**63, 2**62, 1e308, 0, [[8]], "F32", -(10**30),
)  # fmt: skip
TRICKS = (
    "../x", "../../../../tmp/x", "/etc/passwd", "a\0b", "\0", "x" * 100_000, "\x1b[2J\x1b[31mred", "\x1b]0;title\x07",
    "\u202egnp.exe", "con", ".", "", " ", "__metadata__.x", "rnn.weight_ih_l999999999999", "[bold]x[/bold]", "\ud800",
    "optimizer.", "state.", "<script>alert(1)</script>", "{{7*7}}", "a\nb", "\ufeff", "%s%n", "$(touch x)", "'; --",
)  # fmt: skip


def kind(name: str, refused_by: str = "load") -> Callable[[Change], Change]:
    """Register a mutation."""

    def register(change: Change) -> Change:
        KINDS[name] = Kind(change, refused_by)
        return change

    return register


def assemble(header: Any, data: bytes) -> bytes:
    """A file with this header, whatever it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def hashed(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> bytes:
    """A file that is well-formed and has the right hash."""
    dtypes = {"f4": "F32", "f8": "F64", "f2": "F16", "i8": "I64", "i4": "I32", "u1": "U8", "b1": "BOOL", "c8": "C64"}
    header: dict[str, Any] = {"__metadata__": metadata | {"sha256": content_hash(tensors, metadata)}}
    data = b""
    for name, each in tensors.items():
        place = [len(data), len(data) + each.nbytes]
        header[name] = {"dtype": dtypes[each.dtype.str[1:]], "shape": list(each.shape), "data_offsets": place}
        data += each.tobytes()
    return assemble(header, data)


def with_entry(original: Original, name: str, value: Any) -> bytes:
    """The file with another JSON value in its metadata, hashed anew."""
    return hashed(original.tensors, original.metadata | {name: json.dumps(value, ensure_ascii=False)})


def raw(content: bytes, place: int, removed: int, inserted: bytes) -> bytes:
    return content[:place] + inserted + content[place + removed :]


@kind("truncated")
def _(original: Original, choose: random.Random) -> bytes:
    return original.content[: choose.randrange(len(original.content))]


def flip(content: bytes, places: list[int], choose: random.Random) -> bytes:
    flipped = bytearray(content)
    for place in places:
        flipped[place] ^= 1 << choose.randrange(8)
    return bytes(flipped)


@kind("bit flipped in the header")
def _(original: Original, choose: random.Random) -> bytes:
    return flip(original.content, [choose.randrange(len(original.content) - len(original.data))], choose)


@kind("bit flipped in the data")
def _(original: Original, choose: random.Random) -> bytes:
    begin = len(original.content) - len(original.data)
    return flip(original.content, [choose.randrange(begin, len(original.content))], choose)


@kind("many bits flipped")
def _(original: Original, choose: random.Random) -> bytes:
    places = choose.sample(range(len(original.content)), choose.randint(2, 200))
    return flip(original.content, places, choose)


@kind("bytes inserted")
def _(original: Original, choose: random.Random) -> bytes:
    place = choose.randint(0, len(original.content))
    return raw(original.content, place, 0, choose.randbytes(choose.randint(1, 100)))


@kind("bytes removed")
def _(original: Original, choose: random.Random) -> bytes:
    place = choose.randrange(len(original.content))
    return raw(original.content, place, choose.randint(1, 100), b"")


@kind("bytes appended")
def _(original: Original, choose: random.Random) -> bytes:
    return original.content + choose.choice([b"\0" * 8, choose.randbytes(50), original.content, b"\n"])


@kind("block zeroed")
def _(original: Original, choose: random.Random) -> bytes:
    place, length = choose.randrange(len(original.content)), choose.choice([1, 16, 512, 4096])
    there = original.content[place : place + length]
    return raw(original.content, place, length, b"\0" * len(there))


@kind("block from elsewhere")
def _(original: Original, choose: random.Random) -> bytes:
    place, other = (choose.randrange(len(original.content) - 64) for _ in range(2))
    return raw(original.content, place, 64, original.content[other : other + 64])


@kind("length of the header")
def _(original: Original, choose: random.Random) -> bytes:
    length = int.from_bytes(original.content[:8], "little")
    sizes = [
        0,
        1,
        length - 1,
        length + 1,
        len(original.content),
        2**31,
        2**32,
        2**63,
        2**64 - 1,
        choose.getrandbits(64),
    ]
    return choose.choice(sizes).to_bytes(8, "little") + original.content[8:]


@kind("no checkpoint at all")
def _(original: Original, choose: random.Random) -> bytes:
    others = [b"", b"\0" * 5000, b"PK\x03\x04" + choose.randbytes(500), b"\x80\x04cos\nsystem\n.", b"<html></html>"]
    return choose.choice([*others, choose.randbytes(choose.randint(1, 3000)), original.data])


@kind("shape or place that is nonsense")
def _(original: Original, choose: random.Random) -> bytes:
    header = json.loads(json.dumps(original.header))
    entry, field = header[choose.choice(original.names)], choose.choice(["shape", "data_offsets"])
    if choose.random() < 0.3:
        entry[field] = choose.choice(NONSENSE)
    elif choose.random() < 0.2:
        entry[field] = entry[field] * choose.choice([0, 2, 1000])
    else:
        place, before = choose.randrange(len(entry[field])), list(entry[field])
        while entry[field] == before:
            entry[field][place] = choose.choice([*NONSENSE, before[place] + choose.choice([-4, -1, 1, 4])])
    return assemble(header, original.data) if header != original.header else assemble(b"{}", original.data)


@kind("dtype that is nonsense")
def _(original: Original, choose: random.Random) -> bytes:
    header = json.loads(json.dumps(original.header))
    entry = header[choose.choice(original.names)]
    wrong = ["F16", "I32", "U8", "BOOL", "float32", "<f4", "O", "f32", "F128", *NONSENSE[:12]]
    entry["dtype"] = choose.choice(wrong) if choose.random() < 0.8 else {"F32": "F64", "F64": "F32"}[entry["dtype"]]
    return assemble(header, original.data)


@kind("entry that is no entry")
def _(original: Original, choose: random.Random) -> bytes:
    header = json.loads(json.dumps(original.header))
    name = choose.choice(original.names)
    if choose.random() < 0.5:
        header[name] = choose.choice(NONSENSE)
    elif choose.random() < 0.5:
        del header[name][choose.choice(list(header[name]))]
    else:
        header[name]["strides"] = [1]
    return assemble(header, original.data)


@kind("name missing in the header")
def _(original: Original, choose: random.Random) -> bytes:
    gone = choose.choice(original.names)
    return assemble({name: each for name, each in original.header.items() if name != gone}, original.data)


@kind("name twice in the header")
def _(original: Original, choose: random.Random) -> bytes:
    twice, source = choose.choice(list(original.header)), choose.choice(original.names)
    text = json.dumps(original.header)[:-1] + f", {json.dumps(twice)}: {json.dumps(original.header[source])}}}"
    return assemble(text.encode(), original.data)


@kind("tensors that overlap")
def _(original: Original, choose: random.Random) -> bytes:
    source = choose.choice(original.names)
    return assemble({**original.header, "rnn.more_l0": original.header[source]}, original.data)


@kind("invalid JSON")
def _(original: Original, choose: random.Random) -> bytes:
    text = json.dumps(original.header)
    place = choose.randrange(1, len(text) - 1)
    wrong = [
        text[:place], text[:-1] + ",}", text.replace('"', "'"), "\ufeff" + text, text + "}", "//\n" + text,
        text[:-1] + ', "x": NaN}', text[:-1] + ', "x": Infinity}', text[:-1] + ', "x": 0x10}', "", "null", "3", '"a"',
        "[" + text + "]", text[:-1] + ', "x": 1e999}', text.replace("{", "{\0", 1),
    ]  # fmt: skip
    return assemble(choose.choice(wrong).encode(), original.data)


@kind("deep JSON")
def _(original: Original, choose: random.Random) -> bytes:
    depth, opening = choose.choice([500, 5_000, 90_000, 1_000_000]), choose.choice(["[", '{"a":'])
    text = opening * depth + ("1" + {"[": "]"}.get(opening, "}") * depth) * choose.randint(0, 1)
    return assemble(choose.choice([text, '{"a": ' + text + "}"]).encode(), original.data)


@kind("wide JSON")
def _(original: Original, choose: random.Random) -> bytes:
    part = choose.choice(["[],", "{},", '"山水",', "1.5,", "70000,", "[0],", '{"a":1},', '"é😀",', '{"":{}},'])
    text = '{"x": [' + part * (choose.choice([10**6, 3_900_000]) // len(part.encode())) + "0]}"
    if choose.random() < 0.3:
        text = "{" + ",".join(f'"{number:x}":0' for number in range(350_000)) + "}"
    return assemble(text.encode(), original.data)


@kind("giant numbers in JSON")
def _(original: Original, choose: random.Random) -> bytes:
    digits = "9" * choose.choice([400, 4299, 4301, 100_000, 3_000_000])
    number = choose.choice(["{}", "-{}", "{}.5", "1e{}", "0.{}"]).format(digits)
    text = json.dumps(original.header)
    if choose.random() < 0.5:
        return assemble((text[:-1] + f', "x": {number}}}').encode(), original.data)
    place = text.index('"shape": [') + len('"shape": [')
    return assemble((text[:place] + number + "," + text[place:]).encode(), original.data)


@kind("invalid UTF-8")
def _(original: Original, choose: random.Random) -> bytes:
    text = json.dumps(original.header, ensure_ascii=False).encode()
    place = choose.randrange(2, len(text) - 2)
    wrong = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe5\xb1", b"\x80", "é".encode("latin-1")]
    return assemble(raw(text, place, 0, choose.choice(wrong)), original.data)


@kind("metadata that is no string")
def _(original: Original, choose: random.Random) -> bytes:
    metadata = original.metadata
    if choose.random() < 0.3:
        return assemble({**original.header, "__metadata__": choose.choice(NONSENSE)}, original.data)
    name = choose.choice(list(metadata))
    value = choose.choice([each for each in NONSENSE if not isinstance(each, str)])
    return assemble({**original.header, "__metadata__": metadata | {name: value}}, original.data)


@kind("hash that is wrong")
def _(original: Original, choose: random.Random) -> bytes:
    right = original.metadata["sha256"]
    wrong = choose.choice(
        ["", "0" * 64, right.upper(), right[:-1], right + " ", "é" * 64, f"{choose.getrandbits(256):x}"]
    )
    wrong = "0" if wrong == right else wrong
    return assemble({**original.header, "__metadata__": original.metadata | {"sha256": wrong}}, original.data)


@kind("metadata missing or more, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    metadata = original.metadata
    if choose.random() < 0.5:
        del metadata[choose.choice(["format", "config", "vocabulary", "progress", "step"])]
    else:
        metadata |= {choose.choice(TRICKS): "x"}
    return hashed(original.tensors, metadata)


@kind("another format, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    return hashed(original.tensors, original.metadata | {"format": choose.choice(["rosetta-rnn/2", "pt", "", *TRICKS])})


@kind("metadata that is no JSON, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    name = choose.choice(["config", "vocabulary", "progress", "step"])
    wrong = [
        "",
        "{",
        "nul",
        "[" * 100_000,
        "NaN",
        "Infinity",
        "9" * 5000,
        "'a'",
        original.metadata[name][:-1],
        "\ud800",
    ]
    return hashed(original.tensors, original.metadata | {name: choose.choice(wrong) or " "})


@kind("a key twice in the metadata's JSON, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    name, within = choose.choice([("config", "model"), ("progress", "step"), ("config", "training")])
    text = original.metadata[name]
    return hashed(original.tensors, original.metadata | {name: text[:-1] + f', "{within}": null}}'})


@kind("infinite or no numbers, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    tensors = original.tensors
    each = tensors[choose.choice(list(tensors))].reshape(-1)
    each[choose.randrange(len(each))] = choose.choice([np.nan, np.inf, -np.inf])
    return hashed(tensors, original.metadata)


@kind("other dtypes, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    tensors = original.tensors
    name = choose.choice(list(tensors))
    tensors[name] = tensors[name].astype(choose.choice(["<f2", "<i8", "<i4", "u1", "?", "<c8"]))
    return hashed(tensors, original.metadata)


def parameter(original: Original, choose: random.Random) -> str:
    return choose.choice([name for name in original.names if not name.startswith(("optimizer.", "state."))])


def other(original: Original, choose: random.Random) -> str:
    return choose.choice([name for name in original.names if name.startswith(("optimizer.", "state."))])


def reshaped(array: np.ndarray, choose: random.Random) -> np.ndarray:
    """The array in another shape, or with more or less in it."""
    found = [array.reshape(-1, 1), array.reshape(1, -1), array[None], array[:-1], np.concatenate([array, array])]
    found += [array.T, array.reshape(-1), array.reshape(-1)[0], np.repeat(array[..., None], 2, -1)]
    return choose.choice([each for each in found if each.shape != array.shape and each.size])


@kind("parameters of another shape, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    name, tensors = parameter(original, choose), original.tensors
    return hashed(tensors | {name: reshaped(tensors[name], choose)}, original.metadata)


@kind("optimizer or state of another shape, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    name, tensors = other(original, choose), original.tensors
    return hashed(tensors | {name: reshaped(tensors[name], choose)}, original.metadata)


@kind("state of another batch, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    rows = choose.choice([1, 2, 4, 50])
    tensors = {
        name: np.resize(each, (rows, each.shape[1])) if name.startswith("state.") else each
        for name, each in original.tensors.items()
    }
    return hashed(tensors, original.metadata)


@kind("parameter missing, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    gone = parameter(original, choose)
    kept = {name: each for name, each in original.tensors.items() if name != gone}
    return hashed(kept if choose.random() < 0.8 else {}, original.metadata)


@kind("optimizer or state missing, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    gone = other(original, choose) if choose.random() < 0.7 else choose.choice(["optimizer.", "state."])
    kept = {name: each for name, each in original.tensors.items() if not name.startswith(gone)}
    return hashed(kept, original.metadata)


@kind("another name for a parameter, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    gone, name = parameter(original, choose), choose.choice(TRICKS)
    return hashed(
        {name if each == gone else each: value for each, value in original.tensors.items()}, original.metadata
    )


@kind("a tensor more, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    before = choose.choice(["", "optimizer.", "state.", "optimizer.exp_avg."])
    more = np.zeros(choose.choice([(1,), (3, 2), (1, 1, 1)]), np.float32)
    return hashed({**original.tensors, before + choose.choice(TRICKS): more}, original.metadata)


@kind("very many tensors, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    more = {f"rnn.weight_ih_l{number}": np.ones(1, np.float32) for number in range(2, choose.choice([100, 5000]))}
    return hashed(original.tensors | more, original.metadata)


def part_of(config: dict[str, Any], choose: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = config[choose.choice(["model", "optimizer", "schedule", "training", "corpus"])]
    return found


@kind("options missing or unknown, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    config = original.entry("config")
    part = config if choose.random() < 0.3 else part_of(config, choose)
    if choose.random() < 0.5:
        del part["model" if part is config else choose.choice(list(part))]
    else:
        part[choose.choice(TRICKS[:-10])] = choose.choice([1, "x", None])
    return with_entry(original, "config", config)


@kind("options of another type, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    config = original.entry("config")
    part = config if choose.random() < 0.15 else part_of(config, choose)
    name = choose.choice(list(part))
    wrong = [None, "x", [], {}, [1], {"a": 1}, True, 1.5, 3, 10**400, "\0", [[]], [None, None]]
    same = float if isinstance(part[name], float) else type(part[name])
    fitting = (str, type(None)) if name in ("corpus", "data_dir", "drop", "corpus_sha256") else (same,)
    whole = same is float and (lambda each: type(each) is int and each < 2**63)
    wrong = [each for each in wrong if not isinstance(each, fitting) and not (whole and whole(each))]
    wrong = [
        each
        for each in wrong
        if not (each == [] and isinstance(part[name], list)) and (each is not True or same is not bool)
    ]
    part[name] = choose.choice(wrong)
    return with_entry(original, "config", config)


@kind("a model of absurd size, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    config = original.entry("config")
    name = choose.choice(["hidden_size", "num_layers", "embedding_size"])
    config["model"][name] = choose.choice([10**9, 10**18, 10**30, 2**31, 2**63, -1, 10**5])
    if config["model"]["tied_weights"] and name != "num_layers":
        config["model"]["hidden_size"] = config["model"]["embedding_size"] = config["model"][name]
    return with_entry(original, "config", config)


@kind("a model that does not fit, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    config = original.entry("config")
    model = config["model"]
    wrong = {
        "hidden_size": model["hidden_size"] + choose.choice([-1, 1, 10]),
        "num_layers": model["num_layers"] + choose.choice([1, 2, -1]),
        "embedding_size": model["embedding_size"] + choose.choice([1, 3]),
        "cell": choose.choice([each for each in ("rnn", "lstm", "gru", "wrnn") if each != model["cell"]]),
        "initializer": choose.choice(TRICKS),
        "dropout": choose.choice([-0.1, 1, 1.5]),
        "embedding_activation": choose.choice(["Tanh", "exec", ""]),
    }
    name = choose.choice(list(wrong))
    model[name] = wrong[name]
    if name == "cell":
        model |= {"nonlinearity": "tanh", "gru_reset": "after", "forget_bias": 0.0}
    return with_entry(original, "config", config)


@kind("options of another run, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    config = original.entry("config")
    changes = [
        ("training", "batch_size", 10**9), ("training", "batch_size", 5), ("training", "seq_length", 8),
        ("training", "learning_rate", 0.5), ("training", "seed", 9), ("optimizer", "epsilon", 0.1),
        ("optimizer", "clip_norm", 3.0), ("schedule", "decay_rate", 0.5), ("corpus", "drop", "x"),
        ("corpus", "held_out", 0.3), ("optimizer", "dialect", "optax"), ("model", "initializer", "zero"),
    ]  # fmt: skip
    part, name, value = choose.choice(changes)
    config[part][name] = value
    if choose.random() < 0.1:
        del config[choose.choice(["optimizer", "schedule", "training", "corpus"])]
    return with_entry(original, "config", config)


@kind("a corpus that is none, hashed anew", "evaluate")
def _(original: Original, choose: random.Random) -> bytes:
    config = original.entry("config")
    config["corpus"]["corpus"] = choose.choice(["/dev/zero", "/dev/random", "/", "gone.txt", "/proc/self/mem", *TRICKS])
    return with_entry(original, "config", config)


@kind("vocabulary that is none, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    symbols = original.entry("vocabulary")
    place = choose.randrange(len(symbols))
    if choose.random() < 0.4:
        specials = ["<pad>", "<unk>", "<bos>", "<eos>"]
        wrong = [[], {}, "abc", None, 3, specials, [*symbols, *symbols], ["a", "never a subword"]]
        return with_entry(original, "vocabulary", choose.choice(wrong))
    twice = symbols[0 if place else 1]
    symbols[place] = choose.choice([twice, 1, None, "", ["a"], True, "\ud800", "x" * 10**6])
    return with_entry(original, "vocabulary", symbols)


@kind("vocabulary of another size, hashed anew", "sample")
def _(original: Original, choose: random.Random) -> bytes:
    symbols = original.entry("vocabulary")
    short = [each for each in symbols if len(each) == 1]
    many = [chr(number) for number in range(0x4E00, 0x4E00 + 20_000)]
    return with_entry(original, "vocabulary", choose.choice([short[:-3], [*symbols, "\U0001f600"], many, short[:1]]))


@kind("vocabulary in another order, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    symbols = original.entry("vocabulary")
    first, second = choose.sample(range(len(symbols)), 2)
    symbols[first], symbols[second] = symbols[second], symbols[first]
    return with_entry(original, "vocabulary", symbols)


@kind("vocabulary of long subwords, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    length = choose.choice([257, 1000, 100_000])
    symbols = ["a", "b"] + ["a" * (length - len(str(k))) + str(k) for k in range(min(3000, 3_000_000 // length))]
    return with_entry(original, "vocabulary", symbols)


@kind("progress that is none, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    progress = original.entry("progress")
    name = choose.choice(list(progress))
    action = choose.random()
    if action < 0.2:
        del progress[name]
    elif action < 0.3:
        progress[choose.choice(TRICKS)] = 1
    elif action < 0.4:
        return with_entry(original, "progress", choose.choice([[], 3, "x", None, {}]))
    else:
        whole = type(progress[name]) is int
        wrong = ["x", [], {}, True, [1], {"a": 1}, *[None] * (name != "best_loss"), *[-1, 1.5] * whole]
        progress[name] = choose.choice([each for each in wrong if type(each) is not type(progress[name])])
    return with_entry(original, "progress", progress)


@kind("progress that contradicts itself, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    progress = original.entry("progress")
    name = choose.choice(["epoch", "index", "step", "best_step"])
    progress[name] += choose.choice([1, 10, 10**9, 10**30])
    return with_entry(original, "progress", progress)


@kind("step that is none, hashed anew")
def _(original: Original, choose: random.Random) -> bytes:
    return with_entry(original, "step", choose.choice([-1, 1.0, True, "4", None, [], 10**30, 2**63, -(10**18)]))


@kind("step beyond the progress, hashed anew", "resume")
def _(original: Original, choose: random.Random) -> bytes:
    return with_entry(original, "step", original.entry("step") + choose.choice([1, 100, 10**15]))


# ---- opening them


class NoLibraries(Libraries):
    """Files of libraries, which some mutations look like, have tests of their own."""

    def __getitem__(self, name: str) -> Worker:
        raise UserError(f"This would be opened by {name}.")


class User:
    """Opens files as the commands do; for a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._runs = {path.name: stored_options(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        self._limit = 0
        self._work = tempfile.TemporaryDirectory()
        for name in self._runs:  # whatever is loaded once, is loaded now
            self.use(name, (folder / name / "last.safetensors").read_bytes())
        self._limit = peak()
        warnings.simplefilter("error", RuntimeWarning)

    @cache  # noqa: B019 - a User lives as long as its process
    def _original(self, name: str) -> tuple[Checkpoint, Experiment, LanguageModel]:
        options = self._runs[name]
        assert options.resume
        return load_checkpoint(options.resume / "last.safetensors"), *prepared(options)

    def use(self, name: str, content: bytes) -> dict[str, Any]:
        """Command -> "accepted", "same", "refused: <why>" or "failed: <how>"; and the bytes of memory it took."""
        path = Path(self._work.name) / "last.safetensors"
        path.write_bytes(content)
        if self._limit:
            free_of_limit()
            limit_memory(len(content) + MEMORY)
        before, started = reset_peak(), time.process_time()
        try:
            found: dict[str, Any] = {command: self._outcome(command, name, path) for command in COMMANDS}
        finally:
            free_of_limit()
        return found | {"memory": peak() - before, "seconds": round(time.process_time() - started, 2)}

    def _outcome(self, command: str, name: str, path: Path) -> str:
        try:
            with redirect_stdout(io.StringIO()):
                return str(getattr(self, f"_{command}")(name, path) or "accepted")
        except UserError as error:
            return f"refused: {error}"
        except Exception as error:
            return f"failed: {type(error).__name__}: {error}"

    def _load(self, name: str, path: Path) -> str:
        return "same" if same(load_checkpoint(path), self._original(name)[0]) else "accepted"

    def _sample(self, name: str, path: Path) -> None:
        _, checkpoint = open_checkpoint(path)
        write_texts(model_of(checkpoint, "numpy", RUNTIME), checkpoint.vocabulary, [""], SamplingConfig(length=2))

    def _evaluate(self, name: str, path: Path) -> None:
        _, checkpoint = open_checkpoint(path)
        held_out_of(checkpoint, Evaluate(path))
        model_of(checkpoint, "numpy", RUNTIME)

    def _convert(self, name: str, path: Path) -> None:
        source = read(Convert(path, path.with_suffix(".pt")), NoLibraries(ExitStack()))
        logits(source.model, source.parameters, np.zeros((1, 1), np.int32))

    def _resume(self, name: str, path: Path) -> None:
        _, experiment, model = self._original(name)
        folder = RunDirectory.reopen(path.parent)
        Run(self._runs[name], experiment, model, folder).restore(folder.load_last())


def same(found: Checkpoint, original: Checkpoint) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    for mine, its in ((getattr(each, g) for each in (found, original)) for g in ("parameters", "slots", "state")):
        if mine.keys() != its.keys():
            return False
        if any(described(each) != described(its[name]) for name, each in mine.items()):
            return False
    rest = ("step", "config", "vocabulary", "progress")
    return all(getattr(found, name) == getattr(original, name) for name in rest)


def described(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.tobytes()


def status(field: str) -> int:
    """Bytes that Linux counts of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak() -> int:
    return status("VmHWM")


def reset_peak() -> int:
    """Forget the peak so far; the memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def limit_memory(more: int) -> None:
    """MemoryError beyond so many bytes more than now, even where they would never be touched."""
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + more, resource.RLIM_INFINITY))


def free_of_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


# ---- the whole


class Suite:
    """Run directories, and the files of a seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for options in variants(folder).values():
            train(options)

    @cached_property
    def originals(self) -> dict[str, Original]:
        folders = sorted(each for each in self.folder.iterdir() if each.is_dir())
        return {each.name: Original.read(each / "last.safetensors") for each in folders}

    def file(self, seed: int, number: int) -> tuple[str, str, bytes]:
        """The kind of file N, the run it is made from, and its content."""
        choose = random.Random(f"{seed} {number}")
        kind, name = list(KINDS)[number % len(KINDS)], choose.choice(list(self.originals))
        return kind, name, KINDS[kind].change(self.originals[name], choose)

    def use(self, seed: int, numbers: range, workers: int, timeout: float = PATIENCE) -> Iterator[dict[str, Any]]:
        """What became of each file, in order of arrival."""
        with ExitStack() as stack:
            users = [stack.enter_context(Worker(f"user {k}", User, self.folder)) for k in range(workers)]
            yield from map(judged, tried(self, users, seed, numbers, timeout))


def tried(suite: Suite, users: list[Worker], seed: int, numbers: range, timeout: float) -> Iterator[dict[str, Any]]:
    """Each user gets every so-manieth file; one that dies or hangs is replaced."""
    started: dict[Worker, tuple[int, str]] = {}
    waiting = iter(numbers)
    while True:
        for user in users:
            if user not in started and (number := next(waiting, None)) is not None:
                kind, name, content = suite.file(seed, number)
                user.start("use", name, content)
                started[user] = number, kind
        if not started:
            return
        for user in list(started):
            number, kind = started.pop(user)
            try:
                found = user.result(timeout)
            except WorkerError as error:
                found = {**dict.fromkeys(COMMANDS, f"failed: {error}"), "memory": 0, "seconds": 0.0}
                user.renew()
            yield {"number": number, "kind": kind, **found}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """With a verdict: refused, same, or what went wrong."""
    refused_by = KINDS[row["kind"]].refused_by
    outcomes = {command: row[command] for command in COMMANDS}
    if failed := [f"{name} {each}" for name, each in outcomes.items() if each.startswith("failed")]:
        return row | {"verdict": failed[0]}
    if row["seconds"] > SECONDS:
        return row | {"verdict": f"took {row['seconds']} s"}
    if row["load"] == "same":
        return row | {"verdict": "same"}
    wanted = COMMANDS if refused_by in ("load", "sample") else (refused_by,)
    if believed := [
        name for name in wanted if outcomes[name] == "accepted" and (name != "load" or refused_by == "load")
    ]:
        return row | {"verdict": f"believed by {', '.join(believed)}"}
    return row | {"verdict": "refused"}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by kind, and the failures."""
    kinds = {
        kind: {
            "files": len(mine),
            **{verdict: sum(each["verdict"] == verdict for each in mine) for verdict in ("refused", "same")},
            "failures": sum(each["verdict"] not in ("refused", "same") for each in mine),
            "megabytes": round(max(each["memory"] for each in mine) / 1e6, 1),
            "seconds": max(each["seconds"] for each in mine),
        }
        for kind in KINDS
        if (mine := [each for each in rows if each["kind"] == kind])
    }
    failures = [each for each in rows if each["verdict"] not in ("refused", "same")]
    return {"files": len(rows), "kinds": kinds, "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this file alone, and what each command said")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        numbers = range(options.count) if options.only is None else range(options.only, options.only + 1)
        rows = list(Suite(Path(folder)).use(options.seed, numbers, min(options.workers, len(numbers))))
    found = summary(rows) | {"seed": options.seed, "seconds": round(time.perf_counter() - started, 1)}
    if options.only is not None:
        print("\n".join(f"{name}: {str(value)[:1000]!r}" for name, value in rows[0].items()))
    print(f"{'kind':58}{'files':>7}{'refused':>9}{'same':>6}{'failures':>10}{'MB':>7}{'s':>6}")
    for name, row in found["kinds"].items():
        figures = (row[each] for each in ("files", "refused", "same", "failures", "megabytes", "seconds"))
        print("{:58}{:7}{:9}{:6}{:10}{:7}{:6}".format(name, *figures))
    for row in found["failures"][:20]:
        print(f"file {row['number']} ({row['kind']}): {row['verdict'][:300]!r}")
    print(f"{len(rows)} files in {found['seconds']} s: {len(found['failures'])} failures")
    if options.json:
        write_atomically(options.json, strict_json(found))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
