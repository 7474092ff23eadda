"""What a sweep varies: options of the configuration and their values, from flags or a TOML file. Standard library only,
since the command line is parsed with it. A point is one value for each of them, under its full name."""

import itertools
import json
import math
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from runner.cli import Sweep, Train, value_of
from shared.config import Implementation, RuntimeConfig, from_json, restore, to_json
from shared.errors import ConfigError

PARTS = ("model", "training", "optimizer", "schedule", "corpus", "runtime")
IMPLEMENTATION = "implementation"
ONCE = ("runtime.threads", "runtime.tuning", "corpus.data_dir")
"""What is decided for a whole process, or the whole sweep."""
SETTINGS = "sweep.json"
"""In the folder of a search."""
SHIPPED = Path(__file__).parents[1] / "spaces"
RULES = ("method", "pruner", "trials", "seconds", "tokens", "stall", "stall_whole")
"""Options of `sweep` that a file may set, in its table [sweep]."""
MANY = 1_000_000
"""More values than this cannot be listed."""
FORMS = """--vary takes an option and its values: model.hidden_size 64,128,256; training.seq_length range 25 95 10 \
(low, high, step); training.learning_rate log 1e-4 1e-1"""

Point = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One option and what it may be: one of `choices`, or between `low` and `high`, both included."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    """Between values; 0: any number between."""
    log: bool = False
    whole: bool = False

    def values(self) -> Sequence[Any] | None:
        """All of them, or None where they cannot be listed."""
        if self.choices:
            return self.choices
        if not self.step or self.count() > MANY:
            return None
        if self.whole:
            return range(int(self.low), int(self.high) + 1, int(self.step))
        return [self.low + k * self.step for k in range(self.count())]

    def count(self) -> int:
        """How many values steps make; rounding loses no last one."""
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def draw(self, chance: random.Random) -> Any:
        """Any value alike; on a logarithmic scale where it is one."""
        if self.log:
            value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
            return min(max(round(value), int(self.low)), int(self.high)) if self.whole else value
        values = self.values()
        return chance.choice(values) if values else chance.uniform(self.low, self.high)


Space = tuple[Dimension, ...]


def options() -> dict[str, tuple[Any, Any]]:
    """Every option that can vary, by its full name -> its default and its type."""
    found: dict[str, tuple[Any, Any]] = {IMPLEMENTATION: (Train().impl, Implementation)}
    for part in PARTS:
        config = getattr(Train(), part)
        hints = get_type_hints(type(config))
        found |= {f"{part}.{each.name}": (getattr(config, each.name), hints[each.name]) for each in fields(config)}
    return {name: kind for name, kind in found.items() if name not in ONCE}


def full_name(given: str) -> str:
    """The option that `hidden-size`, `hidden_size` or `model.hidden_size` names; ConfigError with the nearest."""
    wanted = given.strip().removeprefix("--").replace("-", "_")
    wanted = IMPLEMENTATION if wanted == "impl" else wanted
    known = options()
    if wanted in known:
        return wanted
    if wanted in ONCE or any(each.endswith(f".{wanted}") for each in ONCE):
        raise ConfigError(f"{given}: that option is the same in a whole sweep; give it as a flag.")
    short = {name.rpartition(".")[2]: name for name in known}
    if wanted in short:
        return short[wanted]
    near = get_close_matches(wanted, [*known, *short], 1, 0.5)
    hint = f"; did you mean {short.get(near[0], near[0])}?" if near else "."
    raise ConfigError(f"{given}: there is no option of that name{hint} `train --help` lists them.")


def from_words(words: Sequence[str]) -> Dimension:
    """What one --vary says."""
    if len(words) < 2:
        raise ConfigError(f"{FORMS}; got {' '.join(words)!r}.")
    name, form, rest = full_name(words[0]), words[1], words[2:]
    if form == "log" and len(rest) == 2:
        return interval(name, rest[0], rest[1], log=True)
    if form == "range" and len(rest) in (2, 3):
        return interval(name, rest[0], rest[1], rest[2] if len(rest) > 2 else 0)
    if rest or form in ("log", "range"):
        raise ConfigError(f"{FORMS}; got {' '.join(words)!r}.")
    return listed(name, [typed(name, text) for text in form.split(",")])


def from_table(name: str, value: Any) -> Dimension:
    """What an entry of the [space] table of a file says: a list, or { low, high, step, log }."""
    name = full_name(name)
    if isinstance(value, list):
        return listed(name, value)
    if isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "step", "log"}:
        return interval(name, value["low"], value["high"], value.get("step", 0), bool(value.get("log", False)))
    raise ConfigError(f"{name} in [space] must be a list of values or {{ low = , high = , step = , log = }}.")


def listed(name: str, values: Sequence[Any]) -> Dimension:
    """Choices, each of the option's type, none twice."""
    default, hint = options()[name]
    kept = []
    for value in values:
        value = restore(name, value, default)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ConfigError(f"{name} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}.")
        if value in kept:
            raise ConfigError(f"{name} has the value {value} twice.")
        kept.append(value)
    if not kept:
        raise ConfigError(f"{name} has no values to choose from.")
    return Dimension(name, choices=tuple(kept))


