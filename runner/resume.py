"""`--resume DIR`: every option comes from the run directory; only where and how long may change. Standard library only,
since the stored options are the defaults that the command line is parsed with."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from runner.cli import Train, parse, value_of
from shared.config import (
    CorpusConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
    from_json,
    to_json,
)
from shared.errors import ConfigError

PLACE = {"impl", "engine", "device", "threads", "tuning", "data_parallel", "hosts", "rank"}
FREE = PLACE | {"epochs", "max_steps", "checkpoint_seconds"}

OTHERS = ("impl", "run_dir", "recipe", "prompt", "greedy", "length", "sample_epochs", "checkpoint_seconds")
"""Options of `train` alone."""


def resumed(arguments: list[str]) -> Train | None:
    """The options of the run to go on with, or None where --resume was not given."""
    folder = folder_of(arguments)
    if folder is None:
        return None
    stored = stored_options(folder)
    try:
        given = parse(arguments, stored)
    except ConfigError:  # such as a schedule that the stored options do not go with: they are not to blame
        raise_if_changed(folder, flags_of(arguments) & (flat(stored).keys() - FREE))
        raise
    assert isinstance(given, Train)  # noqa: S101 - --resume is an option of train alone, anything else was refused
    before = flat(stored)
    raise_if_changed(folder, {name for name, value in flat(given).items() if value != before[name]} - FREE)
    return given


def raise_if_changed(folder: Path, names: set[str]) -> None:
    """ConfigError that names the options, if there are any."""
    if names:
        flags = ", ".join("--" + name.replace("_", "-") for name in sorted(names))
        raise ConfigError(
            f"{flags} cannot change with --resume: the run in {folder} would become another run. Only --impl --engine "
            "--device --threads --epochs --max-steps --checkpoint-seconds --data-parallel --hosts --rank may; start a "
            "new run for anything else."
        )


def flags_of(arguments: list[str]) -> set[str]:
    """The names of the options that are given, whatever their values."""
    words = (word[2:].partition("=")[0] for word in arguments if word.startswith("--"))
    return {word.removeprefix("no-").replace("-", "_") for word in words}


def folder_of(arguments: list[str]) -> Path | None:
    """The value of --resume of `train`, before anything is parsed."""
    given = None if arguments[:1] == ["sweep"] else value_of("--resume", arguments)
    return None if given is None else Path(given)


def stored_options(folder: Path) -> Train:
    """What config.json says."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        runtime = RuntimeConfig(engine=config["engine"], dtype=config["dtype"], threads=config["threads"])
        return Train(
            impl=config["impl"],
            model=from_json(ModelConfig, config["model"]),
            training=from_json(TrainingConfig, config["training"]),
            optimizer=from_json(OptimizerConfig, config["optimizer"]),
            schedule=from_json(ScheduleConfig, config["schedule"]),
            corpus=from_json(CorpusConfig, {each.name: config["corpus"][each.name] for each in fields(CorpusConfig)}),
            runtime=replace(runtime, device=str(config["device"]).partition(" ")[0]),
            recipe=config.get("recipe", ""),
            parallel=ParallelConfig(config["data_parallel"]),
            prompt=config["sampling"]["prompt"],
            greedy=tuple(config["sampling"].get("greedy", ())),
            length=config["sampling"]["length"],
            sample_epochs=config["sampling"].get("sample_epochs", 0),
            statistics=config["statistics"],
            tensorboard=config["tensorboard"],
            checkpoint_seconds=config["checkpoint_seconds"],
            resume=folder,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--resume {folder}: config.json there is missing or not of a run ({error}).") from None


def flat(options: Train) -> dict[str, Any]:
    """Every option by its flag's name."""
    parts = ("model", "training", "optimizer", "schedule", "corpus", "runtime", "parallel")
    values = {name: value for part in parts for name, value in to_json(getattr(options, part)).items()}
    return values | {name: getattr(options, name) for name in OTHERS}
