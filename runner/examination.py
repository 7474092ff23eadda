"""What is examined: fixtures, quantities, and the bound that rounding explains.

The fixtures are made so that a mistake shows: every axis has another size, weights are asymmetric, biases are not zero,
rows end at different steps, some start anew, clipping bites in some steps only, and Adam's epsilon is large enough for
its place to matter.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runner.registry import create_model
from shared.config import Dtype, ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch, LanguageModel
from shared.parameters import parameter_shapes, state_shapes
from shared.random_bits import normals, uniforms
from shared.sampling import SamplingRule

Arrays = Mapping[str, np.ndarray]
CELLS = ("rnn", "lstm", "gru")
OPTIMIZERS = ("sgd", "adam")
K, B, T, V, H, E = 50, 3, 6, 11, 7, 5
PROMPT, WRITTEN = 4, 24
LAYERS = 2


class Case(NamedTuple):
    """One examination: a model, its weights, and what it is fed. Values are exact in float32."""

    model: ModelConfig
    parameters: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    batches: Batch  # [K, B, T]


def cases(cell: Any) -> list[Case]:
    """Two layers over an embedding, and one layer over one-hot tokens."""
    deep = ModelConfig(cell=cell, hidden_size=H, num_layers=LAYERS, embedding_size=E)
    return [make_case(deep), make_case(ModelConfig(cell=cell, hidden_size=H, num_layers=1, embedding_size=0))]


def make_case(model: ModelConfig) -> Case:
    """Random weights, state and batches."""
    shapes = parameter_shapes(model, V)
    # The last two tokens are never read, so their rows of the embedding must have a gradient of exactly zero.
    tokens, targets = (integers(name, limit, (K, B, T)) for name, limit in (("tokens", V - 2), ("targets", V)))
    lengths = 1 + integers("lengths", T, (K, B, 1))
    reset = integers("reset", 4, (K, B)) == 0
    reset[0] = [False, True, False]
    return Case(
        model,
        {name: numbers(name, 0.4, shape) for name, shape in shapes.items()},
        {name: numbers(name, 0.7, shape) for name, shape in state_shapes(model, B).items()},
        Batch(tokens, targets, np.arange(T) < lengths, reset),
    )


def numbers(place: str, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers, exact in float32."""
    values = scale * normals(7, f"check.{place}", int(np.prod(shape))).reshape(shape)
    return values.astype(np.float32).astype(np.float64)


def integers(place: str, limit: int, shape: tuple[int, ...]) -> np.ndarray:
    """int32 below a limit."""
    return (uniforms(7, f"check.{place}", int(np.prod(shape))).reshape(shape) * limit).astype(np.int32)


class Examinee:
    """An implementation in its own process, answering one case after another."""

    def __init__(self, impl: str, device: str) -> None:
        self._impl, self._device = impl, device
        self._place: dict[str, str] = {}

    def examine(self, case: Case, dtypes: Sequence[Dtype], differences: bool) -> dict[str, Any]:
        """`measure` in each precision; and the error of the gradients against finite differences, where asked for."""
        found: dict[str, Any] = {dtype: self.measure(case, dtype) for dtype in dtypes}
        return found | ({"differences": self.finite_differences(case)} if differences else {})

    def measure(self, case: Case, dtype: Dtype) -> dict[str, np.ndarray]:
        """Every quantity by name; "<group>: <tensor>"."""
        return {name: value for part in self.parts(case, dtype) for name, value in part.items()}

    def parts(self, case: Case, dtype: Dtype) -> Iterator[dict[str, np.ndarray]]:
        """The quantities part by part, each computed when it is asked for."""
        runtime = RuntimeConfig(device=self._device, dtype=dtype)
        first = self._create(case, runtime, OPTIMIZERS[0])
        self._place = {"engine": first.engine, "kernel": first.kernel, "device": first.device}
        for part in (forward, gradients, tokens, traced):
            yield numbers_of(part(first, case))
        for optimizer in OPTIMIZERS:
            yield numbers_of(training(self._create(case, runtime, optimizer), case, optimizer))

    def place(self) -> dict[str, str]:
        """Engine, kernel and device of the last case."""
        return self._place

    def finite_differences(self, case: Case) -> float:
        """Average relative error of every gradient against differences of the loss, in float64."""
        model = self._create(case, RuntimeConfig(device=self._device, dtype="float64"), OPTIMIZERS[0])
        return finite_difference_error(model, case)

    def _create(self, case: Case, runtime: RuntimeConfig, optimizer: Any) -> LanguageModel:
        options = OptimizerConfig(optimizer=optimizer, betas=(0.8, 0.95), epsilon=1e-2, clip_norm=0.7)
        model = create_model(self._impl, case.model, options, V, runtime)
        model.load_parameters(case.parameters)
        return model


