"""`convert`: a model between a checkpoint and files of PyTorch's, Keras' or flax' own layers. What was written is
loaded by its library, into its own layers, and must give NumPy's logits: before that, no file is there."""

import json
import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from runner.cli import Convert
from runner.console import say
from runner.registry import create_model, formats
from runner.sample import open_checkpoint
from runner.text import visible
from runner.workers import Worker
from shared.checkpoint import FORMAT, Checkpoint, load_checkpoint, read_header, save_checkpoint
from shared.config import (
    CorpusConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
    from_json,
    to_json,
)
from shared.errors import CheckpointError, ConfigError, ParameterError, UserError
from shared.files import WriteError, require_writable, write_atomically
from shared.layouts import LAYOUTS, Network, from_layers, to_layers
from shared.recognition import recognise
from shared.vocabulary import Vocabulary

Arrays = dict[str, np.ndarray]
SUFFIXES = {".pt": "torch", ".pth": "torch", ".keras": "keras", ".weights.h5": "keras", ".msgpack": "flax"}
"""Suffix -> library; .safetensors can hold a checkpoint, or PyTorch's or flax' layers."""
IMPLEMENTATIONS = {"torch": "torch", "keras": "tf", "flax": "jax"}
"""Library -> the implementation that has it."""
PRIVATE_USE, PLACEHOLDERS = 0xF0000, 65534
"""The first of so many code points that no text holds."""
COPIES, OVERHEAD = 2, 2**20
"""Of the arrays, while a library writes its file; and bytes beside them."""
UNPACKED = 20
"""How many times its size an archive may hold; weights hardly shrink."""
STEPS, ROWS = 16, 64
"""Tokens that are compared: T, and at most B."""
BOUND, ROUNDING_BOUND = 1e-10, 1e-5
"""Largest difference of logits, relative to the largest logit: of libraries in float64, and by rounding to float32."""


class UnequalError(UserError):
    """The outputs differ."""

    exit_status = 1


class Source(NamedTuple):
    """What is converted."""

    library: str  # "" for a checkpoint
    network: Network | None
    model: ModelConfig
    parameters: Arrays  # canonical, in float64, before any rounding
    dtype: np.dtype[Any]  # in which the file holds them
    checkpoint: Checkpoint | None
    """The source itself, or --like."""


