"""A run directory: config.json, metrics.jsonl, last and best checkpoint, samples.txt, curves.svg, report.html; with
--tensorboard also a folder of event files."""

import itertools
import json
from pathlib import Path
from typing import Any

from runner.cli import Train
from shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from shared.errors import UserError
from shared.files import write_atomically


class RunDirectory:
    """The files of a run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.last, self.best = path / "last.safetensors", path / "best.safetensors"

    @classmethod
    def create(cls, options: Train) -> "RunDirectory":
        """A new folder: the one asked for, which must not exist, or the next free name under runs/."""
        name = f"{Path(options.corpus.corpus).stem}-{options.model.cell}-{options.impl}"
        return cls(new_folder(options.run_dir, name))

    @classmethod
    def reopen(cls, path: Path) -> "RunDirectory":
        """The folder of a run to go on with."""
        if not (path / "last.safetensors").is_file():
            raise UserError(f"--resume {path}: no last.safetensors there; give the folder of a run that was saved.")
        return cls(path)

    def same_corpus(self, sha256: str) -> None:
        """UserError where the text is no longer the one that the run began with."""
        if json.loads(self.config.read_text("utf-8"))["corpus"]["sha256"] != sha256:
            raise UserError(f"--resume {self.path}: the corpus has changed since the run began (sha256 {sha256}).")

    def write_config(self, config: dict[str, Any]) -> None:
        write_atomically(self.config, json.dumps(config, indent=1, ensure_ascii=False) + "\n")

    def add_result(self, result: dict[str, Any]) -> None:
        self.write_config(json.loads(self.config.read_text("utf-8")) | {"result": result})

    def log(self, lines: list[dict[str, Any]]) -> None:
        """Append to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def cut_metrics(self, lines: int) -> None:
        """Forget what was logged after the checkpoint."""
        kept = self.metrics.read_text("utf-8").splitlines(keepends=True)[:lines] if self.metrics.exists() else []
        write_atomically(self.metrics, "".join(kept))

    def save(self, checkpoint: Checkpoint, best: bool) -> None:
        """`best` first: where `last` names a best step, that checkpoint is already there."""
        if best:
            save_checkpoint(self.best, checkpoint)
        save_checkpoint(self.last, checkpoint)

    def load_last(self) -> Checkpoint:
        return load_checkpoint(self.last)

    def load_best(self) -> Checkpoint:
        return load_checkpoint(self.best)

    def write_samples(self, samples: list[str]) -> None:
        write_atomically(self.path / "samples.txt", "\n\n".join(samples) + "\n")


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
        except FileExistsError:
            if wanted:
                raise exists_already(wanted) from None
            path = path.with_name(f"{name}-{number}")
        except OSError as error:
            raise UserError(f"Cannot make the folder {path}: {error.strerror or error}.") from None
        else:
            break
    return path
