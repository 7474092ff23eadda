"""`compare` of all four, one of which is killed from outside in the middle of its training: the others finish, agree
and are timed; the table, the page and the JSON say what failed; no process stays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SURVIVORS = ["numpy", "jax", "tf"]
SIZES = ["--hidden-size", 24, "--embedding-size", 10, "--batch-size", 16, "--seq-length", 24, "--max-steps", 20]
FAILURE = (
    "torch: the worker died (signal SIGKILL; so the system ends processes when memory runs out) (train in float32)"
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc: NOT TESTED here")


def children(pid):
    """The processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


def holds(pid, library):
    """Whether a process has loaded a library."""
    return library in Path(f"/proc/{pid}/maps").read_text("utf-8")


def living(pids):
    """Those that are there, and not only their remains."""
    return [pid for pid in pids if Path(f"/proc/{pid}/maps").exists() and holds(pid, "python")]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Exit status, what was printed, folder, and the processes that were at work."""
    folder = tmp_path_factory.mktemp("killed")
    words = [sys.executable, "-m", "runner", "compare", "--run-dir", "page", "--json", "out.json", *map(str, SIZES)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    lines, workers = [], []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folder, env=settings) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("check every quantity"):  # done; training begins
                workers = children(process.pid)
                os.kill(next(pid for pid in workers if holds(pid, "libtorch")), signal.SIGKILL)
        status = process.wait(60)
    return status, "".join(lines), folder, workers


def test_the_command_fails_and_says_why(killed):
    status, shown, _, _ = killed
    assert status == 1
    assert f"{FAILURE}; going on without it" in shown
    assert f"failed: {FAILURE}" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("torch ")] == [["torch", "failed", *"-----"]]
    assert "NOT all agree" in shown
    assert "Traceback" not in shown


def test_the_others_are_compared_to_the_end(killed):
    result = json.loads((killed[2] / "out.json").read_text("utf-8"))
    assert not result["ok"]
    assert result["failures"] == [{"impl": "torch", "what": FAILURE}]
    for part in ("training", "growth"):
        assert [row["impl"] for row in result[part]] == SURVIVORS
    assert {row["impl"] for row in result["timing"]} == {row["impl"] for row in result["samples"]} == set(SURVIVORS)
    assert all(row["ok"] for row in [*result["check"], *result["growth"], result["agreement"]])
    assert {row["impl"] for row in result["check"]} == {*SURVIVORS, "torch"}
    assert result["samples_identical"]
    assert [row["impl"] for row in result["participants"]] == [*SURVIVORS, "torch"]


def test_the_page_says_it_first(killed):
    page = (killed[2] / "page" / "comparison.html").read_text("utf-8")
    assert "Not everything agrees: one problem" in page
    assert f"<strong>torch</strong>: {FAILURE}" in page


def test_no_process_stays(killed):
    workers = killed[3]
    assert len(workers) >= 4
    limit = time.monotonic() + 20
    while living(workers) and time.monotonic() < limit:
        time.sleep(0.05)
    assert living(workers) == []
