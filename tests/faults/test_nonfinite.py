"""Numbers that go wrong and memory that runs out, as a user meets them: what is said, what is kept. NumPy alone."""

import errno
import json
import re
from pathlib import Path
from types import SimpleNamespace

import limited
import numpy as np
import pytest

import runner.train
import runner.training.run
from runner.__main__ import main
from runner.cli import Train
from runner.memory import amount, is_shortage, memory, sizes_to_lower
from runner.progress import TrainingBar
from runner.report import write_run_report
from shared.checkpoint import load_checkpoint
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig, TrainingConfig
from shared.contract import TrainingSteps
from shared.evaluation import Score

TINY = ["--hidden-size", "7", "--embedding-size", "5", "--seq-length", "8", "--device", "cpu", "--length", "3"]
RHYME = "the cat sat on the mat and the rat ran after that.\n"


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Train with options in a folder with a short text; what was said on stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rhyme.txt").write_text(RHYME * 24, "utf-8")

    def run(*options, status=1):
        assert main(["--corpus", "rhyme.txt", *TINY, "--run-dir", "run", *options]) == status
        return capsys.readouterr().err

    return run


def metrics():
    """The lines of the run's log, read as strict JSON."""
    return [json.loads(line, parse_constant=pytest.fail) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def steps_of(split):
    return [line["step"] for line in metrics() if line["split"] == split]


@pytest.mark.parametrize(
    ("options", "clipping"), [([], "1"), (["--optimizer", "sgd", "--clip-norm", "0"], "0, which is off; 1 is usual")]
)
def test_the_first_bad_step_ends_the_run(train, options, clipping):
    """Step 1 overshoots, and step 2 meets what it has made."""
    said = train("--batch-size", "8", "--learning-rate", "3e38", *options)
    assert re.match("error: Step 2: the loss is (nan|inf), .*is not a finite number", said)
    assert f"Lower --learning-rate (3e+38) or --clip-norm ({clipping})." in said
    assert "With --resume run --skip-nonfinite, such steps are left out." in said
    assert said.endswith(f"The last checkpoint, {Path('run/last.safetensors')}, is from before.\n")
    assert [line["step"] for line in metrics()] == [1]
    last = load_checkpoint(Path("run/last.safetensors"))
    assert (last.step, last.progress["step"]) == (0, 0)
    assert not Path("run/best.safetensors").exists()


def test_a_hundred_bad_steps_in_a_row_end_it_all_the_same(train):
    said = train("--batch-size", "1", "--learning-rate", "3e38", "--skip-nonfinite")
    assert said.startswith("error: Step 101, the 100th in a row that had to be left out: the loss is nan, ")
    assert "--skip-nonfinite" not in said
    assert steps_of("train") == [1]
    assert steps_of("skipped") == list(range(2, 101))
    skipped = next(line for line in metrics() if line["split"] == "skipped")
    assert [skipped[name] for name in ("loss", "perplexity", "bits_per_character", "gradient_norm")] == [None] * 4
    assert skipped["learning_rate"] == 3e38


def test_a_held_out_loss_that_is_no_number_is_never_the_best(train):
    said = train("--batch-size", "8", "--learning-rate", "3e38", "--skip-nonfinite")
    assert "error: After step 18 the held-out loss is nan: the parameters have grown too large" in said
    assert load_checkpoint(Path("run/last.safetensors")).progress["step"] == 0
    assert not Path("run/best.safetensors").exists()
    assert steps_of("held-out") == []


def test_parameters_that_overflowed_are_not_saved(train, monkeypatch):
    """A checkpoint is due in the middle of the epoch, and the first update has made every parameter infinite."""
    monkeypatch.setattr("runner.training.run.stack_size", lambda *_: 3)
    said = train("--batch-size", "8", "--learning-rate", "1e39", "--skip-nonfinite", "--checkpoint-seconds", "1e-9")
    assert "error: After step 3, embedding.weight is not finite any more: it is not saved." in said
    assert load_checkpoint(Path("run/last.safetensors")).progress["step"] == 0


def test_a_parameter_that_is_broken_is_said(train):
    said = train("--batch-size", "8", "--learning-rate", "1e39")
    assert "An update before it had made embedding.weight itself infinite." in said


def test_a_loss_beyond_all_reading_is_shown_short(train, capsys):
    assert main(["--corpus", "rhyme.txt", *TINY, "--run-dir", "run", "--learning-rate", "1e30", "--epochs", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "perplexity 1.01e+304" in shown
    assert not re.search(r"\d{20}", shown)


@pytest.mark.parametrize(
    ("loss", "norms", "said"),
    [
        (
            2.5,
            [1.0, np.inf, np.nan],
            "the loss is 2.5, and the first parameter whose gradient is not a finite number is b",
        ),
        (
            np.nan,
            [np.nan, 1.0, 1.0],
            "the loss is nan, and the first parameter whose gradient is not a finite number is a",
        ),
        (np.inf, [1.0, 2.0, 3.0], "the loss is inf, which is not a finite number"),
        (2.5, [1e308, 1e308, 1e308], "the loss is 2.5, and the norm of all gradients is not a finite number"),
    ],
)
def test_what_went_wrong_is_named(loss, norms, said):
    run = SimpleNamespace(
        model=SimpleNamespace(dump_parameters=lambda: {name: np.ones(2) for name in "abc"}),
        progress=SimpleNamespace(step=7, skips=False),
        folder=SimpleNamespace(path="runs/x"),
        broken_down=lambda what: what,
    )
    expected = f"Step 7: {said}. With --resume runs/x --skip-nonfinite, such steps are left out."
    assert runner.training.run.Run.not_finite(run, loss, np.array(norms)) == expected


def test_resume_keeps_the_option(train):
    train("--batch-size", "8", "--max-steps", "5", "--skip-nonfinite", status=0)
    assert main(["--resume", "run", "--max-steps", "7"]) == 0
    config = json.loads(Path("run/config.json").read_text("utf-8"))
    assert config["skip_nonfinite"] is True
    assert "--impl numpy --skip-nonfinite " in config["command"]
    assert config["result"]["skipped"] == 0
    assert load_checkpoint(Path("run/last.safetensors")).progress["skips"] is True


def test_a_bad_loss_is_in_the_bar():
    """The count appears with the first step that was skipped."""
    shown = []
    bar = TrainingBar(SimpleNamespace(update=lambda task, completed, description: shown.append(description)), 0)
    steps = TrainingSteps(np.array([2.0, np.nan]), np.array([1.0, np.nan]), np.array([True, False]), None)
    for skipped in (0, 3):
        bar.show(SimpleNamespace(epoch=0, step=2, skipped=skipped), TrainingConfig(), steps, np.array([0.1, 0.1]), 1e3)
    assert ["skipped" in each for each in shown] == [False, True]
    assert shown[1].endswith("skipped 3")


def test_a_report_of_a_run_whose_steps_were_all_skipped(train):
    train("--batch-size", "8", "--epochs", "1", status=0)
    lines = [line | {"split": "skipped", "loss": None} if line["split"] == "train" else line for line in metrics()]
    Path("run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_run_report(Path("run")).exists()


def test_tensorboard_gets_numbers_only(train):
    assert "100th in a row" in train(
        "--batch-size", "1", "--learning-rate", "3e38", "--skip-nonfinite", "--tensorboard"
    )


def test_a_score_may_be_anything():
    assert runner.training.run.describe(Score(1e30, 1, 0, 1)).startswith("1e+30 nats, perplexity 1.01e+304")
    assert runner.training.run.describe(Score(2.0, 1, 0, 1)) == "2.000 nats, perplexity 7.39, 2.885 bits/character"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells there how much memory is held")
def test_the_memory_of_the_host_runs_out(tmp_path):
    """In earnest: the gates of one batch take more than the process may have."""
    said = limited.train(tmp_path, "numpy", 200)
    assert said.startswith("error: Out of memory. gates and states take 492 MB (--batch-size 256, --seq-length 200, ")
    assert "--hidden-size 400" in said
    assert "the vocabulary has 15 symbols. Lower one of these. Checkpoints saved before are kept." in said
    assert "Unable to allocate" in said
    assert load_checkpoint(tmp_path / "run/last.safetensors").progress["step"] == 0


def test_sizes_that_no_machine_has(train):
    said = train("--batch-size", "8", "--hidden-size", "4000000")
    assert said.startswith("error: Out of memory. parameters, gradients and optimizer take 1,02")
    assert "TB (--hidden-size 4000000, --num-layers 1, --embedding-size 5)" in said
    assert not Path("run").exists()


def test_a_text_that_does_not_fit(train, monkeypatch):
    def prepare(*arguments):
        raise MemoryError

    monkeypatch.setattr(runner.train, "prepare", prepare)
    said = train()
    assert said == (
        "error: Out of memory. Read less of the text with --first-characters. Checkpoints saved before are kept. "
        "(MemoryError)\n"
    )


class ResourceExhaustedError(Exception):
    """As TensorFlow's, which is no RuntimeError."""


class XlaRuntimeError(RuntimeError):
    """As JAX's."""


class OutOfMemoryError(RuntimeError):
    """As torch's on a GPU."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ResourceExhaustedError("OOM when allocating tensor with shape[9]"), True),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."), True),
        (XlaRuntimeError("INVALID_ARGUMENT: Executable expected parameter 0 of size 4"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (
            ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."),
            True,
        ),
        (ValueError("operands could not be broadcast together"), False),
    ],
)
def test_frameworks_are_known_by_their_words(error, expected):
    """Made up but for their texts: without a GPU, most cannot be had in earnest."""
    assert is_shortage(error) == expected


def test_other_errors_pass(train, monkeypatch):
    def prepare(*arguments):
        raise RuntimeError("mat1 and mat2")

    monkeypatch.setattr(runner.train, "prepare", prepare)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train()


def test_the_shares_of_memory():
    """By hand: an lstm of 3 units on 2 numbers, 5 symbols; Adam keeps four arrays of each parameter."""
    options = Train(
        model=ModelConfig(hidden_size=3, embedding_size=2),
        training=TrainingConfig(batch_size=7, seq_length=11),
        runtime=RuntimeConfig(dtype="float64"),
    )
    weights = 5 * 2 + 12 * 2 + 12 * 3 + 12 + 5 * 3 + 5
    shares = {what: size for what, (size, _) in memory(options, 5).items()}
    assert shares == {
        "parameters, gradients and optimizer": 8 * 4 * weights,
        "gates and states": 8 * 6 * 7 * 11 * 3,
        "logits and their gradient": 8 * 2 * 7 * 11 * 5,
    }
    assert sizes_to_lower(options, 5).startswith(
        "gates and states take 11.1 kB (--batch-size 7, --seq-length 11, --hid"
    )
    plain = Train(model=options.model, optimizer=OptimizerConfig(optimizer="sgd"))
    assert memory(plain, 5)["parameters, gradients and optimizer"][0] == 4 * 2 * weights
    assert [amount(size) for size in (999, 2_500_000, 3_141_000_000, 1.5e15)] == [
        "0.999 kB",
        "2.5 MB",
        "3.14 GB",
        "1,500 TB",
    ]


def test_every_command_says_that_memory_ran_out(monkeypatch, capsys):
    def greedy(options):
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr("runner.doctor.run", greedy)
    assert main(["doctor"]) == 1
    assert "Out of memory. Use a machine with more memory, or a smaller model." in capsys.readouterr().err
    monkeypatch.setattr("runner.sample.run", greedy)
    assert main(["sample", "--checkpoint", "x"]) == 1
    assert "lower --length" in capsys.readouterr().err
