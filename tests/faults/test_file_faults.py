"""Disks that are full, read-only or gone, limits, and kills between any two calls: what was good stays good."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.__main__ import main
from shared.checkpoint import load_checkpoint
from shared.files import UNFINISHED

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: /proc, mounts")
SMALL = "--hidden-size 5 --embedding-size 3 --batch-size 4 --seq-length 8 --length 3 --no-statistics --device cpu"
RUNNER = '"$PYTHON" -m runner'
TRAIN = f"--corpus text.txt {SMALL} --threads 1 --patience 0 --run-dir run".split()


def runner(folder, *arguments, before=None, **environment):
    """`python -m runner` in a folder; `before` is done in the child before it starts."""
    return subprocess.run(
        [sys.executable, "-m", "runner", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        preexec_fn=before,
        timeout=60,
        check=False,
    )


def train(folder, *arguments):
    """A whole run in this process."""
    with contextlib.chdir(folder):
        assert main([*TRAIN, *arguments]) == 0


def told(process, *words, status=1):
    """One line of error with these words, and no traceback."""
    assert process.returncode == status, process.stderr + process.stdout
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    for word in words:
        assert word in process.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 3, "utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What came of every fault that tests/faults/injection.py could think of."""
    folder = tmp_path_factory.mktemp("faults") / "all"
    script = Path(__file__).with_name("injection.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr + (folder / "torn/log").read_text("utf-8")[-3000:]
    return json.loads((folder / "faults.json").read_text("utf-8"))


@LINUX
def test_every_call_was_reached(faults):
    rows = faults["rows"]
    calls = Counter(row["call"] for row in rows)
    assert {"open", "write", "fsync", "close", "chmod", "replace", "mkdir", "unlink"} <= calls.keys()
    assert len(rows) > 300
    assert {row["code"] for row in rows} == {0, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES}
    assert faults["ends"] == [faults["end"]] * 2  # the runs that suffered nothing


@LINUX
def test_no_fault_damages_what_was_there(faults):
    for row in faults["rows"]:
        assert not row["broken"], row
        assert not row["lost"], row
        if row["status"]:
            assert not row["changed"], row
            assert len(row["unfinished"]) <= 1 + (row["run"] == "torn"), row


@LINUX
def test_errors_are_said(faults):
    """With the file, the reason and what to do; nothing half written stays. The few that do no harm pass unsaid."""
    for row in (row for row in faults["rows"] if row["code"]):
        if row["status"] == 0:
            assert row["call"] in ("unlink", "mkdir"), row
            continue
        message = row["output"].splitlines(keepends=True)[-1]
        assert message.startswith("error: "), row
        assert row["status"] in (1, 2), row
        assert row["status"] == 1 or "read" in message or row["call"] == "open", row
        assert "Traceback" not in row["output"], row
        assert os.strerror(row["code"]) in message, row
        assert "run/" in message or "run:" in message, row
        if row["run"] == "new":
            assert not row["unfinished"], row
        if row["saved"] and "Cannot write" in message:
            assert "python -m runner --resume run" in message, row


@LINUX
def test_the_run_goes_on_to_the_same_end(faults):
    resumed = [row for row in faults["rows"] if "resumed" in row]
    assert len(resumed) > 10
    for row in resumed:
        status, end = row["resumed"]
        assert end == faults["end"] if row["saved"] else status in (0, 2), row


def limited(size):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_limit_on_file_sizes(folder):
    """Checkpoints fit when training begins, the metrics no longer do later; SIGXFSZ ends nobody unheard."""
    arguments = [*TRAIN, "--epochs", "8"]
    told(runner(folder, *arguments, before=limited(9_000)), "Cannot write run/metrics.jsonl: File too large", "ulimit")
    saved = load_checkpoint(folder / "run/last.safetensors").step
    assert saved > 0
    with contextlib.chdir(folder):
        assert main(["--resume", "run"]) == 0
    assert load_checkpoint(folder / "run/last.safetensors").step == 40


def test_the_last_checkpoint_outlives_a_limit(folder):
    train(folder, "--epochs", "1")
    before = (folder / "run/last.safetensors").read_bytes()
    (folder / "run/metrics.jsonl").write_text("", "utf-8")
    stopped = runner(folder, "--resume", "run", "--epochs", "2", before=limited(4_000))
    told(stopped, "Cannot write run/best.safetensors: File too large", "--resume run")
    assert (folder / "run/last.safetensors").read_bytes() == before
    assert not list((folder / "run").glob(f"*{UNFINISHED}"))


def in_namespace(folder, script, *, private_disk):
    """A shell script where it may mount a disk that nobody else sees, or where root has no power over files."""
    options = ["--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])] if private_disk else ["--user"]
    command = ["unshare", *options, "sh", "-ec", script]
    probe = [*command[:-1], "mount -t tmpfs none ." if private_disk else "true"]
    if not shutil.which("unshare") or subprocess.run(probe, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("no namespaces may be made here: a really full or read-only disk is NOT tested")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=60, capture_output=True)


def said(folder, name):
    """What a process of a script said, as `told` takes it: files <name>.status and <name>.err."""
    status = int((folder / f"{name}.status").read_text("utf-8"))
    return subprocess.CompletedProcess([], status, "", (folder / f"{name}.err").read_text("utf-8"))


@LINUX
def test_a_full_disk(folder):
    script = f"""
        mkdir disk; mount -t tmpfs -o size=1m none disk; cp text.txt disk; cd disk
        head -c 1000000 /dev/zero > filler
        {RUNNER} {" ".join(TRAIN)} --epochs 60 2> ../full.err || echo $? > ../full.status
        cp -r run ../full; rm filler
        {RUNNER} --resume run --epochs 20
        cp -r run ../freed
    """
    in_namespace(folder, script, private_disk=True)
    told(said(folder, "full"), "No space left on device", "Make room", "python -m runner --resume run")
    assert load_checkpoint(folder / "full/last.safetensors").step > 0
    load_checkpoint(folder / "full/best.safetensors")
    assert not list((folder / "full").glob(f".*{UNFINISHED}"))
    assert load_checkpoint(folder / "freed/last.safetensors").step == 100
    assert (folder / "freed/report.html").exists()


@LINUX
def test_a_read_only_disk(folder):
    train(folder, "--epochs", "1")
    script = f"""
        mkdir disk; mount -t tmpfs none disk; cp -r text.txt run disk; cd disk; mount -o remount,ro .
        {RUNNER} --resume run --epochs 2 2> ../again.err || echo $? > ../again.status
        cp -r run ../after
    """
    in_namespace(folder, script, private_disk=True)
    told(said(folder, "again"), "run", "Read-only file system", "mounted for writing")
    assert load_checkpoint(folder / "after/last.safetensors").step == 5


@LINUX
def test_a_folder_that_nobody_may_write(folder):
    train(folder, "--epochs", "1")
    before = (folder / "run/last.safetensors").read_bytes()
    (folder / "run").chmod(0o555)
    for name in ("again", "json"):
        for kind in ("err", "status"):
            (folder / f"{name}.{kind}").touch()
    script = f"""
        {RUNNER} --resume run --epochs 2 2> again.err || echo $? > again.status
        {RUNNER} evaluate --checkpoint run --json run/x.json 2> json.err || echo $? > json.status
    """
    in_namespace(folder, script, private_disk=False)
    told(said(folder, "again"), "run", "Permission denied", "Get the right")
    told(said(folder, "json"), "Cannot write run/x.json: Permission denied", status=2)
    assert (folder / "run/last.safetensors").read_bytes() == before


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_goes_away(folder, replaced):
    """Moved in the middle of training, with another thing in its place or nothing; it goes on where it is now."""
    arguments = [sys.executable, "-m", "runner", *TRAIN, "--epochs", "100000"]
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "run/best.safetensors").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)  # it sees both or neither
        (folder / "run").rename(folder / "moved")
        if replaced:
            (folder / "run").write_text("", "utf-8")
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    reason = ("Not a directory", "move it away") if replaced else ("No such file or directory", "moved or deleted")
    told(subprocess.CompletedProcess([], process.returncode, "", errors), *reason, "--resume FOLDER")
    assert (folder / "run").is_file() == replaced
    assert (folder / "run").exists() == replaced
    load_checkpoint(folder / "moved/last.safetensors")


