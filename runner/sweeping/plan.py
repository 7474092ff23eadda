"""What a search has decided before it begins: its space, its order of points, its way of pruning."""

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from runner.cli import Train
from runner.sweeping import space as spaces
from runner.sweeping.space import PARTS, Dimension, Point, Space
from shared.config import from_json, to_json
from shared.errors import ConfigError

PLACES = (3, 5, 9, 16, 27, 47, 81)
"""Where a run's held-out loss is compared with others': in 81sts of its steps, each about 1.7 times the one before. Not
earlier: a rate that is best in the end often does harm in the first steps."""
RUNGS = (3, 9, 27)
"""Those of successive halving."""
STARTUP = 16
"""Points at random before TPE has enough results to learn from."""
DEFAULT_TRIALS = 64


@dataclass(frozen=True)
class Plan:
    """What every worker must know, kept in the storage."""

    base: Train
    space: Space
    method: str
    pruner: str
    trials: int
    stall: int = 0
    stall_whole: int = 0
    keep_checkpoints: bool = False
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        base = {part: to_json(getattr(self.base, part)) for part in PARTS} | {"impl": self.base.impl}
        return {each.name: getattr(self, each.name) for each in fields(self)} | {
            "base": base,
            "space": [asdict(each) for each in self.space],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """ConfigError where that is none, as of another version."""
        try:
            kinds = {part: type(getattr(Train(), part)) for part in PARTS}
            parts = {part: from_json(kind, values["base"][part]) for part, kind in kinds.items()}
            dimensions = (each | {"choices": tuple(map(hashable, each["choices"]))} for each in values["space"])
            base = Train(impl=values["base"]["impl"], **parts)
            return cls(**values | {"base": base, "space": tuple(Dimension(**each) for each in dimensions)})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"The storage holds no search of this version of the program ({error!r}).") from None


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in optuna's words."""
    if dimension.choices:
        return CategoricalDistribution([label(choice) for choice in dimension.choices])
    if dimension.whole:
        step = 1 if dimension.log else int(dimension.step)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step or None)


def label(value: Any) -> Any:
    """A choice as optuna keeps it: what is several values at once, as text."""
    return json.dumps(value) if isinstance(value, tuple) else value


def point_of(space: Space, values: Mapping[str, Any]) -> Point:
    """Optuna's values as ours."""
    given = {each.name: {label(choice): choice for choice in each.choices} for each in space}
    return {name: given[name].get(value, value) for name, value in values.items()}


class Sampler(BaseSampler):
    """Points as functions of seed, number and the results so far, whoever asks: random ones first, then TPE's. What was
    tried already, or cannot be, is replaced by a random point."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.distributions = {each.name: distribution(each) for each in plan.space}
        self.seed = plan.base.training.seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: each for name, each in self.distributions.items() if not each.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        tpe = TPESampler(seed=self.seed + trial.number, multivariate=True, n_startup_trials=STARTUP)
        values = tpe.sample_relative(study, trial, search_space)
        taken = [point_of(self.plan.space, each.params) for each in others if each.params]
        if values:
            single = {name: each for name, each in self.distributions.items() if each.single()}
            values |= {name: self.sample_independent(study, trial, name, each) for name, each in single.items()}
            point = point_of(self.plan.space, values)
            fresh = spaces.key(point) not in {spaces.key(each) for each in taken}
            if fresh and spaces.possible(self.plan.base, point):
                return values
        chance = random.Random(f"{self.seed} {trial.number}")  # noqa: S311 - no secret
        drawn = next(spaces.drawn(self.plan.base, self.plan.space, chance, taken), None)
        drawn = drawn or next(spaces.drawn(self.plan.base, self.plan.space, chance), {})
        return {name: label(value) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Only of what has one value."""
        dimension = next(each for each in self.plan.space if each.name == param_name)
        return label(dimension.draw(random.Random(self.seed)))  # noqa: S311


def pruner(name: str) -> optuna.pruners.BasePruner:
    """One that counts in 81sts of a run."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=PLACES[0])
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=PLACES[0], reduction_factor=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(PLACES[0], PLACES[-1], reduction_factor=3)
    return optuna.pruners.NopPruner()


def queue(plan: Plan) -> list[Point]:
    """The points of all trials; TPE finds its own when their time comes."""
    chance = random.Random(plan.base.training.seed)  # noqa: S311 - no secret
    if plan.method == "grid":
        return spaces.grid(plan.base, plan.space, chance)[: plan.trials or None]
    found = list(islice(spaces.drawn(plan.base, plan.space, chance), plan.trials or DEFAULT_TRIALS))
    if not found:
        spaces.configured(plan.base, {each.name: each.draw(chance) for each in plan.space})  # says what is wrong
        raise ConfigError("No point of the space has options that go together.")
    return found if plan.method == "random" else [{} for _ in found]


def suggest(trial: Trial, name: str, each: BaseDistribution) -> Any:
    """The value of one option."""
    if isinstance(each, IntDistribution):
        return trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
    if isinstance(each, FloatDistribution):
        return trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)
    assert isinstance(each, CategoricalDistribution)  # noqa: S101 - `distribution` makes no other
    return trial.suggest_categorical(name, each.choices)
