"""Workers that die, hang, print garbage, raise or run out of memory: each is one error with its reason, the others go
on, and no process outlives the one that started it, however that one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pytest
from fragile import Fragile

from runner import check, workers
from runner.cli import Check, Compare
from runner.compare import NOTHING, check_cell, distance, show, time_rounds, train_float32, train_float64, verdict
from runner.examination.cases import CASES
from runner.participants import Field
from runner.workers import Task, Worker, WorkerError, share
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc: NOT TESTED here")


FAILURES = {
    "die": r"it: the worker died \(signal SIGKILL; so the system ends processes when memory runs out\)",
    "abort": r"it: the worker died \(signal SIGABRT\)",
    "leave": r"it: the worker died \(exit status 7\)",
    "memory": r"it: MemoryError: ",
    "lambda": r"it: an answer that cannot be sent: .*lambda",
    "unreadable": r"it: an answer that cannot be read: invalid literal .*; the worker was ended",
}


@pytest.mark.parametrize("how", FAILURES)
def test_every_failure_is_an_error_that_names_the_worker(how):
    with Worker("it", Fragile, how) as worker, pytest.raises(WorkerError, match=FAILURES[how]):
        worker.call("fail")


def test_a_framework_that_cannot_be_imported_is_said():
    with Worker("it", Fragile, "import") as worker:
        with pytest.raises(WorkerError, match=r"it: ImportError: libframework.so.9: cannot open"):
            worker.call("answer")
        with pytest.raises(WorkerError, match="it: the worker died"):
            worker.call("answer")


def test_a_worker_that_hangs_is_ended_after_the_usual_time(monkeypatch):
    with Worker("it", Fragile, "hang") as worker:
        pid = worker.call("pid")
        monkeypatch.setattr(workers, "TIMEOUT", 0.3)
        with pytest.raises(WorkerError, match=r"it: no answer within 0.3 s; the worker was ended"):
            worker.call("fail")
        assert not alive(pid)


def test_what_a_worker_prints_does_not_mix_with_answers_or_tables(capfd):
    with Worker("it", Fragile) as worker:
        assert worker.call("shout") == "done"
        assert worker.call("answer") == 42
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("garbage") == 1002


def test_no_process_can_be_started(monkeypatch):
    def refuse(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    with pytest.raises(WorkerError, match="it: cannot start a process: Resource temporarily unavailable"):
        Worker("it", Fragile)


# -------------------------------------------------------------------- a team that shares tasks, as `check` has


def shared(monkeypatch, hows, tasks=4):
    """Every answer that one team gives whose workers fail in these ways -> (subject, answer)."""
    team = [Worker(f"worker {number}", Fragile, how) for number, how in enumerate(hows)]
    try:
        for worker in team:
            worker.call("answer")
        if "hang" in hows:
            monkeypatch.setattr(workers, "TIMEOUT", 2.0)
        asked = [Task(number, "fail", ()) for number in range(tasks)]
        return [(subject, answer) for _, subject, answer in share({"team": team}, {"team": asked})]
    finally:
        for worker in team:
            worker.close()


@pytest.mark.parametrize("how", ["die", "hang", "explained"])
def test_a_team_goes_on_without_the_one_that_fails(monkeypatch, how):
    found = shared(monkeypatch, [how, ""])
    failed = [answer for _, answer in found if answer != 42]
    assert sorted(subject for subject, _ in found) == [0, 1, 2, 3]
    assert len(failed) == 1
    words = {"die": "SIGKILL", "hang": "no answer within 2 s", "explained": "lower --hidden-size"}
    assert words[how] in str(failed[0])


def test_a_team_that_is_lost_answers_no_more(monkeypatch):
    assert [subject for subject, _ in shared(monkeypatch, ["die", "die"])] in ([0, 1], [1, 0])


def test_a_mistake_of_the_user_s_is_raised(monkeypatch):
    with pytest.raises(ConfigError, match="no such device"):
        shared(monkeypatch, ["mistaken", ""])


class Dead:
    """A worker without a process; those of `names` die of their first task."""

    names = ("numpy",)

    def __init__(self, name, factory, *arguments):
        self.name, self.always_ready = name, open(os.devnull, "rb")  # noqa: SIM115 - closed on exit

    def fileno(self):
        return self.always_ready.fileno()

    def start(self, method, *arguments):
        """Nothing is done."""

    def result(self):
        if self.name in self.names:
            raise WorkerError(f"{self.name}: the worker died (signal SIGKILL)")
        return {"quantities": {}} if self.name == "reference" else []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.always_ready.close()


@pytest.mark.parametrize("dead", ["numpy", "reference"])
def test_check_says_what_failed_and_what_was_not_examined(dead, monkeypatch, tmp_path, capsys):
    asked = {name: CASES[name] for name in ("rnn", "lstm", "gru")}
    monkeypatch.setattr(check, "asked_for", lambda options: asked)
    monkeypatch.setattr(check, "available_cores", lambda: 1)
    monkeypatch.setattr(Dead, "names", (dead,))
    options = Check(impl="numpy", dtype="float64", json=tmp_path / "out.json")
    if dead == "reference":
        with pytest.raises(WorkerError, match="reference: the worker died"):
            check.run(options, Dead)
    else:
        assert check.run(options, Dead) == 1
    shown = " ".join(capsys.readouterr().out.split())
    made = 0 if dead == "reference" else 1
    assert f"a worker that failed gets no other case: {made} of 3 examinations were made" in shown
    result = json.loads(options.json.read_text("utf-8"))
    assert (result["ok"], result["complete"]) == (False, False)
    if dead == "numpy":
        assert "DIFFERS" in shown
        assert [row["quantity"] for row in result["rows"]] == ["failed: numpy: the worker died (signal SIGKILL)"]


# ------------------------------------------------------------------------- a field that competes, as `compare` has


def field_of(**hows):
    """A Field of made-up participants."""
    field = Field.__new__(Field)
    field.part, field.failures, field.participants = "train", [], []
    field.workers = {name: Worker(name, Fragile, how) for name, how in hows.items()}
    for worker in field.workers.values():
        worker.call("begin", "float64")
    return field


@pytest.fixture
def compared(request):
    """A field and the result so far, of participants that fail in the ways of the parameter."""
    field = field_of(**request.param)
    yield field, {**NOTHING, "settings": {"steps": 10, "stack": 2}}
    for worker in field.workers.values():
        worker.close()


def of(result, part):
    return [row["impl"] for row in result[part]]


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        ({"numpy": "", "torch": "die", "jax": ""}, "the worker died (signal SIGKILL"),
        ({"numpy": "", "torch": "hang", "jax": ""}, "no answer within 2 s"),
        ({"torch": "die", "numpy": "", "jax": ""}, "the worker died"),
    ],
    indirect=["compared"],
)
def test_the_others_finish_and_agree_among_themselves(compared, words, monkeypatch, capsys):
    field, result = compared
    if "no answer" in words:
        monkeypatch.setattr(workers, "TIMEOUT", 2.0)
        monkeypatch.setattr("runner.participants.SLOWEST_STEP", 0.0)
    train_float32(field, None, result)
    time_rounds(field, None, result)
    train_float64(field, None, result)
    for part in ("training", "growth"):
        assert of(result, part) == ["numpy", "jax"]
    assert of(result, "timing") == ["numpy", "numpy", "jax", "jax"] or set(of(result, "timing")) == {"numpy", "jax"}
    assert result["agreement"]["ok"]
    result |= {"failures": field.failures, "samples_identical": True}
    assert [failure["impl"] for failure in result["failures"]] == ["torch"]
    assert words in result["failures"][0]["what"]
    assert result["failures"][0]["what"].endswith("(train)")
    assert not verdict(result)
    show({**result, "ok": False})
    shown = capsys.readouterr().out
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith("torch ")] == [["torch", "failed", "-"]]
    assert f"failed: torch: {words}" in shown
    assert "NOT all agree" in shown
    assert "going on without it" in shown


@pytest.mark.parametrize("compared", [{"torch": "die later", "numpy": "", "jax": "other"}], indirect=True)
def test_differences_are_from_one_that_finished(compared):
    field, result = compared
    train_float64(field, None, result)
    assert of(result, "growth") == ["numpy", "jax"]
    numpy, jax = (row["points"] for row in result["growth"])
    assert {point["max_relative_difference"] for point in numpy} == {0.0}
    assert {point["max_relative_difference"] for point in jax} == {1 / 3}
    assert [row["ok"] for row in result["growth"]] == [True, False]
    assert [point["step"] for point in numpy] == [4, 6, 8, 10]  # torch lived for one part


@pytest.mark.parametrize("compared", [{"numpy": "", "torch": "nan"}, {"numpy": "nan", "torch": ""}], indirect=True)
def test_a_loss_that_is_not_a_number_does_not_agree(compared):
    field, result = compared
    train_float32(field, None, result)
    assert not result["agreement"]["ok"]


def test_parameters_that_are_not_numbers_do_not_agree():
    good = {"a": np.array([1.0, 2.0]), "b": np.array([4.0, 5.0])}
    assert distance(good, good) == 0
    assert np.isnan(distance({**good, "b": np.array([4.0, np.nan])}, good))
    assert distance({**good, "a": np.array([1.0, 2.5])}, good) == 0.25


def test_one_that_cannot_start_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr("runner.participants.Participant", Fragile)
    with ExitStack() as stack:
        field = Field(["numpy", "import"], None, stack)
        assert list(field.workers) == ["numpy"]
        assert field.participants == [{"impl": "numpy"}]
    assert [failure["impl"] for failure in field.failures] == ["import"]
    assert "import: ImportError: libframework.so.9" in field.failures[0]["what"]
    assert field.failures[0]["what"].endswith("(start)")
    assert "going on without it" in capsys.readouterr().out


def test_compare_does_without_its_check_where_the_reference_fails(monkeypatch):
    def fail(*arguments):
        raise WorkerError("reference: the worker died (signal SIGKILL)")

    monkeypatch.setattr("runner.compare.Worker", Dead)
    monkeypatch.setattr(check, "examine", fail)
    field, result = field_of(), {**NOTHING}
    check_cell(field, Compare(), result)
    assert result["check"] == []
    assert field.failures == [
        {"impl": "reference", "what": "reference: the worker died (signal SIGKILL) (train)"},
    ]
    assert not verdict({**result, "agreement": {"ok": True}, "samples_identical": True, "failures": field.failures})


# ------------------------------------------------------------------------------------------------- no orphans

PARENT = """
import signal, sys, time
sys.path[:0] = {paths!r}
from runner.workers import Worker
from fragile import {kind}

