"""The command line: what each command takes. Parsed before NumPy or a framework loads, so nothing heavy is imported
here; options that decide an experiment live in shared.config, and tyro turns the dataclasses into flags."""

import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from runner.text import visible
from shared.config import (
    Activation,
    CorpusConfig,
    FormName,
    Implementation,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Reader,
    RuntimeConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
    at_least,
    needs,
    to_json,
    zero_or_more,
)
from shared.errors import ConfigError

DTYPE_HELP = "Precisions to check: float64 proves the mathematics, float32 the rounding."


@dataclass(frozen=True)
class Train:
    """Train one implementation: progress, held-out loss, early stopping, checkpoints, samples. Ctrl-C saves first."""

    impl: Implementation = "numpy"
    """Implementation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    run_dir: Path | None = None
    """Folder for this run, must not exist yet or be empty; default: runs/<corpus>-<cell>-<impl>."""
    resume: Path | None = None
    """Go on with the run in this folder, with its options; only --impl --engine --device --threads --epochs
    --max-steps --checkpoint-seconds and how many workers share the work may change."""
    checkpoint_seconds: float = 60.0
    """Seconds of training after which a run is saved within an epoch, too; 0: only at its end. Changes no result."""
    recipe: str = ""
    """Begin with the options of this recipe (`python -m runner recipes` lists them), or of a file of that form; those
    given here win."""
    prompt: str = ""
    """The samples at the end go on from this text."""
    greedy: tuple[str, ...] = ()
    """At the end, also go on from each of these with the likeliest, 100 tokens each."""
    length: int = 300
    """Tokens of each sample at the end."""
    sample_epochs: int = 0
    """Show a sample (temperature 0.8) while it learns, too, each time after so many epochs; 0: only at the end."""
    statistics: bool = True
    """Measure at the end what samples are like, where that takes less than about a tenth of the run."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run directory, too."""
    skip_nonfinite: bool = False
    """Leave out steps whose loss or gradient is infinite or not a number, count them and go on; --resume keeps it. A
    hundred in a row end the run all the same."""

    def __post_init__(self) -> None:
        zero_or_more(self, "checkpoint_seconds")
        zero_or_more(self, "sample_epochs")
        rows, workers = self.training.batch_size, self.parallel.workers
        if rows % workers:
            fitting = ", ".join(str(n) for n in range(2, rows + 1) if rows % n == 0)
            raise ConfigError(
                f"--batch-size {rows} cannot be shared equally by {workers} workers: take a --batch-size that is a "
                f"multiple of {workers}, or {fitting or 1} workers."
            )
        needs(self.sample_epochs > 0, "--sample-epochs", workers == 1, "samples in one process: leave out the workers")

    @property
    def processes(self) -> int:
        """How many processes of the run share this machine: PyTorch takes one for each worker."""
        if self.parallel.hosts:
            return self.parallel.on_host(self.parallel.addresses)
        return self.parallel.data_parallel if self.impl == "torch" else 1


@dataclass(frozen=True)
class Sample:
    """Write text with any checkpoint, in any implementation."""

    checkpoint: Annotated[Path, tyro.conf.arg(help="A .safetensors file, or a run directory (its best checkpoint).")]
    impl: Implementation = "numpy"
    """Implementation; any, whichever trained the checkpoint."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    start_characters: str = ""
    """One text from each of these characters."""
    form: FormName | None = None
    """Write Chinese verse in this form, characters x lines: every line has its length and its mark, whatever the model
    would rather write."""
    acrostic: str = ""
    """A poem whose lines begin with these four or eight characters; of five characters a line unless --form says 7x4 or
    7x8."""
    novelty: bool = True
    """Mark the lines of poems that stand in the training text, where that is on this machine."""
    statistics: bool = False
    """No text, but what it is like, beside held-out text: 20,000 characters at each of five temperatures or, where
    --temperature is not its default, at that one."""
    json: Path | None = None
    """Write the statistics to this file."""
    data_dir: Path | None = None
    """Folder with copies of the named corpora, for --statistics and --novelty; also ROSETTA_DATA_DIR."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        needs(self.json is not None, "--json", self.statistics, "writes what --statistics shows; give both")
        needs(
            self.start_characters != "",
            "--start-characters",
            not self.sampling.prompt,
            "and --prompt exclude each other",
        )
        started = self.start_characters or self.sampling.prompt
        needs(
            self.acrostic != "",
            "--acrostic",
            not started,
            "begins each line itself: no --prompt, no --start-characters",
        )
        formed = self.form is not None or self.acrostic != ""
        needs(formed, "--form or --acrostic", not self.statistics, "writes poems, and --statistics measures free ones")
        free = self.sampling.length == SamplingConfig.length
        needs(formed, "--form or --acrostic", free, "says how long a poem is: leave --length out")