def interval(name: str, low: Any, high: Any, step: Any = 0, log: bool = False) -> Dimension:
    """Numbers between two, in steps or on a logarithmic scale; whole numbers in steps of 1 unless said otherwise."""
    kind = type(options()[name][0])
    if kind not in (int, float):
        raise ConfigError(f"{name} is no number: give its values with commas between.")
    try:
        numbers = [kind(number) for number in (low, high, step or 0)]
    except (TypeError, ValueError):
        raise ConfigError(f"{name} needs numbers ({kind.__name__}), got {low}, {high}, {step}.") from None
    low, high, step = numbers
    if not (all(map(math.isfinite, numbers)) and low < high and step >= 0):
        raise ConfigError(f"{name}: the low end must lie below the high end, and a step be positive; got {numbers}.")
    if log and (low <= 0 or step):
        raise ConfigError(f"{name}: a logarithmic scale has no steps, and starts above 0.")
    whole = kind is int
    return Dimension(name, low=low, high=high, step=1 if whole and not step and not log else step, log=log, whole=whole)


def typed(name: str, text: str) -> Any:
    """A word of the command line as the option's type."""
    kind, text = type(options()[name][0]), text.strip()
    if kind is tuple:
        raise ConfigError(f"{name} takes several numbers at once: give its values in a file (--space).")
    if kind is bool and text in ("true", "false"):
        return text == "true"
    try:
        return text if kind is str else {int: int, float: float}[kind](text)
    except (KeyError, ValueError):
        known = "true or false" if kind is bool else kind.__name__
        raise ConfigError(f"{name} must be {known}, got {text!r}.") from None


def space_of(given: Sequence[Sequence[str]], file: Path | None) -> Space:
    """The dimensions of a file and of flags; a flag replaces what the file says of the option."""
    table = read(file)["space"] if file else {}
    found = {each.name: each for each in (from_table(name, value) for name, value in table.items())}
    seen = set()
    for words in given:
        dimension = from_words(words)
        if dimension.name in seen:
            raise ConfigError(f"--vary {dimension.name} is given twice.")
        seen.add(dimension.name)
        found[dimension.name] = dimension
    if not found:
        raise ConfigError(f"A sweep needs something to vary: {FORMS}; or --space FILE, as novel-search.")
    return tuple(found.values())


def configured(base: Train, point: Mapping[str, Any]) -> Train:
    """The run at a point; ConfigError where its options contradict each other."""
    changed: dict[str, Any] = {}
    for name, value in point.items():
        part, _, option = name.rpartition(".")
        changed.setdefault(part, {})[option] = value
    impl = restore("impl", changed.pop("", {}).get(IMPLEMENTATION, base.impl), "")
    if impl not in get_args(Implementation):
        raise ConfigError(f"impl must be one of {', '.join(get_args(Implementation))}, got {impl!r}.")
    parts = {part: getattr(base, part) for part in changed}
    built = {part: from_json(type(config), to_json(config) | changed[part]) for part, config in parts.items()}
    return replace(base, impl=impl, **built)