if __name__ == "__main__":
    workers = [Worker(name, {kind}, "", {folder!r}) for name in ("one", "two")]
    for worker in workers:
        worker.call("answer")
    for worker in workers:
        worker.start("compute")
    print("computing", flush=True)
    {then}
"""


def alive(pid):
    """Whether a process is there, and not only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(pids, within=20.0):
    """Whether all processes have ended in so many seconds."""
    limit = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    return not any(map(alive, pids))


@LINUX
@pytest.mark.parametrize(
    ("kind", "end", "then", "status"),
    [
        ("Computing", None, "", 0),
        ("Computing", signal.SIGINT, "workers[0].result()", -signal.SIGINT),
        ("Computing", signal.SIGKILL, "workers[0].result()", -signal.SIGKILL),
        ("Stuck", signal.SIGKILL, "workers[0].result()", -signal.SIGKILL),
    ],
    ids=lambda value: str(value) if value else "none",
)
def test_no_worker_outlives_its_parent(tmp_path, kind, end, then, status):
    paths = [str(ROOT), str(Path(__file__).parent)]
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(paths=paths, kind=kind, folder=str(tmp_path), then=then), "utf-8")
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout.readline() == b"computing\n", parent.stderr.read()
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert len(pids) == 2
        if end == signal.SIGINT:
            os.killpg(parent.pid, end)  # as a terminal does it, to parent and workers alike
        elif end:
            parent.send_signal(end)
        try:
            parent.wait(20)
        finally:
            parent.kill()
        orphans = [] if ended(pids) else [pid for pid in pids if alive(pid)]
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        assert (parent.returncode, orphans) == (status, [])


@LINUX
def test_ctrl_c_cannot_reach_a_worker_from_its_first_moment_on():
    with Worker("it", Fragile) as worker:
        status = Path(f"/proc/{worker._process.pid}/status").read_text("utf-8").splitlines()
        blocked = int(next(line for line in status if line.startswith("SigBlk")).split()[1], 16)
        assert blocked == 1 << (signal.SIGINT - 1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@LINUX
def test_ctrl_c_while_workers_start_is_the_parent_s_alone(tmp_path):
    """No worker shows a traceback of its own, however early it comes."""
    paths = [str(ROOT), str(Path(__file__).parent)]
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {paths!r}\n"
        "from runner.workers import Worker\nfrom fragile import Fragile\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        workers = [Worker(name, Fragile) for name in ('one', 'two')]\n"
        "        print('started', flush=True)\n"
        "        print(workers[0].call('answer'), workers[1].call('answer'))\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n",
        "utf-8",
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout.readline() == b"started\n"
        os.killpg(parent.pid, signal.SIGINT)
        printed, said = parent.communicate(timeout=30)
    assert (printed, said) == (b"interrupted\n", b"")


def test_this_process_has_no_watcher():
    """Only workers end with their parent."""
    assert parent_process() is None
    workers.die_with_parent()
