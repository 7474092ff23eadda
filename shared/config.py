"""Every option of an experiment, once: frozen, validated dataclasses. Standard library only, since the command line is
parsed before NumPy loads. Flags are the field names (`hidden_size` is `--hidden-size`)."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from shared.errors import ConfigError

Cell = Literal["rnn", "lstm", "gru", "wrnn"]
Activation = Literal["none", "tanh", "relu", "sigmoid"]
Optimizer = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
Dialect = Literal["torch", "keras", "optax"]
Initializer = Literal["uniform", "normal", "xavier", "kaiming", "orthogonal", "zero", "torch", "keras", "flax"]
Schedule = Literal["constant", "exponential", "step", "cosine", "plateau"]
Implementation = Literal["numpy", "torch", "jax", "tf"]
Engine = Literal["auto", "scratch", "fused", "native"]
Dtype = Literal["float32", "float64", "tf32", "bfloat16"]
Reader = Literal["auto", "text", "poems", "blocks", "titled", "json"]
FormName = Literal["5x4", "7x4", "5x8", "7x8"]
Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    cell: Cell = "lstm"
    """Recurrent cell: rnn, lstm, gru, or wrnn (two sigmoid layers with a skip through time)."""
    hidden_size: int = 128
    """H, units of each layer."""
    num_layers: int = 1
    """Layers stacked on each other."""
    embedding_size: int = 64
    """E, size of the learned token vectors; 0 feeds one-hot vectors."""
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Activation of the rnn cell."""
    gru_reset: Literal["after", "before"] = "after"
    """Where the gru's reset gate acts: after the product, as PyTorch, cuDNN and Keras, or before, as in the paper."""
    embedding_activation: Activation = "none"
    """Activation between the embedding and the first layer."""
    residual: bool = False
    """Each layer adds its input to its output, projected where the sizes differ."""
    dropout: float = 0.0
    """Share of the outputs of all layers but the last that is dropped in training."""
    output_dropout: float = 0.0
    """Share of the last layer's outputs that is dropped in training."""
    tied_weights: bool = False
    """The embedding serves as the decoder's weight, too."""
    many_to_one: bool = False
    """Only the last step of a window predicts."""
    initializer: Initializer = "uniform"
    """Initial weights: uniform(-1/sqrt(H), 1/sqrt(H)), biases too; normal(0, 0.01); xavier, kaiming (uniform) or
    orthogonal, for each gate alone; zero; or the defaults of torch's, keras' or flax' layers."""
    forget_bias: float = 0.0
    """Added to the initial bias of the lstm's forget gate."""

    def __post_init__(self) -> None:
        at_least(self, "hidden_size", 1)
        at_least(self, "num_layers", 1)
        at_least(self, "embedding_size", 0)
        for name in ("dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must lie in [0, 1), got {getattr(self, name)}.")
        if not math.isfinite(self.forget_bias):
            raise ConfigError(f"--forget-bias must be a finite number, got {self.forget_bias}.")
        several = "acts between layers: it needs --num-layers 2 or more; behind the only one acts --output-dropout"
        needs(self.dropout > 0, "--dropout", self.num_layers > 1, several)
        needs(self.nonlinearity != "tanh", "--nonlinearity", self.cell == "rnn", "belongs to --cell rnn")
        needs(self.gru_reset != "after", "--gru-reset", self.cell == "gru", "belongs to --cell gru")
        needs(self.forget_bias != 0, "--forget-bias", self.cell == "lstm", "belongs to --cell lstm")
        embedded = self.embedding_size > 0
        needs(self.embedding_activation != "none", "--embedding-activation", embedded, "needs --embedding-size above 0")
        same = self.embedding_size == self.hidden_size
        needs(self.tied_weights, "--tied-weights", same, "needs --embedding-size equal to --hidden-size")

    @property
    def dropout_rates(self) -> tuple[float, ...]:
        """Of each layer's outputs."""
        return (self.dropout,) * (self.num_layers - 1) + (self.output_dropout,)


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates (formulas: shared/optimizers.py). Clipping goes by value, then by layer, then by
    global norm; each can be off."""

    optimizer: Optimizer = "adam"
    """Update rule."""
    dialect: Dialect = "torch"
    """Whose formula: where epsilon stands, whether the learning rate enters the momentum. Numbers are the options'."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments."""
    epsilon: float = 1e-8
    """Keeps the division of adagrad, rmsprop, adam and adamw finite."""
    alpha: float = 0.99
    """Decay of rmsprop's squares."""
    momentum: float = 0.9
    """Decay of the velocity of momentum and nesterov."""
    rmsprop_momentum: float = 0.0
    """Decay of a velocity behind rmsprop; 0: none."""
    centered: bool = False
    """Rmsprop divides by the deviation from the mean gradient."""
    initial_accumulator: float = 0.0
    """What adagrad's sums of squares start from."""
    weight_decay: float = 0.01
    """Adamw's decay, times the learning rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 leaves them alone."""
    clip_layers: tuple[str, ...] = ()
    """Norm limits of layers: embedding=0.5 l0=1 l1=0.25 decoder=1; a layer that is not named is left alone."""
    clip_value: float = 0.0
    """Every number of every gradient is cut to [-v, v]; 0 leaves them alone."""

    def __post_init__(self) -> None:
        positive(self, "epsilon")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--betas must lie in [0, 1), got {self.betas}.")
        for name in ("alpha", "momentum", "rmsprop_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must lie in [0, 1), got {getattr(self, name)}.")
        for name in ("clip_norm", "clip_value", "initial_accumulator", "weight_decay"):
            zero_or_more(self, name)
        for each in self.clip_layers:
            layer_limit(each)
        rmsprop, adagrad = self.optimizer == "rmsprop", self.optimizer == "adagrad"
        needs(self.centered, "--centered", rmsprop, "belongs to --optimizer rmsprop")
        needs(self.rmsprop_momentum > 0, "--rmsprop-momentum", rmsprop, "belongs to --optimizer rmsprop")
        needs(self.initial_accumulator > 0, "--initial-accumulator", adagrad, "belongs to --optimizer adagrad")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a function of the step (formulas: shared/schedules.py)."""

    schedule: Schedule = "constant"
    """constant; exponential or step decay; cosine with warm restarts; plateau: lower when the held-out loss stalls."""
    decay_rate: float = 0.96
    """Factor of exponential and step, each --decay-steps; of plateau, each time."""
    decay_steps: int = 1000
    """Steps in which exponential decays once, smoothly, and after which step does at once."""
    restart_period: int = 0
    """T_0, length of cosine's first period; 0: the whole run, without a restart."""
    restart_factor: int = 1
    """T_mult, how many times as long each period is as the one before."""
    minimum_rate: float = 0.0
    """eta_min, where cosine and plateau end."""
    schedule_unit: Literal["epoch", "step"] = "epoch"
    """Whether cosine counts, and changes the rate, by epoch or by step."""
    warmup_steps: int = 0
    """The rate rises linearly over so many steps, whatever the schedule."""
    plateau_patience: int = 2
    """Epochs without a better held-out loss before plateau lowers the rate."""
    schedule_steps: int = 0
    """Steps that a schedule over the whole run counts on; 0: those of this run. Kept when a run is prolonged."""

    def __post_init__(self) -> None:
        for name in ("decay_steps", "restart_factor"):
            at_least(self, name, 1)
        for name in ("restart_period", "warmup_steps", "plateau_patience", "schedule_steps"):
            at_least(self, name, 0)
        zero_or_more(self, "minimum_rate")
        if not 0 < self.decay_rate <= 1:
            raise ConfigError(f"--decay-rate must lie in (0, 1], got {self.decay_rate}.")
        cosine, restarts = self.schedule == "cosine", self.restart_period > 0
        ends = cosine or self.schedule == "plateau"
        needs(restarts, "--restart-period", cosine, "belongs to --schedule cosine")
        needs(self.restart_factor > 1, "--restart-factor", restarts, "needs --restart-period")
        needs(self.schedule_unit != "epoch", "--schedule-unit", cosine, "belongs to --schedule cosine")
        needs(self.minimum_rate > 0, "--minimum-rate", ends, "belongs to --schedule cosine or plateau")
        once = cosine and not restarts
        needs(self.schedule_steps > 0, "--schedule-steps", once, "belongs to --schedule cosine without restarts")


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
    """Decides initial weights, shuffles, dropout and samples, in every implementation alike."""
    stride: int = 0
    """0 reads a running text as contiguous streams with carried state; n reads shuffled windows, one every n tokens."""
    carry_state: bool = False
    """With --stride, windows start from the state that the batch before left, and not from zero."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "seq_length", "epochs"):
            at_least(self, name, 1)
        for name in ("max_steps", "patience", "seed", "stride"):
            at_least(self, name, 0)
        positive(self, "learning_rate")
        if self.seed >= 2**63:
            raise ConfigError(f"--seed must be below 2**63, got {self.seed}.")
        needs(self.carry_state, "--carry-state", self.stride > 0, "needs --stride; streams carry their state anyway")


@dataclass(frozen=True)
class CorpusConfig:
    """The text."""

    corpus: str = "starter-play"
    """A named corpus (`python -m runner corpora` lists them) or a file of yours: UTF-8 text, one poem a line,
    `title:poem` lines, or a JSON list of poems."""
    reader: Reader = "auto"
    """How to read a file of yours; auto looks at its lines. It never takes blocks, poems between blank lines."""
    data_dir: Path | None = None
    """Folder with copies of the named corpora, `<name>/<file>`, used instead of the network; also ROSETTA_DATA_DIR."""
    minimum_count: int = 1
    """Characters seen less often than this become the unknown symbol."""
    normalize: Literal["none", "letters"] = "none"
    """letters: lower case, and every run of anything but a-z becomes one space (as d2l reads The Time Machine)."""
    drop: str = ""
    """Characters to leave out of the text."""
    leave_out: str = ""
    """Leave out poems that hold any of these characters, such as notes in brackets."""
    first_characters: int = 0
    """Read only so many characters of the text; 0: all."""
    minimum_length: int = 0
    """Leave out poems with fewer characters."""
    maximum_length: int = 0
    """Leave out poems with more characters; 0: no limit."""
    cut: bool = False
    """Poems longer than --seq-length are cut to it, not left out."""
    held_out: float = 0.1
    """Share of the text that is held out, by a rule that no seed changes; 0: evaluate on the training text."""
    subwords: int = 0
    """Size of a vocabulary of BPE subwords learned from the training text; 0: characters."""

    def __post_init__(self) -> None:
        at_least(self, "minimum_count", 1)
        for name in ("first_characters", "minimum_length", "maximum_length", "subwords"):
            at_least(self, name, 0)
        if not 0 <= self.held_out <= 0.5:
            raise ConfigError(f"--held-out must lie in [0, 0.5], got {self.held_out}.")
        if 0 < self.maximum_length < self.minimum_length:
            raise ConfigError(
                f"--maximum-length {self.maximum_length} is below --minimum-length {self.minimum_length}: "
                "no poem could pass."
            )
        needs(
            self.subwords > 0,
            "--subwords",
            self.minimum_count == 1,
            "knows no rare characters: leave --minimum-count at 1",
        )
        if not self.corpus:
            raise ConfigError("--corpus is empty; give a name (`python -m runner corpora` lists them) or a file.")


@dataclass(frozen=True)
class RuntimeConfig:
    """Where it runs; never changes what is computed."""

    engine: Engine = "auto"
    """scratch: the cell written out, unrolled by the framework; fused: the same mathematics as fast as we can make it,
    with the way back written by hand (lstm and gru); native: the framework's own layer; auto: fused where there is
    one, else scratch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where the framework sees one."""
    dtype: Dtype = "float32"
    """Precision. float32 and float64: of everything; tf32: float32 with products rounded to TF32 (NVIDIA GPUs from
    Ampere on); bfloat16: layers computed in bfloat16, parameters, loss and optimizer in float32."""
    threads: int = 0
    """Processor threads; 0: all cores this process may use."""
    tuning: bool = True
    """Set threads, allocator and kernels in the environment (`doctor` shows them); --no-tuning leaves it alone."""

    def __post_init__(self) -> None:
        at_least(self, "threads", 0)
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (":" in self.device and not (kind == "cuda" and index.isdecimal())):
            raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {self.device!r}.")


@dataclass(frozen=True)
class ParallelConfig:
    """Workers that share each batch, the same rows each; never changes what is computed. docs/parallel.md explains."""

    data_parallel: int = 1
    """Workers: processes, on a GPU each where there are GPUs (torch), or devices of one process (jax, tf)."""
    hosts: str = ""
    """Workers on several machines: the host:port of each, with commas between; the first leads. Start the same command
    on each, with its --rank."""
    rank: int = 0
    """Which of --hosts this is, from 0."""

    def __post_init__(self) -> None:
        at_least(self, "data_parallel", 1)
        at_least(self, "rank", 0)
        addresses = self.addresses
        for each in addresses:
            host, _, port = each.rpartition(":")
            if not host or not port.isdecimal():
                raise ConfigError(f"--hosts takes host:port,host:port and so on, got {each!r}.")
        needs(self.rank > 0, "--rank", bool(addresses), "belongs to --hosts")
        if addresses and self.data_parallel not in (1, len(addresses)):
            raise ConfigError(
                f"--hosts names {len(addresses)} workers, --data-parallel asks for {self.data_parallel}: leave that "
                "out. A host with several GPUs is named once for each, with another port."
            )
        if addresses and self.rank >= len(addresses):
            raise ConfigError(f"--rank must be below {len(addresses)}, the number of --hosts, got {self.rank}.")

    @property
    def addresses(self) -> list[str]:
        """host:port of each worker; none where all are here."""
        return self.hosts.split(",") if self.hosts else []

    @property
    def workers(self) -> int:
        """N, all of them."""
        return len(self.addresses) or self.data_parallel

    @property
    def local(self) -> int:
        """Which of the workers on its host this is, from 0; so the GPU that it takes."""
        return self.on_host(self.addresses[: self.rank])

    def on_host(self, addresses: list[str]) -> int:
        """How many of the addresses are on the host of this process."""
        host = self.addresses[self.rank].rpartition(":")[0] if self.hosts else ""
        return sum(address.rpartition(":")[0] == host for address in addresses)


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


def zero_or_more(config: Any, name: str) -> None:
    """Raise ConfigError where a field is negative or not finite."""
    value = getattr(config, name)
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"--{name.replace('_', '-')} must be 0 (off) or a positive number, got {value}.")


def needs(given: bool, flag: str, met: bool, condition: str) -> None:
    """Raise ConfigError where an option is given that could have no effect."""
    if given and not met:
        raise ConfigError(f"{flag} {condition}.")


def layer_limit(text: str) -> tuple[str, float]:
    """The layer and the limit of an entry of --clip-layers."""
    layer, _, number = text.partition("=")
    known = layer in ("embedding", "decoder") or (layer[:1] == "l" and layer[1:].isdecimal())
    try:
        limit = float(number)
    except ValueError:
        limit = 0.0
    if not (known and limit > 0 and math.isfinite(limit)):
        raise ConfigError(
            f"--clip-layers takes entries such as embedding=0.5, l0=1 (the first layer) or decoder=1, got {text!r}."
        )
    return layer, limit


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
    if name == "data_dir" and (value is None or isinstance(value, str)):
        return None if value is None else Path(value)
    if default == () and isinstance(value, list):
        return tuple(restore(name, part, "") for part in value)
    if isinstance(default, tuple) and isinstance(value, list) and len(value) == len(default):
        return tuple(restore(name, part, like) for part, like in zip(value, default, strict=True))
    if isinstance(default, float) and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{name} must be {type(default).__name__}, got {value!r}.")
    return value
