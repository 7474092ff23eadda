import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from inline import Inline

from benchmarks import peer_numpy
from runner import bench, cli
from runner.cli import Bench
from runner.environment import quiet, settings
from runner.timing import profile as bench_profile
from runner.timing import scaling as bench_scaling
from runner.timing.field import FOREIGN, compared, entries, proof, ratio, summary, surroundings
from runner.timing.worker import Contestant, Entry
from runner.timing.workloads import W0, W1, W2, W3, WORKLOADS
from runner.workers import WorkerError
from shared.config import RuntimeConfig
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROMISED = {
    *(
        "impl",
        "engine",
        "kernel",
        "device",
        "dtype",
        "threads",
        "workload",
        "phase",
        "tokens_per_second",
        "low",
        "high",
    ),
    *("compile_seconds", "peak_memory_bytes", "flops_utilization", "peer_ratio", "same_work"),
}
QUICK = {"impl": "numpy", "engine": "scratch", "workloads": ("W0",), "rounds": 2, "round_seconds": 0.0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """A few matrix products say enough here."""
    monkeypatch.setattr("runner.timing.worker.PATIENCE", 0.01)


def test_the_whole_command_in_processes_of_its_own(tmp_path):
    path = tmp_path / "bench.json"
    words = ["--impl", "numpy", "--engine", "scratch", "--workloads", "W0", "--rounds", "2", "--round-seconds", "0.01"]
    command = [sys.executable, "-m", "runner", "bench", *words, "--threads", "1", "--json", str(path)]
    clean = {name: value for name, value in os.environ.items() if name not in surrounding_names()}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text("utf-8"))
    assert set(found) == {"machine", "rows"}
    assert found["machine"]["best_product"] > 0
    names = {row["name"]: row for row in found["rows"] if row["workload"] == "W0"}
    assert list(names) == ["numpy (loop)", "numpy (min-char-rnn)", "numpy (loop) tuned", "numpy scratch"]
    for row in found["rows"]:
        assert set(row) >= PROMISED
        assert row["same_work"] is True
        assert 0 < row["low"] <= row["tokens_per_second"] <= row["high"]
        assert len(row["rounds"]) == 2
    ours = names["numpy scratch"]
    assert ours["loss_distance"] < 1e-6
    assert ours["peak_memory_bytes"] > 10_000_000
    assert 0 < ours["flops_utilization"] < 1
    assert ours["peer_ratio"] > 0
    assert ours["threads"] == 1
    # The peer as it comes has the number of threads, and none of our settings; tuned, it has them all.
    assert names["numpy (loop)"]["settings"]["OMP_NUM_THREADS"] == "1"
    assert names["numpy (loop)"]["settings"]["MALLOC_MMAP_THRESHOLD_"] == ""
    assert names["numpy (loop) tuned"]["settings"] == ours["settings"]
    assert ours["settings"]["MALLOC_MMAP_THRESHOLD_"].isdecimal()
    assert {row["phase"] for row in found["rows"]} == {"train", "sample 1", "sample 4"}


def surrounding_names():
    return settings(RuntimeConfig()) | quiet(RuntimeConfig())


def test_no_time_without_the_proof(monkeypatch, tmp_path, capsys):
    """A peer that computes something else is shown without a time, and nothing is compared with it."""
    real = peer_numpy.Loop.train
    monkeypatch.setattr(peer_numpy.Loop, "train", lambda self, batches: real(self, batches) * 1.001)
    options = Bench(**QUICK, json=tmp_path / "bench.json")
    assert bench.run(options, Inline) == 1
    rows = json.loads((tmp_path / "bench.json").read_text("utf-8"))["rows"]
    wrong = [row for row in rows if row["engine"] == "loop" and row["phase"] == "train"]
    assert len(wrong) == 2
    for row in wrong:
        assert row["same_work"] is False
        assert row["tokens_per_second"] is row["low"] is row["high"] is row["peer_ratio"] is None
        assert row["loss_distance"] == pytest.approx(1e-3, rel=1e-2)
    ours = next(row for row in rows if row["name"] == "numpy scratch" and row["phase"] == "train")
    assert ours["tokens_per_second"] > 0
    assert ours["peer_ratio"] is None
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("numpy (loop) "))
    assert line.split() == ["numpy", "(loop)", "-", "WORK", "DIFFERS", "-", "-", "-", "1e-03"]


def test_a_sampler_that_writes_something_else_has_no_time(monkeypatch, tmp_path):
    monkeypatch.setattr(
        peer_numpy.Loop, "sample", lambda self, first, length, greedy: np.zeros((len(first), length), int)
    )
    options = Bench(**QUICK, json=tmp_path / "bench.json")
    assert bench.run(options, Inline) == 1
    rows = json.loads((tmp_path / "bench.json").read_text("utf-8"))["rows"]
    assert not [row for row in rows if row["engine"] == "loop" and row["phase"] != "train" and row["tokens_per_second"]]