def test_a_target_that_cannot_be_is_said_first(folder, capsys, monkeypatch):
    """Before anything is computed, or a library starts."""
    monkeypatch.chdir(folder)
    for target, word in (("text.txt/x", "Not a directory"), (".", "Is a directory")):
        for command in (
            "check",
            "compare",
            "evaluate --checkpoint nowhere",
            "sample --statistics --checkpoint nowhere",
        ):
            assert main([*command.split(), "--json", target]) == 2
            assert capsys.readouterr().err.startswith(f"error: Cannot write {target}: {word}. ")
    (folder / "m.pt").mkdir()
    for target in ("text.txt/m.pt", "m.pt"):
        assert main(["convert", "nowhere.safetensors", target]) == 2
        assert f"Cannot write {target}: " in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["m.pt", "text.txt"]


def test_a_full_temporary_folder(folder, capsys, monkeypatch):
    """Said before a library starts: PyTorch and Keras do not survive it in words."""
    train(folder, "--epochs", "1")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr("runner.convert.Worker", None)
    assert main(["convert", "run", "m.pt"]) == 1
    assert "1.0 MiB are free. Make room there, or set TMPDIR" in capsys.readouterr().err
    assert not (folder / "m.pt").exists()


def test_a_full_device_keeps_its_place(folder, capsys, monkeypatch):
    """/dev/full is no file to be replaced; what is printed may meet it, too."""
    monkeypatch.chdir(folder)
    train(folder, "--epochs", "1")
    assert main(["evaluate", "--checkpoint", "run", "--device", "cpu", "--json", "/dev/full"]) == 1
    assert "Cannot write /dev/full: No space left on device." in capsys.readouterr().err
    assert not Path("/dev/full").is_file()


def test_a_gap_in_the_metrics_is_said(folder, capsys):
    train(folder, "--epochs", "1")
    lines = (folder / "run/metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "run/metrics.jsonl").write_text("".join(lines[:2]), "utf-8")
    with contextlib.chdir(folder):
        assert main(["--resume", "run", "--epochs", "2"]) == 0
    assert "run/metrics.jsonl has only 2 of the 6 lines" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (folder / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == [1, 2, 6, 7, 8, 9, 10, 10]
