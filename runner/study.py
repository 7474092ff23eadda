"""`study`: the variants of a recipe, each an ordinary run of `train` in a process of its own. Its folder holds their
run directories, what each printed (*.log), study.json, which lists them, and study.svg and study.png. Which runs have
ended is read from their own folders, so that whatever stops a study, it goes on from there.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from runner import resume
from runner.cli import Sample, Train
from runner.cli import Study as Options
from runner.console import console, say, show_table
from runner.interruption import Interruption, interruption
from runner.outcome import outcome
from runner.recipe import load_recipe, names
from runner.registry import chosen
from runner.rundir import RunDirectory, is_blank, new_folder
from runner.study_plan import Planned, Study, load_study, planned
from runner.workers import Worker
from shared.errors import NotFiniteError, UserError
from shared.files import strict_json, write_atomically

FORMAT = "rosetta-study/1"
STATISTICS = "statistics.json"
Row = dict[str, Any]


def run(options: Options) -> int:
    """Run what has not ended, and show all; exit status 1 where a run failed, 130 or 143 where a signal ended it."""
    if not options.name:
        return show_list()
    console.stderr = options.markdown  # whoever asks for a table for a file wants nothing else in it
    study = load_study(options.name)
    impls = chosen(options.impl or study.impls or load_recipe(study.recipe).options.get("impl", "numpy"))
    runs = planned(study, options, impls)
    folder = options.run_dir or Path("runs") / f"study-{study.name}"
    if not (folder.exists() and ((folder / "study.json").exists() or is_blank(folder))):
        new_folder(folder, "")
    with RunDirectory(folder).locked(new=False):
        listing = Listing(folder, study, runs)
        with interruption() as stop:
            run_all(listing, options.workers, stop)
        show(listing, options)
    if stop.requested:
        say("Stopped; the same command goes on from here.")
        return 128 + stop.requested
    return int(any(row["status"] == "failed" for row in listing.rows))


def show_list() -> int:
    """One line each."""
    studies = [load_study(name) for name in names("studies")]
    rows = [(each.name, each.title, each.recipe, str(len(each.variants)), each.time) for each in studies]
    columns = ("name", "what", "recipe", "variants", "time on two cores")
    show_table("Studies: python -m runner study NAME", columns, rows, right=(3,), wrap=(1, 4))
    return 0


class Listing:
    """study.json: every run with its folder, its command, how it stands (waiting, finished, diverged, failed), why it
    failed, and its figures."""

    def __init__(self, folder: Path, study: Study, runs: list[Planned]) -> None:
        self.folder, self.study, self.runs = folder, study, {each.folder: each for each in runs}
        before = self._rows_before()
        self.rows: list[Row] = [
            {"name": each.name, "impl": each.impl, "folder": each.folder, "command": each.command} | before[each.folder]
            for each in runs
        ]
        for row in self.rows:
            self.look(row)
        self.write()

    def _rows_before(self) -> dict[str, Row]:
        """How each run stood; UserError where the folder's study is another."""
        unknown: dict[str, Row] = {folder: {"status": "waiting", "error": ""} for folder in self.runs}
        if not (self.folder / "study.json").exists():
            return unknown
        try:
            stored = json.loads((self.folder / "study.json").read_text("utf-8"))["runs"]
            found = {row["folder"]: row for row in stored}
            same = {name: row["command"] for name, row in found.items()} == {
                name: each.command for name, each in self.runs.items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / 'study.json'} is not the file of a study ({error}).") from None
        if not same:
            raise UserError(
                f"{self.folder} holds a study of other runs, begun with other options or another version of its file. "
                "Go on with those, or give a new folder with --run-dir."
            )
        return found

    def look(self, row: Row) -> None:
        """What the run's own folder says."""
        folder = self.folder / row["folder"]
        if ended(folder) and (not self.study.statistics or (folder / STATISTICS).exists()):
            row |= {"status": "finished", "error": ""}
        elif row["status"] != "diverged":
            row["status"] = "waiting" if row["status"] == "finished" else row["status"]
        known = (folder / "config.json").exists() and row["status"] != "waiting"
        row["figures"] = outcome(folder) if known else {}

    def write(self) -> None:
        study = self.study
        about = {"study": study.name, "title": study.title, "source": study.source, "recipe": study.recipe}
        how = {"columns": study.columns, "picture": study.picture}
        write_atomically(self.folder / "study.json", strict_json({"format": FORMAT, **about, **how, "runs": self.rows}))


def ended(folder: Path) -> bool:
    """Whether a run has its result."""
    try:
        return "result" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False


