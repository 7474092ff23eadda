"""Every option of an experiment, once: frozen, validated dataclasses. Standard library only, since the command line is
parsed before NumPy loads. Flags are the field names (`hidden_size` is `--hidden-size`)."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from shared.errors import ConfigError

Cell = Literal["rnn", "lstm", "gru"]
Optimizer = Literal["sgd", "adam"]
Initializer = Literal["uniform", "normal", "xavier"]
Implementation = Literal["numpy", "torch", "jax", "tf"]
Engine = Literal["scratch"]
Dtype = Literal["float32", "float64"]
Reader = Literal["auto", "text", "poems", "titled", "json"]
Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    cell: Cell = "lstm"
    """Recurrent cell: rnn (tanh), lstm, or gru (reset after the product)."""
    hidden_size: int = 128
    """H, units of each layer."""
    num_layers: int = 1
    """Layers stacked on each other."""
    embedding_size: int = 64
    """E, size of the learned token vectors; 0 feeds one-hot vectors."""
    initializer: Initializer = "uniform"
    """Initial weights: uniform(-1/sqrt(H), 1/sqrt(H)) as PyTorch's layers, normal(0, 0.01), or Xavier uniform."""

    def __post_init__(self) -> None:
        at_least(self, "hidden_size", 1)
        at_least(self, "num_layers", 1)
        at_least(self, "embedding_size", 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates (PyTorch's formulas: shared/optimizers.py)."""

    optimizer: Optimizer = "adam"
    """Update rule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments."""
    epsilon: float = 1e-8
    """Adam's epsilon, added outside the square root."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 leaves them alone."""

    def __post_init__(self) -> None:
        positive(self, "epsilon")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--betas must lie in [0, 1), got {self.betas}.")
        if not (self.clip_norm >= 0 and math.isfinite(self.clip_norm)):
            raise ConfigError(f"--clip-norm must be 0 (off) or a positive number, got {self.clip_norm}.")


@dataclass(frozen=True)
class TrainingConfig:
    """What is read, in which portions, for how long."""

    batch_size: int = 32
    """B, sequences side by side."""
    seq_length: int = 64
    """T, steps of a window (truncated backpropagation), or the length poems are padded to."""
    epochs: int = 12
    """Passes over the training text."""
    max_steps: int = 0
    """Stop after this many updates; 0: no such limit."""
    learning_rate: float = 4e-3
    """Step size."""
    patience: int = 5
    """Stop when the held-out loss has not improved for this many epochs; 0: never."""
    seed: int = 0
    """Decides initial weights, shuffles and samples, in every implementation alike."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "seq_length", "epochs"):
            at_least(self, name, 1)
        for name in ("max_steps", "patience", "seed"):
            at_least(self, name, 0)
        positive(self, "learning_rate")
        if self.seed >= 2**63:
            raise ConfigError(f"--seed must be below 2**63, got {self.seed}.")


@dataclass(frozen=True)
class CorpusConfig:
    """The text."""

    corpus: str = "starter-play"
    """A named corpus (`python -m runner corpora` lists them) or a file of yours: UTF-8 text, one poem a line,
    `title:poem` lines, or a JSON list of poems."""
    reader: Reader = "auto"
    """How to read a file of yours; auto looks at its lines."""
    data_dir: Path | None = None
    """Folder with copies of the named corpora, `<name>/<file>`, used instead of the network; also ROSETTA_DATA_DIR."""
    minimum_count: int = 1
    """Characters seen less often than this become the unknown symbol."""

    def __post_init__(self) -> None:
        at_least(self, "minimum_count", 1)
        if not self.corpus:
            raise ConfigError("--corpus is empty; give a name (`python -m runner corpora` lists them) or a file.")


@dataclass(frozen=True)
class RuntimeConfig:
    """Where it runs; never changes what is computed."""

    engine: Engine = "scratch"
    """scratch: the cell written out, unrolled by the framework."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where the framework sees one."""
    dtype: Dtype = "float32"
    """Precision of parameters and arithmetic."""
    threads: int = 0
    """Processor threads; 0: all cores this process may use (NumPy: one, its products are too small to share)."""
    tuning: bool = True
    """Set threads and waiting policy in the environment; --no-tuning leaves it alone."""

    def __post_init__(self) -> None:
        at_least(self, "threads", 0)
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (":" in self.device and not (kind == "cuda" and index.isdecimal())):
            raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {self.device!r}.")


@dataclass(frozen=True)
class SamplingConfig:
    """How text is drawn."""

    prompt: str = ""
    """Text to go on from; empty starts where texts start."""
    temperature: float = 0.8
    """Divides the logits: below 1 bolder in the likely, above 1 more varied; 0 always takes the likeliest."""
    top_k: int = 0
    """Draw from the k likeliest only; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest that together hold this probability; 1: from all."""
    length: int = 400
    """N, tokens to write at most."""
    seed: int = 0
    """Same seed, same text, in every implementation."""

    def __post_init__(self) -> None:
        at_least(self, "top_k", 0)
        at_least(self, "length", 1)
        at_least(self, "seed", 0)
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"--temperature must be 0 or a positive number, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must lie in (0, 1], got {self.top_p}.")


def at_least(config: Any, name: str, least: int) -> None:
    """Raise ConfigError where a field is below its least value."""
    if getattr(config, name) < least:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} must be at least {least}, got {getattr(config, name)}.")


def positive(config: Any, name: str) -> None:
    """Raise ConfigError where a field is not a positive, finite number."""
    value = getattr(config, name)
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"--{name.replace('_', '-')} must be a positive number, got {value}.")


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def from_json(kind: type[Config], values: Any) -> Config:
    """The config again; ConfigError names entries that are missing, unexpected or of another type."""
    if not isinstance(values, dict):
        raise ConfigError(f"{kind.__name__} must be a JSON object, got {type(values).__name__}.")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if wrong := sorted(values.keys() ^ known.keys()):
        raise ConfigError(f"{kind.__name__} has missing or unexpected entries: {', '.join(wrong)}.")
    default = kind()
    restored = {name: restore(name, value, getattr(default, name)) for name, value in values.items()}
    for name, hint in get_type_hints(kind).items():
        if get_origin(hint) is Literal and restored[name] not in get_args(hint):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(hint))}, got {restored[name]!r}.")
    return kind(**restored)


def restore(name: str, value: Any, default: Any) -> Any:
    """A JSON value as the type of the field's default."""
    if name == "data_dir":
        return None if value is None else Path(value)
    if isinstance(default, tuple) and isinstance(value, list) and len(value) == len(default):
        return tuple(restore(name, part, like) for part, like in zip(value, default, strict=True))
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{name} must be {type(default).__name__}, got {value!r}.")
    return value