@dataclass(frozen=True)
class Evaluate:
    """Held-out loss, perplexity, bits per character and accuracy of any checkpoint, in any implementation."""

    checkpoint: Annotated[Path, tyro.conf.arg(help="A .safetensors file, or a run directory (its best checkpoint).")]
    impl: Implementation = "numpy"
    """Implementation; any, whichever trained the checkpoint."""
    corpus: str = ""
    """Another corpus or file; default: the one the checkpoint was trained on."""
    reader: Reader = "auto"
    """How to read a file of yours; auto looks at its lines."""
    data_dir: Path | None = None
    """Folder with copies of the named corpora; also ROSETTA_DATA_DIR."""
    json: Path | None = None
    """Write the figures to this file."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass(frozen=True)
class Check:
    """Prove that implementations agree with the NumPy reference: logits, loss, states, every gradient of every
    parameter, 50 optimizer steps, sampled tokens. Exit status 1 where they do not."""

    impl: str = "all"
    """Implementations with commas between, or all that are installed."""
    cell: Literal["all", "rnn", "lstm", "gru", "wrnn"] = "all"
    """Cells to check."""
    dtype: Annotated[Literal["float64", "float32", "both"], tyro.conf.arg(help=DTYPE_HELP)] = "both"
    device: str = "cpu"
    """cpu, cuda or cuda:N for the implementations; the reference stays on the processor."""
    full: bool = False
    """Examine every combination of options, over a thousand cases, and not only a selection that covers each: minutes
    in NumPy and PyTorch, hours in JAX and TensorFlow, which compile each. Ctrl-C shows what was found so far."""
    part: str = ""
    """k/n, such as 3/40: only the k-th of n parts of --full, each a fair sample, always the same."""
    module: Path | None = None
    """Examine the cell or model in this Python file of yours instead. The file is executed; docs/check-module.md says
    what it may hold."""
    timeout: float = 30.0
    """Seconds that each call of --module may take."""
    accuracy: bool = False
    """Instead: how far float32 lies from float64 truth in each implementation, for sequences of 35, 100 and 1,000."""
    json: Path | None = None
    """Write the table to this file."""


COMPARED = TrainingConfig(seq_length=32, epochs=100, max_steps=500, learning_rate=2e-3)
"""Half a window, 500 steps, and a rate at which rounding does not grow: four frameworks in a few minutes."""


@dataclass(frozen=True)
class Compare:
    """Check, train from identical weights on identical batches, sample and time every installed implementation, each
    in a process of its own; one table and one HTML page."""

    impl: str = "all"
    """Implementations with commas between, or all that are installed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=lambda: COMPARED)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    run_dir: Path | None = None
    """Folder for the page, must not exist yet; default: runs/compare-<corpus>-<cell>."""
    prompt: str = ""
    """The samples go on from this text."""
    json: Path | None = None
    """Write what the page shows to this file, too."""


