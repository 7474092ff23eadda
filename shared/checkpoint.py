"""A checkpoint is one safetensors file that any framework can go on from, and NumPy alone can read: parameters under
their canonical names, "optimizer.<slot>.<parameter>", "state.<field>", and as metadata (strings) `format`, `config`,
`vocabulary`, `progress` (JSON), `step` and `sha256`, the hash of all the rest.

A file is believed only after its header has been checked entry by entry: libraries accept overlapping tensors and
repeated names, and a header may declare any size. Reading holds the file's size and its header's objects in memory, no
second copy of the data.
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

from shared.config import CorpusConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainingConfig, from_json, to_json
from shared.errors import CheckpointError, ConfigError, ParameterError
from shared.files import write_atomically
from shared.optimizers import slot_shapes
from shared.parameters import check_arrays, parameter_shapes, state_shapes
from shared.vocabulary import Vocabulary

Arrays = dict[str, np.ndarray]
FORMAT = "rosetta-rnn/1"
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
REQUIRED = {"config", "progress", "sha256", "step", "vocabulary"}
CONFIGS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "training": TrainingConfig,
    "corpus": CorpusConfig,
}
"""The parts of `config`, where it describes a run; "corpus_sha256" may stand beside them."""
MAY_CHANGE = {"corpus", "data_dir", "epochs", "max_steps"}
"""Options that can be others when a run goes on; that the text is the same, its hash says."""
LARGEST_HEADER, MOST_BRACKETS = 4_000_000, 200_000
"""Bytes, and opening brackets among them: a vocabulary of 200,000 subwords has room, and no JSON within these limits
takes more than about 100 MB of memory."""
LONGEST_REASON = 2000
"""Characters of an error that may quote a file."""


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
    content = save(tensors, metadata)
    if (length := int.from_bytes(content[:8], "little")) > LARGEST_HEADER:
        refuse(f"{path} is not written: its header would have {length} bytes, and at most {LARGEST_HEADER} are read.")
    write_atomically(path, content, make_folder=False)


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
    tensors = read_tensors(header, file, size - file.tell())
    if content_hash(tensors, metadata) != metadata["sha256"]:
        refuse("the contents do not have the hash that is written in the file. It was damaged or changed; use a copy.")
    if broken := [name for name, each in tensors.items() if not np.isfinite(each).all()]:
        refuse(
            f"{', '.join(broken)} holds infinite values or no numbers: training had broken down; use an earlier one."
        )
    step = json_as(int, "step", metadata)
    return Checkpoint(
        parameters={name: each for name, each in tensors.items() if not name.startswith(("optimizer.", "state."))},
        slots=below("optimizer.", tensors),
        step=step if 0 <= step < 2**63 else refuse(f"the step must be a number of updates, got {step}."),
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
    text = file.read(length)
    if text.count(b"[") + text.count(b"{") > MOST_BRACKETS:
        refuse(f"not a checkpoint: its header holds more than {MOST_BRACKETS} lists and objects.")
    header = parse("the header", text)
    return header if isinstance(header, dict) else refuse("not a checkpoint: its header is not a JSON object.")


def checked_metadata(metadata: Any) -> dict[str, str]:
    """The metadata of this format, all strings."""
    form = metadata.get("format") if isinstance(metadata, dict) else None
    if form != FORMAT:
        refuse(f"this is a safetensors file, but not a {FORMAT} checkpoint (its format: {form!r}).")
    if missing := sorted(REQUIRED - metadata.keys()):
        refuse(f"the metadata lacks {', '.join(missing)}.")
    if unknown := sorted(metadata.keys() - REQUIRED - {"format"}):
        refuse(f"the metadata has entries that a checkpoint has not: {', '.join(unknown)}.")
    if not all(isinstance(value, str) for value in metadata.values()):
        refuse("the metadata holds something else than strings.")
    return metadata


def read_tensors(header: dict[str, Any], file: IO[bytes], size: int) -> Arrays:
    """The arrays, once their places tile the `size` bytes of data without gap or overlap; they share one memory."""
    places = {name: checked_entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, after) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            refuse(f"{name} begins at byte {begin} of the data, but what is before it ends at {end}.")
        end = after
    if end != size:
        refuse(f"the header describes {end} bytes of data, and the file holds {size}. It was cut or appended to.")
    data = np.empty(size, np.uint8)
    if file.readinto(data) != size:  # type: ignore[attr-defined]
        refuse("the file became shorter while it was read.")
    views = {
        name: np.frombuffer(data, dtype, math.prod(shape), begin).reshape(shape)
        for name, (dtype, shape, begin, _) in places.items()
    }
    return {name: np.require(each, requirements="A") for name, each in views.items()}


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
    """Whether a JSON value is a short list of whole numbers, none too small, none beyond what a file can have."""
    short = isinstance(value, list) and len(value) <= 8
    return short and all(type(part) is int and least <= part < 2**63 for part in value)


def content_hash(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """sha256 of names, types, shapes, bytes and the other metadata; the order within the file does not matter."""
    described = {name: [each.dtype.str, list(each.shape)] for name, each in tensors.items()}
    others = {name: value for name, value in metadata.items() if name != "sha256"}
    digest = sha256(to_text([described, others]).encode(errors="surrogatepass"))
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()


def to_text(value: Any) -> str:
    """JSON, the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def parse(what: str, text: str | bytes) -> Any:
    """JSON of which no name stands twice in one object, and every number is one."""
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=distinct, parse_constant=no_number)
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