def numbers_of(measured: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Everything as float64 arrays, which hold float32 and tokens exactly."""
    return {name: np.asarray(value, np.float64) for name, value in measured.items()}


def forward(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Logits of two batches in a row, so that the state must be carried; the state; evaluation."""
    state = model.load_state(case.state)
    first, carried = model.logits(case.batches.tokens[0], state)
    second, final = model.logits(case.batches.tokens[1], carried)
    scores = model.evaluate(at(case.batches, slice(0, 3)), state)
    return {
        "logits": first,
        "logits: next batch": second,
        **{f"state: {name}": value for name, value in model.dump_state(final).items()},
        **{f"state: {name} after evaluation": value for name, value in model.dump_state(scores.state).items()},
        "loss: evaluation": scores[:3],
    }


def gradients(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Loss and every gradient, of the initial state too."""
    state = model.load_state(case.state)
    loss, found, after = model.loss_and_gradients(at(case.batches, 0), state)
    return {
        "loss": loss,
        **{f"gradient: {name}": value for name, value in found.parameters.items()},
        **{f"gradient: initial {name}": value for name, value in found.initial_state.items()},
        **{f"state: {name} after loss": value for name, value in model.dump_state(after).items()},
        **{f"unused rows: {name}": value[V - 2 :] for name, value in found.parameters.items() if "embedding" in name},
    }


def tokens(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Greedy and sampled tokens after ragged prompts; some forced, some forbidden, rows that end."""
    prompt, lengths = case.batches.tokens[2][:, :PROMPT], np.array([2, PROMPT, 1], np.int32)
    draws = uniforms(7, "check.draws", B * WRITTEN).reshape(B, WRITTEN)
    forced = np.where(integers("forced", 8, (B, WRITTEN)) == 0, 4, -1).astype(np.int32)
    allowed = integers("allowed", 5, (WRITTEN, V)) > 0
    allowed[:, 0] = True
    rules = {
        "greedy": (SamplingRule(temperature=0.0), None, None),
        "sampled": (SamplingRule(temperature=0.8), None, None),
        "top-k and top-p": (SamplingRule(temperature=1.3, top_k=6, top_p=0.8), None, None),
        "forced and forbidden": (SamplingRule(temperature=1.1, end=3), forced, allowed),
    }
    return {f"tokens: {name}": model.generate(prompt, lengths, draws, *rule) for name, rule in rules.items()}


def traced(model: LanguageModel, case: Case) -> dict[str, Any]:
    """Every gate and state of every layer and step."""
    trace = model.trace(at(case.batches, 0), model.load_state(case.state))
    return {f"trace: {name}": value for name, value in trace.items()}


def training(model: LanguageModel, case: Case, optimizer: str) -> dict[str, Any]:
    """50 steps in two stacks, with an optimizer handed over in between."""
    rates = np.where(np.arange(K) < K // 3, 0.02, 0.01)
    state = model.load_state(case.state)
    losses: list[float] = []
    norms: list[float] = []
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


def finite_difference_error(model: LanguageModel, case: Case, step: float = 1e-3) -> float:
    """Five-point differences, whose own error is of the order step^4; the mean over all entries of all gradients of
    |difference - gradient| / largest gradient of the tensor."""
    batch, state = at(case.batches, 0), model.load_state(case.state)
    _, found, _ = model.loss_and_gradients(batch, state)
    errors = []
    for name, values in case.parameters.items():
        scale = np.abs(found.parameters[name]).max()
        for place in np.ndindex(values.shape):
            losses = [loss_with(model, case, batch, state, (name, place), shift * step) for shift in (-2, -1, 1, 2)]
            slope = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)
            errors.append(abs(slope - found.parameters[name][place]) / scale)
    return float(np.mean(errors))


def loss_with(model: LanguageModel, case: Case, batch: Batch, state: Any, where: Any, shift: float) -> float:
    """The loss with one number of one parameter moved."""
    name, place = where
    moved = case.parameters[name].copy()
    moved[place] += shift
    model.load_parameters({**case.parameters, name: moved})
    stacked = Batch(*(each[None] for each in batch))
    result = model.evaluate(stacked, state)
    return result.nats / result.tokens


def at(batches: Batch, place: Any) -> Batch:
    """One batch, or some, out of a stack."""
    return Batch(*(each[place] for each in batches))


def bound(quantity: str, dtype: Dtype) -> float:
    """The largest difference that rounding alone can explain, relative to the tensor's largest magnitude."""
    group = quantity.partition(":")[0]
    if group in ("tokens", "unused rows"):
        return 0.0
    trained = group in OPTIMIZERS
    if dtype == "float64":
        return 1e-9 if trained else 1e-10
    # float32: each of T steps through each layer adds at most I + H rounded products. Training divides small moments by
    # their roots, which turns rounding of a gradient into 2e-5 of a step, K times.
    return K * 2e-5 if trained else T * LAYERS * 2 * H * float(np.finfo(np.float32).eps)


def compare(measured: Arrays, reference: Arrays, dtype: Dtype) -> list[dict[str, Any]]:
    """A row for each quantity: the worst relative error and whether rounding explains it."""
    rows = []
    for name, expected in reference.items():
        got = measured[name]
        fits = got.shape == expected.shape
        distance = np.abs(got - expected).max(initial=0) if fits else np.inf
        error = float(distance / max(np.abs(expected).max(initial=0), np.finfo(np.float64).tiny)) if distance else 0.0
        limit = bound(name, dtype)
        rows.append({"quantity": name, "max_relative_error": error, "bound": limit, "ok": bool(error <= limit)})
    return rows