def test_a_worker_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    real = Contestant.round

    def fail(self, seconds, rows):
        if isinstance(self._subject, peer_numpy.Loop):
            raise WorkerError("numpy (loop): the worker died (signal SIGKILL)")
        return real(self, seconds, rows)

    monkeypatch.setattr(Contestant, "round", fail)
    assert bench.run(Bench(**QUICK, json=tmp_path / "bench.json"), Inline) == 1
    rows = json.loads((tmp_path / "bench.json").read_text("utf-8"))["rows"]
    assert all((row["engine"] == "loop") == bool(row["failed"]) for row in rows)
    assert all((row["engine"] == "loop") == (row["tokens_per_second"] is None) for row in rows)
    assert "SIGKILL" in capsys.readouterr().out


def test_what_cannot_run_says_why_and_fails_nothing(tmp_path, capsys):
    options = Bench(**QUICK | {"engine": "scratch,native"}, peers=False, json=tmp_path / "bench.json")
    assert bench.run(options, Inline) == 0
    assert all(set(row) >= PROMISED for row in json.loads((tmp_path / "bench.json").read_text("utf-8"))["rows"])
    out = capsys.readouterr().out
    assert "numpy native: refused: NumPy has no recurrent layers" in out
    assert "numpy (loop)" not in out


def test_markdown_and_picture(tmp_path, capsys):
    assert bench.run(Bench(**QUICK, markdown=True, picture=tmp_path / "speed.svg"), Inline) == 0
    out = capsys.readouterr().out
    assert "| numpy (loop) |" in out
    assert {line.count("|") for line in out.splitlines() if line.startswith("|")} == {8, 9}
    picture = (tmp_path / "speed.svg").read_text("utf-8")
    assert "numpy scratch" in picture
    assert "W0, train" in picture
    with pytest.raises(ConfigError, match=r"must end with \.svg or \.png"):
        bench.run(Bench(**QUICK, picture=tmp_path / "speed.pdf"), Inline)


def test_unknown_engines_are_named():
    assert bench.chosen_engines("native, scratch") == ["scratch", "native"]
    assert bench.chosen_engines("all") == ["scratch", "fused", "native"]
    for wrong in ("turbo", ","):
        with pytest.raises(ConfigError, match=r"--engine: .*choose among auto, scratch"):
            bench.chosen_engines(wrong)


def test_the_ratio_is_the_median_of_the_rounds_to_the_fastest_peer():
    assert ratio([2, 4, 12], [[1, 2, 3]]) == 2
    assert ratio([2, 4, 12], [[1, 1, 1], [2, 2, 2]]) == 2
    assert ratio([2, 4, 12], [[], [4, 4, 4]]) == 1
    assert ratio([2.0], []) is ratio([], [[1.0]]) is None


def test_ratios_are_to_the_framework_s_own_peer_in_the_same_settings():
    def row(impl, engine, peer, environment, rounds, product):
        place = {"workload": "W1", "phase": "train", "product": product, "operations_per_second": 10 * rounds[0]}
        return place | {
            "impl": impl,
            "engine": engine,
            "peer": peer,
            "environment": environment,
            "rounds": rounds,
            "processor_rounds": [1.0],
        }

    rows = [
        row("tf", "function", True, "default", [1.0], 50.0),
        row("tf", "jit", True, "default", [2.0], 100.0),
        row("tf", "fit", True, "default", [7.0], 60.0),
        row("tf", "function", True, "ours", [4.0], 60.0),
        row("tf", "scratch", False, "ours", [6.0], 60.0),
        row("jax", "scratch", False, "ours", [6.0], 60.0),
    ]
    compared(rows)
    assert [each["peer_ratio"] for each in rows] == [0.5, 1, 3.5, 2, 3, None]
    assert [each["peer_ratio_same_settings"] for each in rows] == [0.25, 0.5, 1.75, 1, 1.5, None]
    assert [each["peer_ratio_processor"] for each in rows] == [1, 1, 1, 1, 1, None]
    assert rows[4]["flops_utilization"] == pytest.approx(0.6)


def test_times_are_medians_of_the_rounds_that_count():
    timed = [
        {"calls": n, "tokens": 30 * n, "seconds": s, "processor_seconds": s}
        for n, s in ((1, 9), (1, 3), (2, 4), (1, 1))
    ]
    row = {"same_work": True, "engine": "scratch", "import_seconds": 1, "build_seconds": 2, "first_call_seconds": 12}
    found = summary(row, timed, W0)
    assert (found["low"], found["tokens_per_second"], found["high"]) == (10, 15, 30)
    assert found["step_seconds"] == pytest.approx(2 / W0.stack)
    assert found["compile_seconds"] == 10
    assert found["first_step_seconds"] == pytest.approx(1 + 2 + 12 - 2 + 2 / W0.stack)
    assert summary(row | {"same_work": False}, timed, W0)["tokens_per_second"] is None
    assert summary(row, timed[:1], W0)["tokens_per_second"] is None


