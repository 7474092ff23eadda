"""A checkpoint is one safetensors file that any framework can go on from, and NumPy alone can read: parameters under
their canonical names, "optimizer.<slot>.<parameter>", "state.<field>", and as metadata (strings) `format`, `config`,
`vocabulary`, `progress` (JSON), `step` and `sha256`, the hash of all the rest.

A file is believed only after its header has been checked entry by entry: libraries accept overlapping tensors and
repeated names, and a header may declare any size.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from safetensors.numpy import save

from shared.errors import CheckpointError
from shared.files import write_atomically
from shared.vocabulary import Vocabulary

Arrays = dict[str, np.ndarray]
FORMAT = "rosetta-rnn/1"
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
REQUIRED = {"config", "progress", "sha256", "step", "vocabulary"}
LARGEST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that going on needs."""

    parameters: Arrays
    slots: Arrays
    step: int
    """Updates made so far, for the optimizer."""
    state: Arrays
    config: dict[str, Any]
    vocabulary: Vocabulary
    progress: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file whole or not at all."""
    slots, state = prefixed("optimizer.", checkpoint.slots), prefixed("state.", checkpoint.state)
    # safetensors writes the memory of an array as it lies, whatever its strides
    tensors = {name: np.ascontiguousarray(each) for name, each in (checkpoint.parameters | slots | state).items()}
    metadata = {
        "format": FORMAT,
        "config": to_text(checkpoint.config),
        "vocabulary": to_text(checkpoint.vocabulary.to_json()),
        "progress": to_text(checkpoint.progress),
        "step": str(checkpoint.step),
    }
    metadata["sha256"] = content_hash(tensors, metadata)
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read it back; CheckpointError says what is wrong with a file that is no whole checkpoint."""
    try:
        with path.open("rb") as file:
            return read_checkpoint(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_checkpoint(file: IO[bytes], size: int) -> Checkpoint:
    """Header, tensors, hash, contents, in this order."""
    header = read_header(file, size)
    metadata = checked_metadata(header.pop("__metadata__", {}))
    tensors = read_tensors(header, file.read())
    if content_hash(tensors, metadata) != metadata["sha256"]:
        refuse("the contents do not have the hash that is written in the file. It was damaged or changed; use a copy.")
    parameters = {name: each for name, each in tensors.items() if not name.startswith(("optimizer.", "state."))}
    if broken := [name for name, each in parameters.items() if not np.isfinite(each).all()]:
        refuse(
            f"{', '.join(broken)} holds infinite values or no numbers: training had broken down; use an earlier one."
        )
    return Checkpoint(
        parameters=parameters,
        slots=below("optimizer.", tensors),
        step=json_as(int, "step", metadata),
        state=below("state.", tensors),
        config=json_as(dict, "config", metadata),
        vocabulary=Vocabulary.from_json(json_as(list, "vocabulary", metadata)),
        progress=json_as(dict, "progress", metadata),
    )


def read_header(file: IO[bytes], size: int) -> dict[str, Any]:
    """The JSON object before the data; nothing is read or allocated for it before its length is plausible."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        refuse(f"not a checkpoint, or cut short: it has {size} bytes, and its header alone should have {length}.")
    if length > LARGEST_HEADER:
        refuse(f"not a checkpoint: its header should have {length} bytes; at most {LARGEST_HEADER} are read.")
    header = parse("the header", file.read(length))
    return header if isinstance(header, dict) else refuse("not a checkpoint: its header is not a JSON object.")


def checked_metadata(metadata: Any) -> dict[str, str]:
    """The metadata of this format, all strings."""
    form = metadata.get("format") if isinstance(metadata, dict) else None
    if form != FORMAT:
        refuse(f"this is a safetensors file, but not a {FORMAT} checkpoint (its format: {form!r}).")
    if missing := sorted(REQUIRED - metadata.keys()):
        refuse(f"the metadata lacks {', '.join(missing)}.")
    if not all(isinstance(value, str) for value in metadata.values()):
        refuse("the metadata holds something else than strings.")
    return metadata


def read_tensors(header: dict[str, Any], data: bytes) -> Arrays:
    """The arrays, once their places tile the data without gap or overlap."""
    places = {name: checked_entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, after) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            refuse(f"{name} begins at byte {begin} of the data, but what is before it ends at {end}.")
        end = after
    if end != len(data):
        refuse(f"the header describes {end} bytes of data, and the file holds {len(data)}. It was cut or appended to.")
    return {
        name: np.frombuffer(data, dtype, math.prod(shape), begin).reshape(shape).copy()
        for name, (dtype, shape, begin, _) in places.items()
    }


def checked_entry(name: str, entry: Any) -> tuple[np.dtype[Any], list[int], int, int]:
    """dtype, shape, begin and end of a tensor, if they agree with each other."""
    if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}):
        refuse(f"{name} is not described by dtype, shape and data_offsets.")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(kind, str) and kind in DTYPES):
        refuse(f"{name} has dtype {kind!r}; a checkpoint holds F32 and F64 only.")
    if not (are_sizes(shape, least=1) and are_sizes(offsets, least=0) and len(offsets) == 2):
        refuse(f"{name} has a shape or data_offsets that are not short lists of sizes.")
    begin, after = offsets
    if after - begin != math.prod(shape) * DTYPES[kind].itemsize:
        refuse(f"{name} has {after - begin} bytes, which do not hold {kind} {shape}.")
    return DTYPES[kind], shape, begin, after


def are_sizes(value: Any, least: int) -> bool:
    """Whether a JSON value is a short list of whole numbers, none too small."""
    return isinstance(value, list) and len(value) <= 8 and all(type(part) is int and part >= least for part in value)


def content_hash(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """sha256 of names, types, shapes, bytes and the other metadata; the order within the file does not matter."""
    described = {name: [each.dtype.str, list(each.shape)] for name, each in tensors.items()}
    others = {name: value for name, value in metadata.items() if name != "sha256"}
    digest = sha256(to_text([described, others]).encode(errors="surrogatepass"))
    for name in sorted(tensors):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def to_text(value: Any) -> str:
    """JSON, the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def parse(what: str, text: str | bytes) -> Any:
    """JSON of which no name stands twice in one object."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        refuse(f"not a checkpoint, or damaged: {what} is not JSON ({error}).")


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary; ValueError where a name is repeated."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice")
        found[name] = value
    return found


def json_as(kind: type, name: str, metadata: Mapping[str, str]) -> Any:
    """An entry of the metadata, of the type it must have."""
    value = parse(f"the entry {name}", metadata[name])
    return value if type(value) is kind else refuse(f"the entry {name} is not a JSON {kind.__name__}.")


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: each for name, each in arrays.items()}


def below(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}


def refuse(reason: str) -> NoReturn:
    """Raise CheckpointError."""
    raise CheckpointError(reason)
