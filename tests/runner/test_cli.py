"""The command line, end to end, as a user types it: real processes, real files, NumPy alone."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.reporting.records import TIMED
from shared.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = ["--hidden-size", "12", "--embedding-size", "6", "--batch-size", "8", "--seq-length", "16", "--device", "cpu"]


def run(*arguments, folder, status=0, **environment):
    """Run a command in a folder; its output, after checking the status and that no traceback shows."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}
    words = [sys.executable, "-m", "runner", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=settings, timeout=120)
    assert done.returncode == status, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run of the default command on a text of ours."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 60, "utf-8")
    shown = run("--corpus", "rhyme.txt", "--epochs", 3, "--run-dir", "run", "--length", 40, *SMALL, folder=folder)
    return folder, shown


def test_train_leaves_a_whole_run_directory(trained):
    folder, shown = trained
    names = {path.name for path in (folder / "run").iterdir()}
    wanted = {
        "config.json",
        "metrics.jsonl",
        "last.safetensors",
        "best.safetensors",
        "samples.txt",
        "curves.svg",
        "curves.png",
        "report.html",
    }
    assert names == wanted
    for word in (
        "numpy (fused",
        "on cpu",
        "held-out",
        "temperature 0.5",
        "temperature 1.5",
        "unigram",
        "Next: python -m runner sample",
    ):
        assert word in shown
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    losses = [line["loss"] for line in lines if line["split"] == "held-out"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    config = json.loads((folder / "run/config.json").read_text("utf-8"))
    assert config["device"] == "cpu"
    assert config["result"]["best_loss"] == min(losses)
    assert config["corpus"]["sha256"]


def test_samples_on_the_way_change_nothing(trained):
    folder, _ = trained
    how = ["--epochs", 3, "--run-dir", "watched", "--length", 40, "--prompt", "the cat", "--sample-epochs", 1]
    shown = run("--corpus", "rhyme.txt", *how, *SMALL, folder=folder)
    on_the_way = shown.partition("temperature 0.5")[0]
    assert on_the_way.count("the cat") == 2  # after the first and the second epoch; at the end they come anyway
    losses = [
        [line["loss"] for line in map(json.loads, (folder / name / "metrics.jsonl").read_text("utf-8").splitlines())]
        for name in ("run", "watched")
    ]
    assert losses[0] == losses[1]
    refused = run("--sample-epochs", 1, "--data-parallel", 2, "--impl", "torch", folder=folder, status=2)
    assert "--sample-epochs samples in one process" in refused


def test_the_best_checkpoint_is_the_best(trained):
    folder, _ = trained
    best, last = (load_checkpoint(folder / f"run/{name}.safetensors") for name in ("best", "last"))
    assert best.progress["step"] == best.progress["best_step"]
    assert last.progress["reason"] == "finished"
    assert best.parameters.keys() == last.parameters.keys()


def test_sample_and_evaluate_open_it(trained):
    folder, _ = trained
    first, again = (
        run("sample", "--checkpoint", "run", "--prompt", "the ", "--length", 30, folder=folder) for _ in range(2)
    )
    assert first == again
    assert "the " in first
    other = run("sample", "--checkpoint", "run", "--prompt", "the ", "--length", 30, "--seed", 5, folder=folder)
    assert other != first
    shown = run("evaluate", "--checkpoint", "run/best.safetensors", "--json", "score.json", folder=folder)
    assert "perplexity" in shown
    score = json.loads((folder / "score.json").read_text("utf-8"))
    best = json.loads((folder / "run/config.json").read_text("utf-8"))["result"]["best_loss"]
    assert score["loss"] == pytest.approx(best, rel=1e-6)


def test_a_run_directory_that_exists_stays_as_it_is(trained):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    shown = run("--corpus", "rhyme.txt", "--run-dir", "run", *SMALL, folder=folder, status=2)
    assert "exists already" in shown
    assert before == {path.name: path.read_bytes() for path in (folder / "run").iterdir()}


def test_stopped_and_resumed_is_never_stopped(trained, tmp_path):
    """SIGTERM in the middle, then --resume: the same bits as the run that was left alone."""
    folder, _ = trained
    common = ["--corpus", folder / "rhyme.txt", "--epochs", 60, "--patience", 0, "--length", 10, *SMALL]
    run(*common, "--run-dir", "whole", folder=tmp_path)
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "runner", *map(str, common), "--run-dir", "parts"]
    process = subprocess.Popen(words, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 143, rest
    assert "--resume" in rest
    run("--resume", "parts", folder=tmp_path)
    whole, parts = (load_checkpoint(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    for name, value in whole.parameters.items():
        assert np.array_equal(value, parts.parameters[name]), name
    for name, value in whole.slots.items():
        assert np.array_equal(value, parts.slots[name]), name
    left, right = (metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert left == right
    assert (tmp_path / "whole/samples.txt").read_text("utf-8") == (tmp_path / "parts/samples.txt").read_text("utf-8")


def metrics(path):
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{key: line[key] for key in line if key not in TIMED} for line in lines]


@pytest.mark.parametrize("flag", [["--hidden-size", "9"], ["--corpus", "starter-play"], ["--learning-rate", "1"]])
def test_resume_refuses_to_become_another_run(trained, flag):
    folder, _ = trained
    shown = run("--resume", "run", *flag, folder=folder, status=2)
    assert flag[0] in shown
    assert "--resume" in shown


FILES = {
    "empty.txt": b"",
    "blank.txt": b" \n\n ",
    "one.txt": b"a",
    "binary.bin": bytes(range(256)) * 20,
    "latin.txt": "na\u00efve caf\u00e9\n".encode("latin-1") * 200,
    "short.txt": b"too short for a window",
    "list.json": b'{"not": "a list"}',
    "broken.json": b'[{"paragraphs": ',
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_corpus_is_said_in_one_message(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    shown = run("--corpus", name, "--run-dir", "run", "--device", "cpu", folder=tmp_path, status=2)
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert (tmp_path / name).read_bytes() == FILES[name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--corpus", "tiny-shakespear"], "tiny-shakespeare"),
        (["--hidden-size", "0"], "at least 1, got 0"),
        (["--batch-size", "-3"], "at least 1, got -3"),
        (["--batch-size", "100000"], "--batch-size"),
        (["--seq-length", "90000"], "--seq-length"),
        (["--learning-rate", "0"], "positive"),
        (["--learning-rate", "nan"], "positive"),
        (["--device", "tpu"], "auto, cpu, cuda or cuda:N"),
        (["--impl", "mxnet"], "numpy"),
        (["--dropuot", "0.5"], "dropuot"),
        (["--prompt", "日"], "U+65E5"),
        (["train", "extra"], "extra"),
        (["trian"], "trian"),
        (["sample", "--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
        (["sample", "--checkpoint", "."], "best.safetensors"),
        (["check", "--impl", "mxnet"], "mxnet"),
        (["compare", "--impl", ""], "--impl"),
        (["--resume", "nowhere"], "nowhere"),
        (["corpora", "fetch"], "name"),
        (["corpora", "show", "nothing"], "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_clearly(tmp_path, arguments, words):
    shown = run(*arguments, folder=tmp_path, status=2, ROSETTA_DATA_DIR=str(tmp_path))
    assert words in " ".join(shown.split())
    assert not list(tmp_path.glob("runs/*"))


def test_checkpoints_that_are_none(trained, tmp_path):
    folder, _ = trained
    whole = (folder / "run/best.safetensors").read_bytes()
    from safetensors.numpy import save

    broken = {
        "truncated": whole[: len(whole) // 2],
        "foreign": save({"weight": np.zeros((2, 2), np.float32)}),
        "text": b"this is not a checkpoint",
        "flipped": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        shown = run("sample", "--checkpoint", path, folder=tmp_path, status=2)
        assert shown.startswith("error: ")
        assert str(path) in shown
        assert path.read_bytes() == content


def test_a_checkpoint_of_other_sizes(trained, tmp_path):
    folder, _ = trained
    checkpoint = load_checkpoint(folder / "run/best.safetensors")
    checkpoint.parameters["decoder.bias"] = np.zeros(3, np.float32)
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, checkpoint)
    shown = run("sample", "--checkpoint", path, folder=tmp_path, status=2)
    assert "decoder.bias has shape [3]" in shown


def test_a_corpus_with_another_hash(tmp_path):
    (tmp_path / "time-machine").mkdir()
    copy = tmp_path / "time-machine/timemachine.txt"
    copy.write_text("something else\n" * 100, "utf-8")
    shown = run("--corpus", "time-machine", "--data-dir", ".", "--run-dir", "run", folder=tmp_path, status=2)
    assert "sha256" in shown
    assert str(copy.name) in shown
    assert copy.read_text("utf-8") == "something else\n" * 100
    assert not (tmp_path / "run").exists()


def test_numbers_that_go_wrong_stop_the_run(tmp_path):
    """A checkpoint before the trouble stays as it was; exit status 1."""
    (tmp_path / "x.txt").write_text("abcabc abd\n" * 200, "utf-8")
    wild = ["--optimizer", "sgd", "--clip-norm", 0, "--learning-rate", "1e38", "--cell", "rnn"]
    shown = run("--corpus", "x.txt", "--run-dir", "run", *wild, *SMALL, folder=tmp_path, status=1)
    assert "not a finite number" in shown
    assert "--learning-rate" in shown


def test_a_missing_framework_says_which_extra(tmp_path):
    (tmp_path / "block.py").write_text(
        "import sys, importlib.util as u\nreal = u.find_spec\n"
        "import runner.registry as r\nr.find_spec = lambda name: None if name == 'jax' else real(name)\n"
        "from runner.__main__ import main\nsys.exit(main(['--impl', 'jax', '--run-dir', 'run']))\n",
        "utf-8",
    )
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 2
    assert "rosetta-rnn[jax]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_is_quick(tmp_path):
    """Nothing heavy is imported, and all of it costs at most three times the command-line library (twice here).

    Times of one processor, in turns: neither a busy nor a slow machine changes their ratio much.
    """

    def cost(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    costs = [(cost("-m", "runner", "--help"), cost("-c", "import tyro")) for _ in range(7)]
    ours, library = map(min, zip(*costs, strict=True))
    assert ours < 3 * library
    words = [sys.executable, "-X", "importtime", "-m", "runner", "--help"]
    imports = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stderr
    loaded = {line.rpartition("|")[2].strip() for line in imports.splitlines()}
    assert "runner.cli" in loaded
    assert not loaded & {"numpy", "torch", "jax", "tensorflow", "keras", "matplotlib", "requests"}


def test_chinese_poems_end_to_end(tmp_path):
    shown = run("--corpus", "starter-quatrains", "--max-steps", 6, "--length", 40, "--run-dir", "run", *SMALL[:4],
                "--batch-size", 16, "--seq-length", 40, folder=tmp_path)  # fmt: skip
    assert "starter-quatrains" in shown
    text = run("sample", "--checkpoint", "run", "--start-characters", "日红山夜湖海月", "--length", 30, folder=tmp_path)
    assert all(character in text for character in "日红山夜湖海月")
    shown = run("sample", "--checkpoint", "run", "--prompt", "Q", folder=tmp_path, status=2)
    assert "U+0051" in shown


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "x.txt").write_text("abc def\f ghi\n" * 100, "utf-8")
    shown = run("--corpus", "x.txt", "--max-steps", 2, "--length", 200, "--run-dir", "run", *SMALL, folder=tmp_path)
    assert "\f" not in shown


NAMED = {
    "tiny-shakespeare": ["--batch-size", 512],
    "time-machine": ["--batch-size", 128, "--normalize", "letters"],
    "water-margin": ["--batch-size", 128, "--first-characters", 100_000],
    "tang-poems": ["--batch-size", 512, "--maximum-length", 24],
    "tang-lines": ["--batch-size", 512, "--minimum-count", 100],
    "tang-300": ["--batch-size", 64, "--cut"],
    "tang-small": ["--batch-size", 64, "--drop", "，。"],
}


@pytest.mark.parametrize("name", NAMED)
def test_named_corpora_train(tmp_path, data_dir, name):
    sizes = [*SMALL[:4], "--seq-length", 64, *NAMED[name]]
    common = ["--data-dir", data_dir, "--max-steps", 2, "--length", 20, "--run-dir", "run"]
    shown = run("--corpus", name, *common, *sizes, folder=tmp_path)
    assert name in shown
    assert "best held-out perplexity" in shown


def test_corpora_lists_and_shows(tmp_path):
    assert "starter-quatrains" in run("corpora", folder=tmp_path)
    assert "TANSY" in run("corpora", "show", "starter-play", folder=tmp_path)


def test_doctor_finds_numpy(tmp_path):
    shown = run("doctor", folder=tmp_path)
    assert "NumPy" in shown
    assert "openblas" in shown.lower()


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    words = [sys.executable, "-m", "runner", "train", "--help"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=settings) as process:
        process.stdout.close()  # before anything is written
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_version(tmp_path):
    assert run("--version", folder=tmp_path).startswith("rosetta-rnn ")
