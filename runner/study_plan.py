"""Studies: TOML files in studies/, or of the user's, that name a recipe and its variants. Standard library only.

title       what is asked
source      whose question
time        how long on two processor cores, in words
recipe      what all runs begin from: a recipe's name, or a file of that form
impls       implementations with commas between, each of which runs every variant; without it, the recipe's
options     a table of options that all runs have in place of the recipe's
variants    a list of tables: `name`, and the options in which this run differs; `recipe`, where it has another one
columns     figures of the table (outcome.py)
statistics  best or last: which checkpoint of every run writes the texts that are measured at five temperatures
picture     a table: `kind`, lines, bars or temperatures; of lines `split`, train or held-out, `value`, a number of
            metrics.jsonl, `over`, step, epoch or seconds (of training), and `marks`, a list of tables of `name`,
            `at` and `value`: results of others to stand beside; of bars `metric`, a figure; `log`, true for a
            logarithmic axis of values, and of lines `log_over`, of what they run over
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from runner.cli import Study as Options
from runner.cli import Train, command_line
from runner.environment import available_cores
from runner.outcome import METRICS
from runner.recipe import check_keys, configured, load_recipe, read_toml, typed
from shared.config import RuntimeConfig
from shared.errors import ConfigError

KEYS: dict[str, type] = {
    "title": str,
    "source": str,
    "time": str,
    "recipe": str,
    "impls": str,
    "options": dict,
    "variants": list,
    "columns": list,
    "statistics": str,
    "picture": dict,
}
PICTURES: dict[str, dict[str, tuple[str, ...]]] = {
    "lines": {
        "split": ("train", "held-out"),
        "value": ("loss", "perplexity", "bits_per_character", "learning_rate", "gradient_norm", "tokens_per_second"),
        "over": ("step", "epoch", "seconds"),
    },
    "bars": {"metric": tuple(METRICS)},
    "temperatures": {},
}
"""Kinds, and of each what is to be chosen."""
MARK: dict[str, type] = {"name": str, "at": float, "value": float}


@dataclass(frozen=True)
class Study:
    """A file, read and checked."""

    name: str
    title: str
    source: str
    time: str
    recipe: str
    impls: str
    options: dict[str, Any]
    variants: tuple[dict[str, Any], ...]
    columns: tuple[str, ...]
    statistics: str
    picture: dict[str, Any]


class Planned(NamedTuple):
    """One run of a study."""

    name: str
    impl: str
    folder: str
    command: str
    options: Train


def load_study(name: str) -> Study:
    """A study by its name or its file's; ConfigError says what is wrong in it."""
    values, _ = read_toml(name, "studies")
    where = f"study {name}"
    check_keys(values, KEYS, where)
    empty = {key: kind() for key, kind in KEYS.items()}
    found: dict[str, Any] = {key: typed(values.get(key, empty[key]), KEYS[key], key, where) for key in KEYS}
    check_keys(found["columns"], METRICS, f"{where}, columns")
    check_keys([found["statistics"]] * bool(found["statistics"]), ("best", "last"), f"{where}, statistics")
    check_picture(found["picture"], f"{where}, picture")
    for place, variant in enumerate(found["variants"], 1):
        typed(typed(variant, dict, f"variant {place}", where).get("name"), str, f"name of variant {place}", where)
    titles = [variant["name"] for variant in found["variants"]]
    if not titles or len(set(titles)) < len(titles):
        raise ConfigError(f"{where}: needs variants, each of another name, and has {', '.join(titles) or 'none'}.")
    return Study(**found | {"name": Path(name).stem} | {key: tuple(found[key]) for key in ("variants", "columns")})


def check_picture(picture: Mapping[str, Any], where: str) -> None:
    """ConfigError where it cannot be drawn."""
    check_keys([typed(picture.get("kind", ""), str, "kind", where)], PICTURES, f"{where}, kind")
    choices = PICTURES[picture["kind"]]
    check_keys(picture, ("kind", "log", *choices, *["log_over", "marks"] * ("over" in choices)), where)
    for key in ("log", "log_over"):
        typed(picture.get(key, False), bool, key, where)
    for key, allowed in choices.items():
        check_keys([typed(picture.get(key, ""), str, key, where)], allowed, f"{where}, {key}")
    for mark in typed(picture.get("marks", []), list, "marks", where):
        check_keys(typed(mark, dict, "a mark", where), MARK, f"{where}, marks")
        for key, kind in MARK.items():
            typed(mark.get(key), kind, f"{key} of a mark", where)


def planned(study: Study, options: Options, impls: list[str]) -> list[Planned]:
    """Every variant in every implementation. What the command line gives wins over the study, and that over its
    recipe."""
    given = {"corpus": options.corpus, "max_steps": options.max_steps, "data_dir": options.data_dir}
    wins = {name: str(value) if name == "data_dir" else value for name, value in given.items() if value}
    runs: list[Planned] = []
    for variant in study.variants:
        changes = {name: value for name, value in variant.items() if name not in ("name", "recipe")}
        where = f"study {study.name}, variant {variant['name']!r}"
        recipe = typed(variant.get("recipe", study.recipe), str, "recipe", where)
        base = load_recipe(recipe).options | study.options
        for impl in [typed(changes["impl"], str, "impl", where)] if "impl" in changes else impls:
            wanted = configured({**base, **changes, **wins, "impl": impl}, where)
            if study.statistics:
                wanted = replace(wanted, statistics=False)  # they are measured afterwards, of short runs, too
            runtime = replace(wanted.runtime, device=options.device, threads=threads_of(options))
            runs.append(entry(len(runs) + 1, variant["name"], replace(wanted, runtime=runtime)))
    return runs


def threads_of(options: Options) -> int:
    """Of each run."""
    share = max(1, available_cores() // options.workers) if options.workers > 1 else 0
    return options.threads or share


def entry(number: int, name: str, options: Train) -> Planned:
    """A folder of its own, and the command that says what it is, wherever it runs and the corpora lie."""
    slug = re.sub(r"[^\w.]+", "-", name).strip("-.").lower()
    where = replace(options.runtime, device=RuntimeConfig.device, threads=0)
    anywhere = replace(options, corpus=replace(options.corpus, data_dir=None), runtime=where)
    command = command_line(f"--impl {options.impl}", anywhere, Train())
    return Planned(name, options.impl, f"{number:02}-{slug}-{options.impl}", command, options)