def possible(base: Train, point: Mapping[str, Any]) -> bool:
    """Whether the options at a point go together."""
    try:
        configured(base, point)
    except ConfigError:
        return False
    return True


def grid(base: Train, space: Space, chance: random.Random) -> list[Point]:
    """Every point whose options go together, in an order that chance decides: a part of a grid is a fair sample."""
    unlisted = [each.name for each in space if each.values() is None]
    if unlisted:
        raise ConfigError(
            f"--method grid needs values that can be listed, and {', '.join(unlisted)} may be any number in between: "
            "give a step or a list, or take --method random or tpe."
        )
    if (size := math.prod(len(each.values() or ()) for each in space)) > MANY:
        raise ConfigError(f"The grid has {size:,} points, too many to list: take --method random or tpe.")
    names = [each.name for each in space]
    points = [dict(zip(names, row, strict=True)) for row in itertools.product(*(each.values() or () for each in space))]
    kept = [point for point in points if possible(base, point)]
    if not kept:
        configured(base, points[0])  # says what is wrong
    chance.shuffle(kept)
    return kept


def drawn(base: Train, space: Space, chance: random.Random, taken: Sequence[Point] = ()) -> Iterator[Point]:
    """Random points whose options go together, none twice and none that is taken; ends where they run out."""
    seen = {key(point) for point in taken}
    misses = 0
    while misses < 1000:
        point = {each.name: each.draw(chance) for each in space}
        misses += 1
        if key(point) not in seen and possible(base, point):
            misses = 0
            seen.add(key(point))
            yield point


def key(point: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What makes two points the same."""
    return tuple(sorted((name, repr(value)) for name, value in point.items()))


def find(name: str) -> Path:
    """A file, or the shipped space of that name; ConfigError lists those."""
    if (path := Path(name)).is_file():
        return path
    if (shipped := SHIPPED / f"{name}.toml").is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
    raise ConfigError(f"--space {name}: no such file. Shipped spaces: {names}.")


def load(path: Path) -> dict[str, Any]:
    """A TOML file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--space {path}: {error}.") from None


def read(path: Path) -> dict[str, Any]:
    """A file with a [space]; ConfigError for a table that means nothing."""
    content = load(path)
    known = ("title", "source", "time", "options", "space", "sweep")
    if unknown := sorted(content.keys() - set(known)):
        raise ConfigError(f"--space {path}: unknown {', '.join(unknown)}; known: {', '.join(known)}.")
    if not all(isinstance(content.get(table, {}), dict) for table in known[3:]) or "space" not in content:
        raise ConfigError(f"--space {path}: it needs a table [space], and may have [options] and [sweep].")
    return content


def default_of(arguments: Sequence[str]) -> Sweep | None:
    """What the file of --space says beside its space: the options that flags then change; with --resume and --join,
    where the runs of that search take place. Otherwise None."""
    if arguments[:1] != ["sweep"]:
        return None
    if folder := value_of("--resume", arguments) or value_of("--join", arguments):
        return Sweep(runtime=stored_runtime(Path(folder) / SETTINGS))
    name = value_of("--space", arguments)
    if name is None:
        return None
    content = read(find(name))
    point = {full_name(option): value for option, value in content.get("options", {}).items()}
    base, rules = configured(Train(), point), content.get("sweep", {})
    if rules.keys() - set(RULES):
        raise ConfigError(f"--space {name}: [sweep] takes {', '.join(RULES)}, and nothing else.")
    values = {option: restore(option, value, getattr(Sweep(), option)) for option, value in rules.items()}
    return Sweep(impl=base.impl, **{part: getattr(base, part) for part in PARTS}, **values)


def stored_runtime(settings: Path) -> RuntimeConfig:
    """Threads and device of a search in a folder, set before anything is opened; the usual if there is none."""
    try:
        return from_json(RuntimeConfig, json.loads(settings.read_text("utf-8"))["plan"]["base"]["runtime"])
    except (OSError, ValueError, KeyError, TypeError):
        return RuntimeConfig()
