"""The rules of searches, with workers in this process."""

import json
import math
import os
import random
import re
import time
import tomllib
from dataclasses import replace

import optuna
import pytest
from made_up import NASTY, read_page

from runner import cli, sweep
from runner.cli import Train
from runner.console import console
from runner.rundir import RunDirectory
from runner.sweeping import report, space, trial
from runner.sweeping.plan import Plan, queue
from runner.sweeping.progress import Board
from runner.sweeping.search import ATTEMPTS, Search, TrialState, make
from runner.sweeping.stopping import Stall
from runner.sweeping.storage import hidden, mend, open_storage
from runner.sweeping.worker import SweepWorker
from shared.config import CorpusConfig, ModelConfig, RuntimeConfig, TrainingConfig
from shared.errors import ConfigError, UserError

VARY = ["--vary", "hidden_size", "4,6"]


def words(path):
    draw = random.Random(0)
    known = ["".join(draw.choices("abdeiklmnorstu", k=draw.randint(2, 6))) for _ in range(20)]
    path.write_text(" ".join(draw.choices(known, k=300)) + "\n", "utf-8")
    return path


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A tiny run, three steps at a time; what workers say is not shown, and is again afterwards."""
    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr("runner.training.run.stack_size", lambda *_: 3)
    text = CorpusConfig(corpus=str(words(tmp_path / "words.txt")), reader="text")
    training = TrainingConfig(batch_size=4, seq_length=7, max_steps=60, epochs=99, learning_rate=0.02)
    place = RuntimeConfig(device="cpu", threads=1)
    return Train(model=ModelConfig(hidden_size=6, embedding_size=5), training=training, corpus=text, runtime=place)


def begun(base, folder, *given, method="grid", pruner="none", trials=0, **more):
    """A search in a folder, and a worker of it."""
    found = space.space_of([each.split() for each in given], None)
    plan = Plan(base, found, method, pruner, trials, folder=str(folder), **more)
    address = str(folder / "journal.log")
    return make(plan, open_storage(address), "it"), SweepWorker(address, "it", folder)


def states(search):
    return [each.state.name for each in search.trials()]


def test_names_cannot_act(base, tmp_path, monkeypatch):
    search, worker = begun(base, tmp_path, "hidden_size 4,5", "embedding_size 3,4")
    monkeypatch.setattr(
        "runner.sweeping.worker.run_trial", lambda *_: trial.Outcome(TrialState.FAIL, None, {"reason": NASTY})
    )
    worker.work()
    result = report.summary(search)
    result |= {"best": result["rows"][0] | {"loss": 1.0}, "name": NASTY}
    page = read_page(report.write_page(result, tmp_path))
    assert "alert(1)" in page.text
    assert "\x1b" not in page.text


@pytest.mark.parametrize("value", ['日"\\\n\x7f\x00🐱', 1e-5, 3, True, [0.5, 0.99], ["l0=1"]])
def test_toml_reads_back(value):
    assert tomllib.loads(f"x = {report.toml(value)}") == {"x": value}


def test_the_live_table(base, tmp_path, capsys):
    search, worker = begun(base, tmp_path, "hidden_size 4,5,6", pruner="asha")
    held = search.take()
    search.point(held.trial)
    held.trial.report(2.5, 27)
    board = Board(search, 2, 60.0)
    console.quiet = False
    with console.capture() as captured:
        console.print(board.drawn(3.0))
    text = captured.get()
    for part in ("0 done, 0 pruned, 1 running, 2 waiting", "about 57 s left", "33%", "2.5000", "best 2.5000 nats"):
        assert part in text, text
    board.line(3.0)
    assert capsys.readouterr().out == ""  # no tenth is done
    held.lock.release()
    worker.work()
    console.quiet = False
    Board(search, 2, 0.0).line(3.0)
    assert "0 running, 0 waiting; best" in capsys.readouterr().out


def test_a_storage_may_hold_several_searches(base, tmp_path, monkeypatch):
    search, _ = begun(base, tmp_path, "hidden_size 4")
    monkeypatch.chdir(tmp_path)
    options = cli.parse(["sweep", *VARY, "--storage", "journal.log", "--name", "it", "--run-dir", "new"])
    with pytest.raises(ConfigError, match="holds a search called it: choose another with --name"):
        sweep.run(options)
    other = make(search.plan, search.storage, "other")
    assert len(other.trials()) == 1
    with pytest.raises(ConfigError, match="holds it, other: choose a search with --name"):
        sweep.run(cli.parse(["sweep", "--join", "journal.log"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--vary", "hidden_sise", "4,6"], "did you mean model.hidden_size"),
        ([], "A sweep needs something to vary"),
        ([*VARY, "--storage", "sqlite:///x.db", "--workers", "2"], "SQLite locks its whole file"),
        ([*VARY, "--corpus", "nothing"], "nothing"),
        (["--resume", "."], "holds no search"),
        (["--resume", ".", *VARY, "--hidden-size", "3"], "leave out what belongs to --vary, --model"),
        (["--join", "nowhere"], "no such folder, journal or database"),
        ([*VARY, "--executor", "slurm"], "--executor slurm: "),
        ([*VARY, "--executor", "jobs", "--job-options", "x"], "--job-options takes NAME=VALUE"),
        ([*VARY, "--executor", "jobs", "--job-options", "x=1"], "--executor jobs: "),
    ],
)
def test_mistakes_of_the_command_line(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # where there is a Slurm, nothing is submitted
    options = cli.parse(["sweep", *given])
    with pytest.raises(UserError, match=re.escape(message)):
        sweep.run(options)


def test_a_worker_does_the_whole_grid(base, tmp_path):
    search, worker = begun(base, tmp_path, "hidden_size 4,6", "cell rnn,gru")
    assert worker.work() is None
    assert states(search) == ["COMPLETE"] * 4
    assert all(math.isfinite(each.value) for each in search.trials())
    assert all(each.user_attrs["result"]["reason"] == "finished" for each in search.trials())


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_pruners_end_what_is_hopeless(base, tmp_path, pruner):
    search, worker = begun(base, tmp_path, "learning_rate 0.03,0.02,0.025,0.015,1e-5,2e-5,3e-5,4e-5", pruner=pruner)
    worker.work()
    pruned = {each.params["training.learning_rate"] for each in search.trials() if each.state == TrialState.PRUNED}
    assert pruned
    assert 0.03 not in pruned
    steps = [each.user_attrs["result"]["steps"] for each in search.trials() if each.state == TrialState.PRUNED]
    assert max(steps) < 60
    reasons = [each.user_attrs["result"]["reason"] for each in search.trials() if each.state == TrialState.PRUNED]
    assert all(reason.startswith(("pruned", "diverged")) for reason in reasons)


def test_who_came_first_is_judged_again(base, tmp_path):
    search, _ = begun(base, tmp_path, "hidden_size 4,5,6,7,8,9", pruner="asha")
    held = [search.take() for _ in range(6)]
    held[0].trial.report(7.8, 3)
    assert not search.overtaken(0, 7.8, 5)  # nobody else has been there
    held[1].trial.report(5.0, 3)
    assert search.overtaken(0, 7.8, 5)
    assert not search.overtaken(0, 7.8, 3)  # optuna judges those who are there
    assert not search.overtaken(0, 4.9, 5)
    for each in held[2:]:
        each.trial.report(6.0, 5)
    assert not search.overtaken(0, 5.5, 9)  # the second of six
    assert search.overtaken(0, 6.5, 9)
    other, _ = begun(base, tmp_path / "other", "hidden_size 4,5", pruner="median")
    other.take().trial.report(5.0, 3)
    assert not other.overtaken(1, 7.8, 9)


def test_what_diverges_ends(base, tmp_path):
    base = replace(base, optimizer=replace(base.optimizer, optimizer="sgd", clip_norm=0.0))
    search, worker = begun(base, tmp_path, "learning_rate 1e-6,1e30", pruner="median")
    worker.work()
    slow, wild = sorted(search.trials(), key=lambda each: each.params["training.learning_rate"])
    assert slow.state == wild.state == TrialState.PRUNED
    assert "unigram entropy" in slow.user_attrs["result"]["reason"]
    assert "diverged" in wild.user_attrs["result"]["reason"]
    assert 20 <= slow.user_attrs["result"]["steps"] < 30


def test_without_a_pruner_only_what_is_no_number_ends(base, tmp_path):
    base = replace(base, optimizer=replace(base.optimizer, optimizer="sgd", clip_norm=0.0))
    search, worker = begun(base, tmp_path, "learning_rate 1e-6,1e38", pruner="none")
    worker.work()
    slow, wild = sorted(search.trials(), key=lambda each: each.params["training.learning_rate"])
    assert (slow.state, slow.user_attrs["result"]["steps"]) == (TrialState.COMPLETE, 60)
    assert wild.state == TrialState.PRUNED


def test_a_run_that_stalls_ends_and_keeps_its_best(base, tmp_path):
    search, worker = begun(base, tmp_path, "hidden_size 4,5", stall=0, stall_whole=12, keep_checkpoints=True)
    worker.work()
    for each in search.trials():
        assert each.state == TrialState.COMPLETE
        assert "whole-number part" in each.user_attrs["result"]["reason"]
        assert each.user_attrs["result"]["steps"] < 60
        folder = RunDirectory(search.run_directory(each.number))
        assert folder.load_best().progress["best_loss"] == each.value


def test_the_rules_of_the_reports():
    falling = Stall(5, 0, 1)
    assert falling.reason([3.0 - 0.01 * step for step in range(50)]) == ""
    assert "has not improved for 5 steps" in falling.reason([9.0] * 5)
    whole = Stall(0, 4, 10)
    assert whole.reason([2.59, 2.58]) == ""  # 25.9 of ten tokens
    assert "whole-number part" in whole.reason([2.57, 2.56, 2.55])
    assert Stall(0, 0, 1).reason([1.0] * 9999) == ""


def test_a_trial_that_was_lost_is_taken_up_where_it_stood(base, tmp_path, monkeypatch):
    """A worker that vanishes in the middle of a run, as a killed one does, and another that comes."""
    search, worker = begun(base, tmp_path / "whole", "hidden_size 6", keep_checkpoints=True)
    worker.work()
    monkeypatch.setattr(trial.WatchedRun, "save_is_due", lambda _: True)
    parts, lost = begun(base, tmp_path / "parts", "hidden_size 6", keep_checkpoints=True)
    look = trial.Watch.look

    def vanish(watch, run_, steps, stop):
        look(watch, run_, steps, stop)
        if run_.progress.step >= 30:
            raise SystemExit

    monkeypatch.setattr(trial.Watch, "look", vanish)
    with pytest.raises(SystemExit):
        lost.work()
    assert states(parts) == ["RUNNING"]
    stood = RunDirectory(parts.run_directory(0)).load_last().progress["step"]
    assert stood > 0
    monkeypatch.setattr(trial.Watch, "look", look)
    SweepWorker(str(tmp_path / "parts/journal.log"), "it", tmp_path / "parts").work()
    (one,), (other,) = search.trials(), parts.trials()
    assert one.value == other.value
    assert one.intermediate_values == other.intermediate_values


def test_a_trial_that_somebody_works_on_is_left_alone(base, tmp_path):
    search, _ = begun(base, tmp_path, "hidden_size 4,6")
    held = search.take()
    other = Search(search.storage, "it")
    second = other.take()
    assert (held.trial.number, second.trial.number) == (0, 1)
    assert other.take() is None
    held.lock.release()
    assert Search(search.storage, "it").take().trial.number == 0
    assert states(search) == ["RUNNING", "RUNNING"]


def test_where_no_lock_is_shared_the_beat_tells(base, tmp_path, monkeypatch):
    search, _ = begun(base, tmp_path, "hidden_size 4")
    held = search.take()
    held.lock.release()
    search.storage.set_trial_user_attr(held.trial._trial_id, "worker", {"host": "elsewhere", "process": 1})
    assert search.take() is None
    monkeypatch.setattr("runner.sweeping.search.LOST_AFTER", 0.05)
    time.sleep(0.1)
    search.storage.set_trial_user_attr(held.trial._trial_id, "beat", 1)  # it lives
    assert search.take() is None
    time.sleep(0.1)
    assert search.take() is not None


def test_a_trial_that_kills_its_workers_is_given_up(base, tmp_path):
    search, worker = begun(base, tmp_path, "hidden_size 4")
    for _ in range(ATTEMPTS):
        search.take().lock.release()
        search.died(os.getpid())
    assert worker.work() is None
    assert states(search) == ["FAIL"]
    assert "its worker died 5 times" in report.summary(search)["rows"][0]["reason"]


def test_who_is_second_to_finish_is_not_counted(base, tmp_path):
    search, _ = begun(base, tmp_path, "hidden_size 4")
    search.take()
    search.tell(0, TrialState.COMPLETE, 1.5, {"reason": "first"})
    search.tell(0, TrialState.COMPLETE, 1.0, {"reason": "second"})
    assert search.trials()[0].value == 1.5
    assert search.trials()[0].user_attrs["result"] == {"reason": "first"}


def test_options_that_fit_no_text_fail_alone(base, tmp_path):
    search, worker = begun(base, tmp_path, "batch_size 4,4000")
    worker.work()
    assert sorted(states(search)) == ["COMPLETE", "FAIL"]
    assert [row["reason"] for row in report.summary(search)["rows"] if row["state"] == "failed"] != [""]


def test_another_implementation_gets_a_process_of_its_own(base, tmp_path, monkeypatch):
    search, worker = begun(base, tmp_path, "implementation numpy,torch", "hidden_size 4,5")
    monkeypatch.setattr("runner.sweeping.worker.run_trial", lambda *_: trial.Outcome(TrialState.COMPLETE, 1.0, {}))
    left = worker.work()
    assert sorted(states(search)) == ["COMPLETE", "COMPLETE", "RUNNING", "WAITING"]
    (impl,) = {each.params["implementation"] for each in search.trials() if each.state == TrialState.COMPLETE}
    assert search.trials()[left].params["implementation"] != impl
    assert SweepWorker(str(tmp_path / "journal.log"), "it", tmp_path).work(left) is None
    assert states(search) == ["COMPLETE"] * 4


def test_tpe_learns_repeats_nothing_and_depends_on_the_seed_alone(base, tmp_path, monkeypatch):
    def loss(search, held):
        point = search.point(held.trial)
        value = (point["model.hidden_size"] - 30) ** 2 / 100 + abs(math.log10(point["training.learning_rate"]) + 2)
        return trial.Outcome(TrialState.COMPLETE, value, {})

    monkeypatch.setattr("runner.sweeping.worker.run_trial", loss)
    given = ["hidden_size range 1 64", "learning_rate 1e-1,1e-2,1e-3,1e-4", "cell lstm,gru"]
    found = []
    for name in ("one", "two"):
        search, worker = begun(base, tmp_path / name, *given, method="tpe", trials=40)
        worker.work()
        found.append([each.params for each in search.trials()])
    assert found[0] == found[1]
    assert len({space.key(point) for point in found[0]}) == 40
    late, early = (
        sum(abs(point["model.hidden_size"] - 30) for point in part) for part in (found[0][25:], found[0][:16])
    )
    assert late / 15 < early / 16


def test_a_beginning_that_was_killed_is_finished(base, tmp_path):
    found = space.space_of([["hidden_size", "4,5,6,7"]], None)
    plan = Plan(base, found, "grid", "none", 0, folder=str(tmp_path))
    storage = open_storage(str(tmp_path / "journal.log"))
    study = optuna.create_study(storage=storage, study_name="it")
    study.set_user_attr("plan", plan.to_json())
    study.enqueue_trial({"model.hidden_size": make_points(plan)[0]["model.hidden_size"]})
    with pytest.raises(ConfigError, match="has not begun"):
        Search(storage, "it")
    search = make(plan, storage, "it")
    queued = [each.system_attrs["fixed_params"]["model.hidden_size"] for each in search.trials()]
    assert sorted(queued) == [4, 5, 6, 7]


def make_points(plan):
    return queue(plan)


def test_a_torn_line_is_mended_by_the_next_writer(base, tmp_path):
    _, worker = begun(base, tmp_path, "hidden_size 4,5")
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker')
    worker.work()
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    assert states(Search(open_storage(str(journal)), "it")) == ["COMPLETE"] * 2
    journal.write_bytes(b"x" * 9999)
    mend(journal)
    assert journal.read_bytes() == b""


def test_one_worker_may_keep_results_in_sqlite(base, tmp_path):
    address = f"sqlite:///{tmp_path / 'results.db'}"
    plan = Plan(base, space.space_of([["hidden_size", "4,5"]], None), "grid", "none", 0, folder=str(tmp_path))
    search = make(plan, open_storage(address), "it")
    SweepWorker(address, "it", tmp_path).work()
    assert states(search) == ["COMPLETE"] * 2
    search.storage.engine.dispose()


def test_a_password_is_not_written(tmp_path):
    assert hidden("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    with pytest.raises(UserError, match=r"cannot be opened|needs"):
        open_storage("postgresql://me:secret@127.0.0.1:1/db")
