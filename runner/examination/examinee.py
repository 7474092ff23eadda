"""An implementation under examination: what it is asked of each case, and its answers as numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from runner.examination.cases import Arrays, Case, K, V, abridged, precisions, rates_of, writings
from runner.registry import create_model
from shared.config import Dtype, Engine, RuntimeConfig
from shared.contract import Batch, LanguageModel
from shared.errors import ImplementationError

STEP, SEED = 5, 3
"""Of the dropout masks."""
SLOPE_BOUND = 1e-8
"""Average relative error of gradients beside finite differences, at most."""
SHORTER = (1e-3, 1e-5, 1e-7, 1e-9)
"""Steps of the finite differences, the next where the one before does not agree."""


class Examinee:
    """An implementation in its own process, answering one case after another."""

    def __init__(self, impl: str, device: str) -> None:
        self._impl, self._device = impl, device

    def examine(self, case: Case, dtypes: Sequence[Dtype], differences: bool) -> list[dict[str, Any]]:
        """The quantities in each engine and precision, all in the first, with what ran; or why an engine refuses.
        `differences`: also the error of the gradients against finite differences."""
        found: list[dict[str, Any]] = []
        engines: tuple[Engine, ...] = ("scratch", "fused", "native") if case.native else ("scratch",)
        for engine in engines:
            try:
                for number, dtype in enumerate(precisions(case, engine, dtypes)):
                    whole = engine == "scratch" and number == 0
                    found.append(self.measure(case if whole else abridged(case, engine, number > 0), dtype, engine))
            except ImplementationError as error:
                if engine == "scratch":
                    raise
                found.append({"engine": engine, "refused": str(error)})
        if differences:
            found[0]["differences"] = self.finite_differences(case)
        return found

    def measure(self, case: Case, dtype: Dtype, engine: Engine = "scratch") -> dict[str, Any]:
        """Every quantity by name, "<group>: <tensor>", and what ran."""
        model = self.create(case, dtype, engine)
        place = {"engine": model.engine, "kernel": model.kernel, "device": model.device, "dtype": dtype}
        quantities = {name: value for part in self.parts(case, dtype, engine) for name, value in part.items()}
        return place | {"quantities": quantities}

    def parts(self, case: Case, dtype: Dtype, engine: Engine = "scratch") -> Iterator[dict[str, np.ndarray]]:
        """The quantities part by part, each computed when it is asked for."""
        first = self.create(case, dtype, engine)
        for part in case.parts:
            if part == "training":
                for label in case.optimizers:
                    yield numbers_of(training(self.create(case, dtype, engine, label), case, label))
            else:
                yield numbers_of(PARTS[part](first, case))

    def answer(self, question: Callable[[LanguageModel, Case], Mapping[str, Any]], case: Case, *how: Any) -> Arrays:
        """What a function finds out about a case's model; `how`: dtype, engine and optimizer as in `create`."""
        return numbers_of(question(self.create(case, *how), case))

    def finite_differences(self, case: Case) -> float:
        """Average relative error of every gradient against differences of the loss, in float64."""
        return finite_difference_error(self.create(case, "float64"), case)

    def create(self, case: Case, dtype: Dtype, engine: Engine = "scratch", label: str = "") -> LanguageModel:
        """The case's model, with the optimizer of a label, or the first."""
        runtime = RuntimeConfig(engine=engine, device=self._device, dtype=dtype)
        options = case.optimizers[label] if label else next(iter(case.optimizers.values()))
        model = create_model(self._impl, case.model, options, V, runtime, SEED)
        model.load_parameters(case.parameters)
        return model