def test_the_proof():
    expected = {"losses": [3.0, 2.0]}
    assert proof({"losses": [3.0, 2.0]}, expected, 1e-5)["same_work"]
    assert not proof({"losses": [3.0, 2.0001]}, expected, 1e-5)["same_work"]
    assert not proof({"losses": [float("nan"), 2.0]}, expected, 1e-5)["same_work"]
    texts = {"tokens": [[[1, 2]], [[1, 2]] * 32]}
    assert proof(texts, texts, 0)["same_work"]
    assert proof({"tokens": [[[1, 2]], [[1, 3]] * 2 + [[1, 2]] * 30]}, texts, 0)["same_work"]
    assert not proof({"tokens": [[[1, 2]], [[1, 3]] * 3 + [[1, 2]] * 29]}, texts, 0)["same_work"]
    assert not proof({"tokens": [[[1, 3]], [[1, 2]] * 32]}, texts, 0)["same_work"]


def test_settings_of_a_peer_as_it_comes(monkeypatch):
    for name in surrounding_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # as the project sets it quietly
    before = dict(os.environ)
    options = Bench(threads=2)
    with surroundings(Entry("torch", "adam", peer=True, tuned=False), options):
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert os.environ["OPENBLAS_NUM_THREADS"] == os.environ["NPROC"] == "2"
        assert not {"MALLOC_MMAP_THRESHOLD_", *FOREIGN} & set(os.environ)
    assert dict(os.environ) == before
    with surroundings(Entry("torch", "scratch", peer=False, tuned=True), options):
        assert os.environ["MALLOC_MMAP_THRESHOLD_"].isdecimal()
        assert os.environ["OMP_NUM_THREADS"] == "3"
    with surroundings(Entry("torch", "scratch", peer=False, tuned=False), options):
        assert dict(os.environ) == before
    assert dict(os.environ) == before


def test_without_tuning_peers_have_one_column():
    found = entries(["numpy", "torch"], ["scratch"], Bench(tuning=False), W1)
    assert not [entry for entry in found if entry.tuned]
    assert [entry.engine for entry in found] == ["loop", "min-char-rnn", "scratch", "adam", "fused-adam", "scratch"]


def test_workloads_are_those_of_the_performance_notes():
    """Operations a step, in 10^9, as docs/performance.md counts them."""
    assert W1.operations() / 1e9 == pytest.approx(1.81, abs=0.005)
    assert W2.operations() / 1e9 == pytest.approx(122.5, abs=0.05)
    assert W3.operations() / 1e9 == pytest.approx(59.6, abs=0.05)  # of what is no padding
    assert [each.name for each in WORKLOADS["W5"]] == ["W5 at W1's size", "W5 at W3's size"]
    first = next(W0.stacks())
    assert first.tokens.shape == (5, 4, 6)
    assert first.reset[0].all()
    assert not first.reset[1:].any()
    padded = W3.batch(1)
    assert padded.reset.all()
    assert 0.4 < padded.mask.mean() < 0.8
    assert padded.tokens.max() > 5000


def test_scaling_and_profile(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_scaling, "GRID", {"hidden size": (8, 16), "vocabulary": (64,)})
    monkeypatch.setattr(bench_scaling, "CORPUS", (3_000,))
    options = Bench(**QUICK | {"engine": "scratch,native"}, scaling=True, json=tmp_path / "scaling.json")
    assert bench.run(options, Inline) == 0
    rows = json.loads((tmp_path / "scaling.json").read_text("utf-8"))["rows"]
    assert [row["value"] for row in rows if row["name"] == "numpy scratch"] == [8, 16, 64]
    assert all(row["seconds_per_token"] > 0 for row in rows if "refused" not in row)
    assert bench.run(Bench(**QUICK, profile=True, json=tmp_path / "profile.json"), Inline) == 0
    row = json.loads((tmp_path / "profile.json").read_text("utf-8"))["rows"][0]
    assert set(row["parts"]) >= {"forward", "backward", "clip and update", "step", "import_seconds"}
    assert len(row["operations"]) == bench_profile.LONGEST
    out = capsys.readouterr().out
    assert "hidden size: time a token" in out
    assert "W0, numpy scratch" in out


@pytest.mark.parametrize(
    ("framework", "own"),
    [("numpy", set()), ("torch", {"torch"}), ("jax", {"jax", "flax", "optax"}), ("tf", {"tensorflow", "keras"})],
)
def test_a_peer_knows_its_framework_and_no_implementation(framework, own):
    tree = ast.parse((ROOT / f"benchmarks/peer_{framework}.py").read_text("utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"shared", "numpy", *own, *sys.stdlib_module_names}
    assert {name for name in found if name.partition(".")[0] not in allowed} == {"runner.timing.workloads"}


def test_help_loads_neither_numpy_nor_a_framework():
    code = (
        "import sys, runner.__main__ as m\n"
        "try: m.main(['bench', '--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'numpy', 'torch', 'jax', 'tensorflow', 'benchmarks'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "LOADED []" in done.stdout


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.parse(["bench", "--help"])
    out = capsys.readouterr().out
    for flag in (
        "--workloads",
        "--peers",
        "--no-peers",
        "--rounds",
        "--scaling",
        "--profile",
        "--markdown",
        "--picture",
    ):
        assert flag in out
    assert "without the proof" in " ".join(out.split())