class Library:
    """A library in its own process."""

    def __init__(self, library: str) -> None:
        self._formats = formats(IMPLEMENTATIONS[library])

    def save(self, path: Path, layers: Arrays, network: Network) -> None:
        self._formats.save_layers(path, layers, network)

    def load(self, path: Path) -> tuple[Arrays, dict[str, Any]]:
        arrays, told = self._formats.load_layers(path)
        return arrays, told

    def logits(self, path: Path, network: Network, tokens: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._formats.logits_of_layers(path, network, tokens)
        return logits


class Libraries:
    """Libraries by name, each started when it is first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._workers = stack, dict[str, Worker]()

    def __getitem__(self, name: str) -> Worker:
        if name not in self._workers:
            worker = Worker(IMPLEMENTATIONS[name], Library, name)
            self._workers[name] = self._stack.enter_context(worker)
        return self._workers[name]


def run(options: Convert) -> int:
    """Read, prove, write, prove, and only then put the file in its place."""
    layout = layout_of(options)
    if options.vocabulary and layout and not options.write_vocabulary:
        raise ConfigError("--vocabulary names the symbols of a checkpoint; a library's file has no place for them.")
    for path in filter(None, (options.target, options.write_vocabulary)):
        require_writable(path)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        libraries = Libraries(stack)
        source = read(options, libraries)
        if not (layout or source.library):
            raise ConfigError(
                f"{options.source} is a checkpoint, and {options.target} would be one, too: copy the file. For a "
                ".safetensors file with a library's names, give --layout torch, linen, nnx or nnx-optimized."
            )
        temporary = folder / f"model{suffix_of(options.target)}"
        if layout:
            write_layers(temporary, layout, source, libraries)
        else:
            write_checkpoint(temporary, source, vocabulary_of(options, source))
        if options.write_vocabulary:
            symbols = json.dumps(vocabulary_of(options, source).to_json(), ensure_ascii=False)
            write_atomically(options.write_vocabulary, symbols + "\n")
        write_atomically(options.target, temporary.read_bytes())
    describe(options.target, layout, source)
    return 0


def layout_of(options: Convert) -> str:
    """The layout of the target, "" for a checkpoint; ConfigError where suffix and --layout do not go together."""
    suffix, given = suffix_of(options.target), options.layout
    if suffix == ".safetensors":
        return "" if given == "auto" else given
    library = SUFFIXES[suffix]
    usual = {"flax": "linen"}.get(library, library)
    if given not in ("auto", usual) and not (library == "flax" and given.startswith("nnx")):
        raise ConfigError(f"--layout {given} does not go with {suffix}, a file of {LAYOUTS[usual]}.")
    return usual if given == "auto" else given


def suffix_of(path: Path) -> str:
    """The suffix that says the format; ConfigError where it says none."""
    for suffix in (*SUFFIXES, ".safetensors"):
        if path.name.endswith(suffix):
            return suffix
    raise ConfigError(
        f"{path}: its suffix names no format. Known: .safetensors (a checkpoint, or with --layout a library's names), "
        ".pt or .pth (PyTorch), .keras or .weights.h5 (Keras), .msgpack (flax)."
    )


def read(options: Convert, libraries: Libraries) -> Source:
    """The source, proven equal where it is a library's."""
    library = "" if options.source.is_dir() else library_of(options.source)
    if library:
        return read_layers(options, library, libraries)
    if given := [name for name in ("like", "vocabulary", *given_options(options)) if getattr(options, name)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(
            f"{options.source} is a checkpoint, which says itself what {flags} would say: leave that out."
        )
    _, checkpoint = open_checkpoint(options.source)
    model = from_json(ModelConfig, checkpoint.config.get("model"))
    return Source("", None, model, in_float64(checkpoint.parameters), precision(checkpoint.parameters), checkpoint)


def library_of(path: Path) -> str:
    """Whose layers a file holds, by its suffix and, in a safetensors file, by its names; "" for a checkpoint."""
    suffix = suffix_of(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if suffix != ".safetensors":
        return SUFFIXES[suffix]
    try:
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size)
    except (OSError, CheckpointError):
        return ""  # whoever opens it as a checkpoint is told what is wrong
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") == FORMAT:
        return ""
    return "torch" if any("weight_ih" in name for name in header) else "flax"


def read_layers(options: Convert, library: str, libraries: Libraries) -> Source:
    """A library's network; UnequalError where its own layers do not give NumPy's logits."""
    path = options.source
    require_plain(path)
    worker = libraries[library]
    like = open_checkpoint(options.like)[1] if options.like else None
    try:
        arrays, told = worker.call("load", path)
        require_finite(arrays)
        known = from_json(ModelConfig, like.config.get("model")) if like else None
        network = recognise(library, arrays, known, **(told | given_options(options)))
        layers = {name: arrays[there] for name, there in network.names.items()}
        parameters = from_layers(network.layout, network.model, in_float64(layers))
    except (CheckpointError, ConfigError, ParameterError) as error:
        raise CheckpointError(visible(f"{path}: {error}")) from None  # names in it are the file's
    prove(worker, path, network, parameters, str(path))
    return Source(library, network, network.model, parameters, precision(layers), like)


def require_plain(path: Path) -> None:
    """CheckpointError where a zip archive, as .pt and .keras files are, unpacks to far more than its own size or has a
    path in it that leads out; before a library opens it."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(visible(f"{path}: not a whole archive ({error}).")) from None
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > UNPACKED * path.stat().st_size:
        raise CheckpointError(f"{path} would unpack to {unpacked:,} bytes; no model does that, it is not opened.")
    if out := [each.filename for each in entries if PurePath(each.filename).is_absolute() or ".." in each.filename]:
        raise CheckpointError(visible(f"{path} holds the path {out[0]!r}, which leads out of it; it is not opened."))


def require_finite(arrays: Arrays) -> None:
    """CheckpointError where a weight is infinite or no number."""
    if broken := [name for name, each in arrays.items() if each.dtype.kind == "f" and not np.isfinite(each).all()]:
        raise CheckpointError(f"{', '.join(broken)} holds infinite values or no numbers: training had broken down.")


def given_options(options: Convert) -> dict[str, Any]:
    """What the user says of a model because no array tells it, as fields of ModelConfig."""
    names = ("nonlinearity", "embedding_activation", "residual", "many_to_one")
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(Convert, name)}


def write_layers(path: Path, layout: str, source: Source, libraries: Libraries) -> None:
    """Write a library's file and prove it; ParameterError where the library has no such layers."""
    parameters = rounded(source)
    layers = to_layers(layout, source.model, parameters)
    network = Network(layout, source.model, len(parameters["decoder.bias"]), dict.fromkeys(layers, ""))
    library = {"torch": "torch", "keras": "keras"}.get(layout, "flax")
    require_room(path.parent, sum(each.nbytes for each in layers.values()))
    worker = libraries[library]
    worker.call("save", path, layers, network)
    arrays, _ = worker.call("load", path)
    network = recognise(library, arrays, source.model)
    again = from_layers(network.layout, source.model, {name: arrays[there] for name, there in network.names.items()})
    require_same(parameters, again)
    prove(worker, path, network, in_float64(parameters), "the new file")
    if source.library:
        state_rounding(source, parameters)


def require_room(folder: Path, size: int) -> None:
    """WriteError where a library's file of so many bytes may not find room for a while: what the libraries say when a
    disk is full says nothing, and one of them crashes."""
    needed, free = COPIES * size + OVERHEAD, shutil.disk_usage(folder).free
    if free < needed:
        raise WriteError(
            f"Cannot write a temporary file in {folder.parent}: it needs up to {needed / 2**20:.1f} MiB, and "
            f"{free / 2**20:.1f} MiB are free. Make room there, or set TMPDIR to a folder that has some."
        )


def write_checkpoint(path: Path, source: Source, vocabulary: Vocabulary) -> None:
    """Write a checkpoint that any command opens, and read it back."""
    parameters = rounded(source)
    if source.checkpoint:
        config, progress = source.checkpoint.config, source.checkpoint.progress
    else:
        usual = (OptimizerConfig, ScheduleConfig, TrainingConfig, CorpusConfig)
        config = {kind.__name__.removesuffix("Config").lower(): to_json(kind()) for kind in usual}
        progress = {}
    config = config | {"model": to_json(source.model)}
    save_checkpoint(path, Checkpoint(parameters, {}, 0, {}, config, vocabulary, progress))
    require_same(parameters, load_checkpoint(path).parameters)
    state_rounding(source, parameters)


def vocabulary_of(options: Convert, source: Source) -> Vocabulary:
    """The symbols: those of the checkpoint or of --vocabulary, else one that no text holds for each token."""
    size = len(source.parameters["decoder.bias"])
    if options.vocabulary:
        vocabulary = read_vocabulary(options.vocabulary)
    elif source.checkpoint:
        vocabulary = source.checkpoint.vocabulary
    elif size > PLACEHOLDERS:
        raise ConfigError(f"The model in {options.source} has {size} symbols: name them with --vocabulary.")
    else:
        vocabulary = Vocabulary(tuple(chr(PRIVATE_USE + token) for token in range(size)))
        say("No --vocabulary: each token has a placeholder for a symbol, and texts will show nothing else.", "yellow")
    if len(vocabulary) != size:
        raise ConfigError(f"The vocabulary has {len(vocabulary)} symbols, and the model in {options.source} {size}.")
    return vocabulary


def read_vocabulary(path: Path) -> Vocabulary:
    """Symbols in a file: a JSON list, a JSON object from symbols to tokens or back, or one symbol a line."""
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--vocabulary {path} cannot be read: {error}.") from None
    if isinstance(content, dict):
        turned = all(isinstance(value, str) for value in content.values())
        symbols = (
            {int(key): value for key, value in content.items() if key.isdecimal()}
            if turned
            else {value: key for key, value in content.items() if type(value) is int}
        )
        if sorted(symbols) != list(range(len(content))):
            raise ConfigError(f"--vocabulary {path}: the tokens must be the numbers from 0 on, each once.")
        content = [symbols[token] for token in range(len(content))]
    try:
        return Vocabulary.from_json(content)
    except CheckpointError as error:
        raise ConfigError(f"--vocabulary {path}: {error} Here a model writes characters, or pieces of them.") from None


def prove(worker: Worker, path: Path, network: Network, parameters: Arrays, what: str) -> None:
    """Say how far the library's own layers, with the file's weights in float64, are from NumPy; UnequalError where that
    is more than rounding."""
    tokens = some_tokens(network.size)
    expected = logits(network.model, parameters, tokens)
    found = distance(worker.call("logits", path, network, tokens), expected)
    library = LAYOUTS[network.layout]
    if not found <= BOUND:
        raise UnequalError(
            f"The layers of {library} with the weights of {what} give other logits than NumPy: they differ by "
            f"{found:.1e} of the largest, where float64 explains {BOUND:g}. Nothing was written. If this network was "
            "made elsewhere, something in it is not in its weights, such as an activation or a residual connection."
        )
    say(
        f"The layers of {library} and NumPy, both in float64: logits of {tokens.shape[0]} x {tokens.shape[1]} tokens "
        f"differ by {found:.1e} of the largest (at most {BOUND:g})"
    )


def state_rounding(source: Source, parameters: Arrays) -> None:
    """Say what rounding to the file's precision does, where two biases were added up; UnequalError where too much."""
    tokens = some_tokens(len(parameters["decoder.bias"]))
    exact, after = (logits(source.model, each, tokens) for each in (source.parameters, in_float64(parameters)))
    found = distance(after, exact)
    if not found <= ROUNDING_BOUND:
        raise UnequalError(f"Rounded to {source.dtype}, the weights give other logits: {found:.1e} of the largest.")
    if found:
        say(f"the sum of two biases, rounded to {source.dtype} as the file has it, changes logits by {found:.1e}")


def require_same(written: Arrays, again: Arrays) -> None:
    """UnequalError where what was written does not come back bit for bit."""
    if changed := [name for name, each in written.items() if not np.array_equal(each, again[name])]:
        raise UnequalError(f"{', '.join(changed)} did not come back from the file as written. Nothing was written.")


def logits(model: ModelConfig, parameters: Arrays, tokens: np.ndarray) -> np.ndarray:
    """NumPy's, in float64: [B, T, V], or [B, V] of a many-to-one model."""
    runtime = RuntimeConfig(device="cpu", dtype="float64")
    reference = create_model("numpy", model, OptimizerConfig(), len(parameters["decoder.bias"]), runtime)
    reference.load_parameters(parameters)
    return reference.logits(tokens, reference.initial_state(len(tokens)))[0]


def some_tokens(size: int) -> np.ndarray:
    """int32 [B, T]: every token once where there is room, then any."""
    rows = min(ROWS, max(3, -(-size // STEPS)))
    numbers = np.random.default_rng(0)
    tokens = np.concatenate([numbers.permutation(size), numbers.integers(size, size=rows * STEPS)])
    return tokens[: rows * STEPS].reshape(rows, STEPS).astype(np.int32)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected number; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(float).tiny))


def rounded(source: Source) -> Arrays:
    """The parameters in the precision of the source's file."""
    return {name: each.astype(source.dtype) for name, each in source.parameters.items()}


def in_float64(arrays: Arrays) -> Arrays:
    return {name: each.astype(np.float64) for name, each in arrays.items()}


def precision(arrays: Arrays) -> np.dtype[Any]:
    """The widest of the arrays' types."""
    return np.result_type(*arrays.values())


def describe(target: Path, layout: str, source: Source) -> None:
    """The last line."""
    model, size = source.model, len(source.parameters["decoder.bias"])
    held = f"layers of {LAYOUTS[layout]}" if layout else "a checkpoint"
    kind = {"rnn": f"rnn ({model.nonlinearity})", "gru": f"gru (reset {model.gru_reset})"}.get(model.cell, model.cell)
    layers = f"{model.num_layers} layer{'s' * (model.num_layers > 1)} of {model.hidden_size} units"
    say(f"{target}: {held}, {kind}, {layers}, {size} symbols, {source.dtype}")