def numbers_of(measured: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Everything as float64 arrays, which hold float32 and tokens exactly."""
    return {name: np.asarray(value, np.float64) for name, value in measured.items()}


def forward(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Logits of two batches in a row, so that the state must be carried; the state."""
    state = model.load_state(case.state)
    first, carried = model.logits(case.batches.tokens[0], state)
    second, final = model.logits(case.batches.tokens[1], carried)
    after = {f"state: {name}": value for name, value in model.dump_state(final).items()}
    return {"logits": first, "logits: next batch": second, **after}


def evaluation(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Sums over three batches, and the state after them."""
    scores = model.evaluate(at(case.batches, slice(0, 3)), model.load_state(case.state))
    return {
        **{f"state: {name} after evaluation": value for name, value in model.dump_state(scores.state).items()},
        "loss: evaluation": scores[:3],
    }


def gradients(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Loss and every gradient, of the initial state too; with dropout where there is any."""
    state = model.load_state(case.state)
    # Where nothing is dropped the step says nothing, and would only be compiled for.
    loss, found, after = model.loss_and_gradients(
        at(case.batches, 0), state, STEP if any(case.model.dropout_rates) else None
    )
    return {
        "loss": loss,
        "loss: without dropout": model.loss_and_gradients(at(case.batches, 0), state)[0],
        "loss: with an empty row": model.loss_and_gradients(at(case.batches, 1), state)[0],
        **{f"gradient: {name}": value for name, value in found.parameters.items()},
        **{f"gradient: initial {name}": value for name, value in found.initial_state.items()},
        **{f"state: {name} after loss": value for name, value in model.dump_state(after).items()},
        **{f"unused rows: {name}": value[V - 2 :] for name, value in found.parameters.items() if unused(name, case)},
    }


def unused(name: str, case: Case) -> bool:
    """Whether rows of this parameter belong to tokens that were not read."""
    return name == "embedding.weight" and not case.model.tied_weights


def tokens(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Greedy and sampled tokens."""
    return {f"tokens: {name}": model.generate(*writing) for name, writing in writings(case).items()}


def traced(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Every gate and state of every layer and step."""
    trace = model.trace(at(case.batches, 0), model.load_state(case.state))
    return {f"trace: {name}": value for name, value in trace.items()}


PARTS = {"forward": forward, "evaluation": evaluation, "gradients": gradients, "tokens": tokens, "traced": traced}


def training(model: LanguageModel, case: Case, optimizer: str) -> dict[str, Any]:
    """50 steps in two stacks, with an optimizer handed over in between."""
    state = model.load_state(case.state)
    losses: list[float] = []
    norms: list[float] = []
    rates = rates_of(optimizer)
    for part in (slice(0, K // 2), slice(K // 2, K)):
        steps = model.train_steps(at(case.batches, part), state, rates[part])
        state, losses, norms = steps.state, [*losses, *steps.losses], [*norms, *steps.gradient_norms]
        model.load_optimizer(*model.dump_optimizer())
    slots, _ = model.dump_optimizer()
    return {
        f"{optimizer}: losses": losses,
        f"{optimizer}: gradient norms": norms,
        **{f"{optimizer}: {name}": value for name, value in {**model.dump_parameters(), **slots}.items()},
        **{f"{optimizer}: {name}": value for name, value in model.dump_state(state).items()},
    }


def finite_difference_error(model: LanguageModel, case: Case) -> float:
    """The mean over all entries of all gradients of |difference - gradient| / largest gradient of the tensor. Where a
    kink of relu lies between the five points, they say nothing, and points nearer to each other are taken: a wrong
    gradient agrees with none."""
    batch, state = at(case.batches, 0), model.load_state(case.state)
    _, found, _ = model.loss_and_gradients(batch, state, STEP)
    errors = []
    for name, values in case.parameters.items():
        scale = np.abs(found.parameters[name]).max()
        for place in np.ndindex(values.shape):
            error = np.inf
            for step in SHORTER:
                slope = five_points(model, case, batch, state, (name, place), step)
                error = min(error, abs(slope - found.parameters[name][place]) / scale)
                if error <= SLOPE_BOUND:
                    break
            errors.append(error)
    return float(np.mean(errors))


def five_points(model: LanguageModel, case: Case, batch: Batch, state: Any, where: Any, step: float) -> float:
    """The slope of the loss along one number, with an error of the order step^4."""
    losses = [loss_with(model, case, batch, state, where, shift * step) for shift in (-2, -1, 1, 2)]
    return (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)


def loss_with(model: LanguageModel, case: Case, batch: Batch, state: Any, where: Any, shift: float) -> float:
    """The loss with one number of one parameter moved."""
    name, place = where
    moved = case.parameters[name].copy()
    moved[place] += shift
    model.load_parameters({**case.parameters, name: moved})
    if any(case.model.dropout_rates):
        return model.loss_and_gradients(batch, state, STEP)[0]
    result = model.evaluate(Batch(*(each[None] for each in batch)), state)
    return result.nats / result.tokens


def at(batches: Batch, place: Any) -> Batch:
    """One batch, or some, out of a stack."""
    return Batch(*(each[place] for each in batches))
