"""Recipes: commented TOML files in recipes/, or of the user's, that name options and what comes of them. Standard
library only, since a recipe's options are the defaults that the command line is parsed with.

title     what it is
source    whose experiment
time      how long on two processor cores, in words
options   a table of options, named and valued as in config.json (hidden_size = 128), impl and engine among them
expected  a list of tables: `metric`, a figure's name (outcome.py), `at_most` or `at_least` a number, or neither where
          no figure is known, and `reported`, what the source has
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from runner.cli import Train, flag, parse, value_of
from runner.outcome import METRICS, Figures
from shared.config import (
    CorpusConfig,
    Implementation,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
    from_json,
    to_json,
)
from shared.errors import ConfigError

PARTS: dict[str, type] = {
    "model": ModelConfig,
    "training": TrainingConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "corpus": CorpusConfig,
    "runtime": RuntimeConfig,
}
OWN: dict[str, type] = {
    "impl": str,
    "prompt": str,
    "greedy": list,
    "length": int,
    "sample_epochs": int,
    "statistics": bool,
}
"""Options of `train` that belong to no part."""
PLACES = {each.name: part for part, kind in PARTS.items() for each in fields(kind)} | dict.fromkeys(OWN, "")
"""Every option that a recipe may set, and the part it belongs to."""


@dataclass(frozen=True)
class Expectation:
    """One figure of the outcome, and what it should be."""

    metric: str
    at_most: float | None = None
    at_least: float | None = None
    reported: str = ""

    def bound(self) -> str:
        """As people read it."""
        limit = self.at_most if self.at_least is None else self.at_least
        return "–" if limit is None else f"{'≤' if self.at_least is None else '≥'} {limit:g}"

    def met(self, figures: Figures) -> bool | None:
        """Whether it came so; None where there is no bound or no figure."""
        value = figures.get(self.metric)
        if value is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True)
class Recipe:
    """A file, read and checked."""

    name: str
    title: str
    source: str
    time: str
    expected: tuple[Expectation, ...]
    options: dict[str, Any]
    text: str


def started(arguments: list[str]) -> Train | None:
    """The options of a run that begins from a recipe, or None where --recipe was not given."""
    name = value_of("--recipe", arguments)
    if name is None:
        return None
    default = train_of(load_recipe(name), name)
    try:
        given = parse(arguments, default)
    except ConfigError as error:
        raise ConfigError(f"{error} (What is not given comes from the recipe {name}.)") from None
    assert isinstance(given, Train)  # noqa: S101 - --recipe is an option of train alone, anything else was refused
    return given


def names(folder: str = "recipes") -> list[str]:
    """Those that come with the program."""
    return sorted(each.name.removesuffix(".toml") for each in shipped(folder))


def shipped(folder: str) -> Iterable[Any]:
    return (each for each in files("runner").joinpath(folder).iterdir() if each.name.endswith(".toml"))


def read_toml(name: str, folder: str = "recipes") -> tuple[dict[str, Any], str]:
    """The values and the text of a file that comes with the program, or of the user's; ConfigError names the nearest
    where there is none, and says where a file is no TOML."""
    kind = {"recipes": "recipe", "studies": "study"}[folder]
    found = next((each for each in shipped(folder) if each.name == f"{name}.toml"), None)
    if found is None and not Path(name).is_file():
        nearest = close(name, names(folder))
        raise ConfigError(
            f"There is neither a {kind} nor a file called {name!r}.{nearest} Known: {', '.join(names(folder))}."
        )
    try:
        text = (found or Path(name)).read_text("utf-8")
        return tomllib.loads(text), text
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The {kind} {name} cannot be read as TOML: {error}.") from None


def load_recipe(name: str) -> Recipe:
    """A recipe by its name or its file's; ConfigError says what is wrong in it."""
    values, text = read_toml(name)
    where = f"recipe {name}"
    check_keys(values, ("title", "source", "time", "expected", "options"), where)
    words = {key: typed(values.get(key, ""), str, key, where) for key in ("title", "source", "time")}
    listed = typed(values.get("expected", []), list, "expected", where)
    expected = tuple(expectation(each, where) for each in listed)
    options = typed(values.get("options", {}), dict, "options", where)
    configured(options, where)
    return Recipe(Path(name).stem, **words, expected=expected, options=options, text=text)


def expectation(values: Any, where: str) -> Expectation:
    """One table of `expected`."""
    typed(values, dict, "an entry of expected", where)
    check_keys(values, [each.name for each in fields(Expectation)], f"expected of {where}")
    metric = typed(values.get("metric", ""), str, "metric", where)
    check_keys({metric: None}, METRICS, f"expected of {where}, metric")
    limits = {name: values[name] for name in ("at_most", "at_least") if name in values}
    for name, limit in limits.items():
        if type(limit) not in (int, float):
            raise ConfigError(f"{where}: {name} of {metric} must be a number, got {limit!r}.")
    if len(limits) > 1:
        raise ConfigError(f"{where}: {metric} takes at_most or at_least, not both.")
    return Expectation(metric, **limits, reported=typed(values.get("reported", ""), str, "reported", where))


def train_of(recipe: Recipe, name: str, **changes: Any) -> Train:
    """The run that a recipe describes; `changes` are options that win over its own."""
    return configured({**recipe.options, **changes}, f"recipe {name}", recipe=name)


def configured(options: Mapping[str, Any], where: str, recipe: str = "") -> Train:
    """Options by name -> what `train` takes; ConfigError where one is unknown, of another type or impossible."""
    check_keys(options, PLACES, where)
    own = {name: typed(options[name], kind, name, where) for name, kind in OWN.items() if name in options}
    if own.get("impl", "numpy") not in get_args(Implementation):
        raise ConfigError(f"{where}: impl must be one of {', '.join(get_args(Implementation))}, got {own['impl']!r}.")
    if "greedy" in own:
        own["greedy"] = tuple(typed(each, str, "an entry of greedy", where) for each in own["greedy"])
    try:
        parts: dict[str, Any] = {
            part: from_json(
                kind, to_json(kind()) | {name: value for name, value in options.items() if PLACES[name] == part}
            )
            for part, kind in PARTS.items()
        }
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Train(**parts, **own, recipe=recipe)


def check_keys(values: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """ConfigError with the nearest and all that are allowed, where a key is not."""
    known = list(allowed)
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: {key!r} is unknown.{close(key, known)} Allowed: {', '.join(sorted(known))}.")


def close(name: str, known: list[str]) -> str:
    """What could have been meant."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def typed(value: Any, kind: type, name: str, where: str) -> Any:
    """The value; ConfigError where it is of another type."""
    if type(value) is not kind:
        raise ConfigError(f"{where}: {name} must be of type {kind.__name__}, got {value!r}.")
    return value


def changed(options: Train, recipe: Recipe) -> list[str]:
    """What differs from the recipe, as it is typed; where it runs (impl, device, threads) is no difference."""
    ours, theirs = (
        {name: value for part in PARTS if part != "runtime" for name, value in to_json(getattr(each, part)).items()}
        for each in (options, train_of(recipe, recipe.name))
    )
    ignored = ("data_dir", "schedule_steps")
    return [flag(name, value) for name, value in ours.items() if name not in ignored and value != theirs[name]]