def run_all(listing: Listing, count: int, stop: Interruption) -> None:
    """`count` runs at a time, each in a new process, as a framework gives nothing back; a signal is passed on, and
    those at work save first."""
    waiting = [row for row in listing.rows if row["status"] in ("waiting", "failed")]
    total, busy, passed_on = len(listing.rows), dict[Any, Row](), False
    if len(waiting) < total:
        say(f"{total - len(waiting)} of {total} runs have ended already: {listing.folder}")
    with console.status("") as status, all_closed(busy):
        while busy or (waiting and not stop.requested):
            while waiting and len(busy) < count and not stop.requested:
                row = waiting.pop(0)
                busy[begun(listing, row)] = row
            if stop.requested and not passed_on:
                for worker in busy:
                    worker.interrupt()
                passed_on = True  # asked twice, a run ends without saving
            answering: list[Any] = wait(list(busy), None if stop.requested else 0.5)
            for worker in answering:
                row = busy.pop(worker)
                collect(listing, row, worker, stop)
                say(f"{total - len(waiting) - len(busy)}/{total} {told(row)}", "red" * (row["status"] == "failed"))
            status.update("; ".join(at_work(listing.folder / row["folder"], row) for row in busy.values()))


@contextmanager
def all_closed(busy: dict[Any, Row]) -> Iterator[None]:
    """No worker outlives the block."""
    try:
        yield
    finally:
        for worker in busy:
            worker.close()


def begun(listing: Listing, row: Row) -> Worker:
    """A process at work on a run."""
    folder = listing.folder / row["folder"]
    options = replace(listing.runs[row["folder"]].options, run_dir=folder)
    worker = Worker(row["name"], Trainer, folder.with_name(f"{folder.name}.log"))
    worker.start("train", options, listing.study.statistics)
    return worker


def collect(listing: Listing, row: Row, worker: Worker, stop: Interruption) -> None:
    """How the run ended."""
    try:
        worker.result()
    except NotFiniteError as error:
        row |= {"status": "diverged", "error": str(error)}
    except UserError as error:
        row |= {"status": "waiting" if stop.requested else "failed", "error": str(error)}
    worker.close()
    listing.look(row)
    listing.write()


class Trainer:
    """The ordinary commands, alone in a process; what they print goes to a file."""

    def __init__(self, log: Path) -> None:
        with suppress(AttributeError, PermissionError):  # not everywhere, and not twice
            os.setsid()  # the terminal's Ctrl-C is for the study, which passes it on
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

    def train(self, options: Train, statistics: str) -> None:
        """To the end of the run, from wherever it stands; or to a signal, which saves it."""
        from runner import sample, train

        folder = options.run_dir
        assert folder  # noqa: S101 - every run of a study has its own
        if not ended(folder):
            begun_before = (folder / "config.json").exists()
            resumed = resume.resumed(["train", "--resume", str(folder)]) if begun_before else options
            if train.run(resumed or options):  # a signal ended it
                return
        if statistics:
            path, data_dir = folder / f"{statistics}.safetensors", options.corpus.data_dir
            measured = Sample(path, options.impl, statistics=True, json=folder / STATISTICS, data_dir=data_dir)
            sample.run(replace(measured, runtime=options.runtime))


def at_work(folder: Path, row: Row) -> str:
    """A run in one phrase, while it goes on."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            line = json.loads(file.read().split(b"\n")[-2])
        return f"{row['name']} ({row['impl']}): step {line['step']}, loss {line['loss'] or float('nan'):.3f}"
    return f"{row['name']} ({row['impl']}): beginning"


def told(row: Row) -> str:
    """A run in one line, once it has ended."""
    figures = row["figures"]
    what = f", held-out loss {figures['held_out_loss']:.4f}" if "held_out_loss" in figures else ""
    seconds = f" in {figures['seconds']:.1f} s" if "seconds" in figures else ""
    return f"{row['name']} ({row['impl']}): {row['status']}{what}{seconds} {row['error']}".rstrip()


def show(listing: Listing, options: Options) -> None:
    """The table, on the terminal and in files, and the picture."""
    from runner.reporting.study_page import write_study_report
    from runner.study_table import markdown, picture, terminal

    if options.markdown:
        print(markdown(listing), end="")
    else:
        terminal(listing)
    if options.json:
        write_atomically(options.json, (listing.folder / "study.json").read_bytes())
    if drawn := picture(listing):
        for name, content in drawn.items():
            write_atomically(listing.folder / name, content)
        say(f"Table: {listing.folder / 'study.json'}; picture: {listing.folder / 'study.svg'} and .png")
        say(f"Page: {write_study_report(listing.folder)}")