@dataclass(frozen=True)
class Bench:
    """Speed side by side: implementations, their engines, and what one would write without them, each in a process of
    its own, in turn. No time is shown without the proof that the same work was done. docs/performance.md explains."""

    impl: str = "all"
    """Implementations with commas between, or all that are installed."""
    engine: str = RuntimeConfig.engine
    """Engines with commas between: scratch, fused, native; or all."""
    workloads: tuple[Literal["W0", "W1", "W2", "W3", "W4", "W5"], ...] = ("W1",)
    """What is done. W1: LSTM 256, one-hot, of 28 symbols; W2: two LSTM 512; W3: LSTM 512, 5,416 symbols, padded poems;
    W4: W2 with GRU; W5: sampling 1,000 tokens at W1's and W3's sizes, 1 and 64 texts side by side; W0: tiny."""
    peers: bool = True
    """Time each framework's own idiom in the same rounds (benchmarks/), as it comes and with our settings."""
    rounds: int = 7
    """Rounds that count, behind one that does not."""
    round_seconds: float = 0.3
    """Seconds of each round, about; one call at least."""
    dtype: Literal["float32", "float64", "tf32"] = "float32"
    """Precision of all, peers too; tf32 of implementations only."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """Processor threads of each; 0: all cores for a peer, and what --help of train says for an implementation."""
    tuning: bool = True
    """Make the settings that `doctor` shows for implementations, and time peers with them, too."""
    json: Path | None = None
    """Write the rows to this file."""
    markdown: bool = False
    """Print the tables as Markdown."""
    picture: Path | None = None
    """Draw the speeds into this file, .svg or .png."""
    scaling: bool = False
    """Instead: time and memory for each token as the hidden size, batch, length, vocabulary and corpus grow."""
    profile: bool = False
    """Instead: where the time of a step goes."""

    @property
    def runtime(self) -> RuntimeConfig:
        """For the process that only waits: every worker gets settings of its own."""
        return RuntimeConfig(device=self.device, tuning=False)

    def __post_init__(self) -> None:
        at_least(self, "rounds", 1)
        at_least(self, "threads", 0)
        zero_or_more(self, "round_seconds")


@dataclass(frozen=True)
class Convert:
    """Carry a model between a checkpoint and files of PyTorch's, Keras' or flax' own layers, in any direction; weights
    trained elsewhere, too. The suffix says the format: .safetensors, .pt or .pth, .keras, .weights.h5, .msgpack. The
    library must load the file into its own layers and give NumPy's logits; else nothing is written, exit status 1."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A checkpoint, a run directory (its best checkpoint), or a library's file."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The file to write; .safetensors is a checkpoint unless --layout says otherwise."""
    layout: Literal["auto", "torch", "linen", "nnx", "nnx-optimized"] = "auto"
    """Whose names a .safetensors or .msgpack file gets; auto: a checkpoint's in the one, flax linen's in the other."""
    like: Path | None = None
    """A library's file holds weights alone: take the options and the symbols from this checkpoint or run directory."""
    vocabulary: Path | None = None
    """The symbols of a model trained elsewhere, in the order of its tokens: a JSON list, a JSON object from symbols to
    tokens, or one symbol a line."""
    write_vocabulary: Path | None = None
    """Write the symbols to this file, a JSON list, since a library's file has no place for them."""
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Of a torch or flax rnn trained elsewhere: this and what follows stand in no array (.keras files tell them)."""
    embedding_activation: Activation = "none"
    """Between its embedding and its first layer."""
    residual: bool = False
    """Each of its layers adds its input to its output."""
    many_to_one: bool = False
    """Only its last step predicts."""
    device: ClassVar[str] = "cpu"


@dataclass(frozen=True)
class Sweep:
    """Search the options of `train` for the lowest held-out loss: a grid, at random or by a model of what was found
    (TPE), where hopeless runs are ended early. Goes on where it was stopped or killed; docs/sweep.md explains."""

    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OPTION VALUES")] = ()
    """An option and its values, once for each option: model.hidden_size 64,128,256; training.seq_length range 25 95 10;
    training.learning_rate log 1e-4 1e-1; implementation numpy,torch. It wins over --space."""
    space: str = ""
    """A TOML file of values and options, or novel-search, which comes with the program."""
    method: Literal["grid", "random", "tpe"] = "tpe"
    """Every point; points at random; or points where a model of the results so far expects most."""
    pruner: Literal["none", "median", "asha", "hyperband"] = "asha"
    """What ends a run early: nothing; a loss above the median of the others at that moment; not being in the best third
    at each of a few moments (successive halving); or that with several first moments. Unless it is nothing, also a loss
    above that of the characters' frequencies after a third of the steps."""
    trials: int = 0
    """Runs at most; 0: the whole grid, else 64."""
    seconds: float = 0.0
    """End the search after so many seconds of work; 0: no limit. What runs then can be gone on with."""
    tokens: int = 0
    """End the search once so many tokens were trained on, in all runs together; 0: no limit."""
    stall: int = 0
    """End a run whose smoothed training loss has not improved for so many steps; 0: never."""
    stall_whole: int = 0
    """End a run where the whole-number part of the smoothed loss of a window (nats per token times --seq-length) has
    not fallen for so many steps; 0: never."""
    workers: int = 0
    """Processes that train side by side and share the cores; 0: one for each core."""
    executor: Literal["processes", "slurm", "jobs"] = "processes"
    """Where workers run: here; as jobs of a Slurm cluster; or as jobs here, to try what a cluster would do."""
    job_options: tuple[str, ...] = ()
    """For slurm: options of submitit such as timeout_min=240 slurm_partition=gpu mem_gb=8."""
    storage: str = ""
    """Where results are kept: a file for optuna's journal, or the address of a database such as postgresql://...;
    default: journal.log in --run-dir."""
    name: str = ""
    """Name of the search in its storage; default: that of --run-dir."""
    join: str = ""
    """Be a worker of the search in this folder or storage, until it ends; any machine and scheduler can start these."""
    resume: str = ""
    """Go on with the search in this folder; --workers, --executor, --seconds, --tokens and --json may change."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of all runs, and not only those of the best."""
    impl: Implementation = "numpy"
    """Implementation, where it does not vary."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    run_dir: Path | None = None
    """Folder of the search, must not exist yet; default: runs/sweep-<corpus>-<cell>."""
    json: Path | None = None
    """Write every run's options and result to this file."""

    def __post_init__(self) -> None:
        for name in ("trials", "tokens", "stall", "stall_whole", "workers"):
            at_least(self, name, 0)
        zero_or_more(self, "seconds")


