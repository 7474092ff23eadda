"""A run directory: config.json, metrics.jsonl, last and best checkpoint, samples.txt, curves.svg, report.html; with
--tensorboard also a folder of event files."""

import errno
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runner.cli import Train
from runner.console import say
from shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from shared.errors import UserError
from shared.files import UNFINISHED, WriteError, append, discard, reason, sync, sync_folder, write_atomically

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of disks that know no locks, as some of clusters do not."""


class RunDirectory:
    """The files of a run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.last, self.best = path / "last.safetensors", path / "best.safetensors"

    @classmethod
    def create(cls, options: Train) -> "RunDirectory":
        """A new folder: the one asked for, which must hold nothing, or the next free name under runs/."""
        if options.run_dir and is_blank(options.run_dir):
            return cls(options.run_dir)
        name = f"{Path(options.corpus.corpus).stem}-{options.model.cell}-{options.impl}"
        return cls(new_folder(options.run_dir, name))

    @classmethod
    def reopen(cls, path: Path) -> "RunDirectory":
        """The folder of a run to go on with; one that was killed before its first checkpoint begins anew."""
        folder = cls(path)
        if not folder.last.is_file() and (folder.metrics.exists() or folder.best.exists()):
            raise UserError(f"--resume {path}: no last.safetensors there; give the folder of a run that was saved.")
        return folder

    @contextmanager
    def locked(self, new: bool) -> Iterator[None]:
        """No other run is in the folder meanwhile, and in a `new` one none has been. The system itself drops the lock
        of a process that ends, however it ends. UserError where another holds it; then nothing is touched."""
        lock = FileLock(self.path / LOCK, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"Another run is at work in {self.path}: wait until it ends, or stop it.") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise WriteError(f"Cannot lock {self.path}: {reason(error)}") from None
            say(f"The disk of {self.path} knows no locks: see to it yourself that no other run works there.", "yellow")
        try:
            if new and not is_blank(self.path):
                raise exists_already(self.path)
            self.remove_unfinished()
            yield
        finally:
            if lock.is_locked:
                discard(self.path / LOCK)  # while it is held: whoever waits for it notices
                lock.release()

    def same_corpus(self, sha256: str) -> None:
        """UserError where the text is no longer the one that the run began with."""
        if json.loads(self.config.read_text("utf-8"))["corpus"]["sha256"] != sha256:
            raise UserError(f"--resume {self.path}: the corpus has changed since the run began (sha256 {sha256}).")

    def write_config(self, config: dict[str, Any]) -> None:
        write_atomically(self.config, json.dumps(config, indent=1, ensure_ascii=False) + "\n", make_folder=False)

    def add_result(self, result: dict[str, Any]) -> None:
        self.write_config(json.loads(self.config.read_text("utf-8")) | {"result": result})

    def log(self, lines: list[dict[str, Any]]) -> None:
        """Append to metrics.jsonl; where a process dies on it, the last line is torn."""
        append(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))

    def cut_metrics(self, lines: int) -> int:
        """Forget what was logged after the checkpoint, a torn line too; how many of the lines before it are there."""
        found = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.exists() else []
        kept = [line for line in found[:lines] if line.endswith(b"\n")]
        write_atomically(self.metrics, b"".join(kept), make_folder=False)
        if len(kept) < lines:
            say(
                f"{self.metrics} has only {len(kept)} of the {lines} lines that were logged; the rest is lost.",
                "yellow",
            )
        return len(kept)

    def remove_unfinished(self) -> None:
        """Delete what processes that were killed left half written; only one process may be in the folder."""
        for path in self.path.glob(f".*{UNFINISHED}"):
            discard(path)

    def save(self, checkpoint: Checkpoint, best: bool) -> None:
        """Whatever `last` counts on is on the disk before it: the lines of metrics.jsonl, the best checkpoint."""
        sync(self.metrics if self.metrics.exists() else self.path)
        if best:
            save_checkpoint(self.best, checkpoint)
        save_checkpoint(self.last, checkpoint)

    def load_last(self) -> Checkpoint:
        return load_checkpoint(self.last)

    def load_best(self) -> Checkpoint:
        return load_checkpoint(self.best)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Where a file cannot be written, the error says how the run goes on."""
        try:
            yield
        except WriteError as error:
            raise WriteError(f"{error} {self.way_on()}") from None

    def way_on(self) -> str:
        """What to do once whatever stopped the run is mended."""
        if self.last.exists():
            return f"Then go on from the last checkpoint with: python -m runner --resume {self.path}"
        if self.path.is_dir():
            return "No checkpoint was written yet: start again then."
        return (
            f"The run needs its folder, {self.path}: wherever it is now, go on with: python -m runner --resume FOLDER"
        )

    def write_samples(self, samples: list[str]) -> None:
        write_atomically(self.path / "samples.txt", "\n\n".join(samples) + "\n", make_folder=False)


class NoDirectory(RunDirectory):
    """What a process beside the first has of the run's directory: its name, for messages. No file is touched."""

    def __init__(self, options: Train) -> None:
        super().__init__(options.resume or options.run_dir or Path("runs"))

    def cut_metrics(self, lines: int) -> int:
        return lines

    def log(self, lines: list[dict[str, Any]]) -> None:
        pass

    def save(self, checkpoint: Checkpoint, best: bool) -> None:
        pass


def is_blank(path: Path) -> bool:
    """Whether a folder holds nothing, or only what a process leaves that is killed before it has written anything."""
    return path.is_dir() and all(each.name == LOCK or each.name.endswith(UNFINISHED) for each in path.iterdir())


def refuse_existing(wanted: Path | None) -> None:
    """UserError where a folder that was asked for is there already."""
    if wanted and wanted.exists():
        raise exists_already(wanted)


def exists_already(path: Path) -> UserError:
    """The error for a run directory that would have to be overwritten."""
    return UserError(f"--run-dir {path} exists already and stays as it is; choose another, or go on with --resume.")


def new_folder(wanted: Path | None, name: str) -> Path:
    """Make the wanted folder, or runs/<name>, runs/<name>-2, ...; UserError where the wanted one exists."""
    path = wanted or Path("runs") / name
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True)
            sync_folder(path.parent)
        except FileExistsError:
            if wanted:
                raise exists_already(wanted) from None
            path = path.with_name(f"{name}-{number}")
        except OSError as error:
            raise WriteError(f"Cannot make the folder {path}: {reason(error)}") from None
        else:
            break
    return path