def no_number(word: str) -> NoReturn:
    """Infinity and NaN, which Python would take."""
    raise ValueError(f"{word} is no number in JSON")


def json_as(kind: type, name: str, metadata: Mapping[str, str]) -> Any:
    """An entry of the metadata, of the type it must have."""
    value = parse(f"the entry {name}", metadata[name])
    return value if type(value) is kind else refuse(f"the entry {name} is not a JSON {kind.__name__}.")


def require_run(checkpoint: Checkpoint) -> None:
    """CheckpointError unless the options that it has are some, and the parameters those of its model. It is for before
    a model is made: options could ask for any size."""
    config = checkpoint.config
    if wrong := sorted(config.keys() - {"corpus_sha256"} - CONFIGS.keys()):
        refuse(f"its config has unexpected parts: {', '.join(wrong)}.")
    if not isinstance(config.get("corpus_sha256", ""), str):
        refuse("its corpus_sha256 is no string.")
    try:
        for name in config.keys() & CONFIGS.keys():
            from_json(CONFIGS[name], config[name])
        model = from_json(ModelConfig, config.get("model"))
        if model.num_layers > len(checkpoint.parameters):
            raise ParameterError(f"{len(checkpoint.parameters)} parameters are none of {model.num_layers} layers.")
        check_arrays("The parameters", checkpoint.parameters, parameter_shapes(model, len(checkpoint.vocabulary)))
    except (ConfigError, ParameterError) as error:
        refuse(f"it does not fit together, or is of another version: {error}")


def require_same_run(checkpoint: Checkpoint, run: Any, vocabulary: Vocabulary) -> None:
    """CheckpointError unless it is of the run with these options (fields as in CONFIGS) and symbols. Where its text
    lies, and how long it lasts, may have changed."""
    require_run(checkpoint)
    if missing := sorted(CONFIGS.keys() - checkpoint.config.keys()):
        refuse(f"training cannot go on from it: its config lacks {', '.join(missing)}.")
    for name, kind in CONFIGS.items():
        given, stored = to_json(getattr(run, name)), to_json(from_json(kind, checkpoint.config[name]))
        if changed := [each for each in given if given[each] != stored[each] and each not in MAY_CHANGE]:
            refuse(f"it is of another run than config.json beside it: {', '.join(changed)} differ.")
    if checkpoint.vocabulary != vocabulary:
        refuse("it is of another run: its vocabulary is not that of the corpus.")
    try:
        check_arrays("The state", checkpoint.state, state_shapes(run.model, run.training.batch_size))
        parameters = parameter_shapes(run.model, len(vocabulary))
        check_arrays("The optimizer's slots", checkpoint.slots, slot_shapes(run.optimizer, parameters))
    except ParameterError as error:
        refuse(f"training cannot go on from it: {error}")


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: each for name, each in arrays.items()}


def below(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}


def refuse(reason: str) -> NoReturn:
    """Raise CheckpointError; what it quotes of a file may be of any length."""
    raise CheckpointError(reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + " ...")