@dataclass(frozen=True)
class Corpora:
    """The named corpora: list them, fetch and verify one, show one as the options make it."""

    action: Annotated[Literal["list", "fetch", "verify", "show"], tyro.conf.Positional] = "list"
    """What to do."""
    name: Annotated[str, tyro.conf.Positional] = ""
    """A name from the list; show also takes a file of yours."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)


@dataclass(frozen=True)
class Recipes:
    """The recipes: experiments of a few well-known systems with what is to be expected of them. Start one with
    `python -m runner --recipe NAME --impl ...`."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """Show this one; without a name, list them all."""
    markdown: bool = False
    """Print docs/recipes.md."""
    device: ClassVar[str] = "cpu"


@dataclass(frozen=True)
class Study:
    """Run a set of variants of a recipe, each as `train` would, and show them in one table and one picture. The same
    command goes on where it was stopped, and repeats no run that has ended. Without a name: list the studies."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """A study from the list, or a file of that form."""
    impl: str = ""
    """Implementations with commas between, each of which runs all variants, or all that are installed; default: the
    study's or its recipe's."""
    corpus: str = ""
    """Another corpus or file for all runs."""
    data_dir: Path | None = None
    """Folder with copies of the named corpora; also ROSETTA_DATA_DIR."""
    max_steps: int = 0
    """Stop every run after this many updates; 0: as the study says."""
    workers: int = 1
    """Runs at a time, which share the cores; speeds compare where it is 1."""
    threads: int = 0
    """Processor threads of each run; 0: all cores, or with --workers its share of them."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    run_dir: Path | None = None
    """Folder of the study, with a run directory for each variant; default: runs/study-NAME."""
    json: Path | None = None
    """Write the table to this file, too."""
    markdown: bool = False
    """Print the table as Markdown."""

    @property
    def runtime(self) -> RuntimeConfig:
        """What the runs inherit."""
        return RuntimeConfig(device=self.device, threads=self.threads)

    def __post_init__(self) -> None:
        at_least(self, "max_steps", 0)
        at_least(self, "workers", 1)
        at_least(self, "threads", 0)


@dataclass(frozen=True)
class Differences:
    """Where the frameworks differ: the size of each difference, measured here, before and after the option that
    settles it. Formulas and what to do: docs/differences.md."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Differences, such as adam-epsilon, or sections, such as optimizers; none: all."""
    impl: str = "all"
    """Implementations with commas between whose frameworks are measured, too, or all that are installed; numpy alone
    leaves out what is measured on a framework's own layers."""
    markdown: bool = False
    """Print the tables of docs/differences.md."""
    json: Path | None = None
    """Write the table to this file."""
    device: ClassVar[str] = "cpu"


@dataclass(frozen=True)
class Report:
    """Write the page of a run, a comparison or a study anew: one HTML file that loads nothing, its figures as SVG and
    PNG beside it."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder of a run, finished or not, of a comparison, or of a study, whose folders are runs; or the file that
    `check --json` wrote."""
    device: ClassVar[str] = "cpu"


@dataclass(frozen=True)
class Doctor:
    """Versions, devices, matrix kernels, threads, fonts; what is missing and how to install it."""


COMMANDS: dict[str, Any] = {
    "train": Train,
    "sample": Sample,
    "evaluate": Evaluate,
    "check": Check,
    "compare": Compare,
    "bench": Bench,
    "convert": Convert,
    "sweep": Sweep,
    "corpora": Corpora,
    "recipes": Recipes,
    "study": Study,
    "differences": Differences,
    "report": Report,
    "doctor": Doctor,
}
Options = (
    Train
    | Sample
    | Evaluate
    | Check
    | Compare
    | Bench
    | Convert
    | Sweep
    | Corpora
    | Recipes
    | Study
    | Differences
    | Report
    | Doctor
)

DESCRIPTION = """The same recurrent language models in NumPy, PyTorch, JAX and TensorFlow: proven equal, then timed side
by side. Without a command: train. First runs: `python -m runner compare`, `python -m runner --impl jax`."""


def parse(arguments: list[str], default: Train | Sweep | None = None) -> Options:
    """The command and its options; tyro exits with status 2 and says what is wrong where they cannot be."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["train", *arguments]
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    plain = default is None and all(visible(word) == word for word in arguments)
    with nullcontext() if plain else made_visible():
        if arguments[0] in COMMANDS:
            command = COMMANDS[arguments[0]]
            options: dict[str, Any] = {"default": default} if default else {}
            program = f"python -m runner {arguments[0]}"
            parsed: Options = tyro.cli(command, prog=program, args=arguments[1:], config=config, **options)
            return parsed
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="python -m runner", description=DESCRIPTION, args=arguments, config=config
        )
    raise AssertionError("unreachable: every command was handled above, and anything else exits")


@contextmanager
def made_visible() -> Iterator[None]:
    """What tyro says, which quotes options and defaults, cannot steer the terminal; its own colours are lost."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        sys.stdout.write(visible(out.getvalue()))
        sys.stderr.write(visible(err.getvalue()))


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option, before anything is parsed; None where it is not given."""
    for place, word in enumerate(arguments):
        if word == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def command_line(command: str, options: Train | Compare, default: Train | Compare) -> str:
    """The command that does it again: what differs from the defaults, quoted for a shell."""
    words = ["python -m runner", command]
    for part in ("model", "training", "optimizer", "schedule", "corpus", "runtime", "parallel"):
        if not hasattr(options, part):
            continue
        given, usual = to_json(getattr(options, part)), to_json(getattr(default, part))
        words += [flag(name, value) for name, value in given.items() if value != usual[name]]
    return " ".join(words)


def flag(name: str, value: Any) -> str:
    """One option as it is typed."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{option}", *(shlex.quote(str(each)) for each in values)])
