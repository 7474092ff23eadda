"""What is examined: fixtures, quantities, and the bound that rounding explains.

The fixtures are made so that a mistake shows: every axis has another size, weights are asymmetric, biases are not zero,
rows end at different steps, one is empty, some start anew, clipping bites in some steps only, the learning rate
changes, and epsilon is large enough for its place to matter. `CASES` cover every option of the models, every optimizer,
and every formula that a dialect writes differently.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from runner.near_ties import Difference, Writing, differences
from runner.registry import create_model
from shared.config import Dtype, Engine, ModelConfig, OptimizerConfig, RuntimeConfig, layer_limit
from shared.contract import Batch, LanguageModel
from shared.errors import ConfigError, ImplementationError
from shared.parameters import parameter_shapes, state_shapes
from shared.random_bits import normals, permutation, uniforms
from shared.sampling import SamplingRule

Arrays = Mapping[str, np.ndarray]
K, B, T, V, H, E = 50, 3, 6, 11, 7, 5
PROMPT, WRITTEN = 4, 24
STEP, SEED = 5, 3
"""Of the dropout masks."""
RATES = np.where(np.arange(K) < K // 3, 0.02, 0.01)
"""Learning rates of the training."""
CALMER = {"rmsprop, centered, momentum": 0.2}
"""Of these rates: where momentum comes on top of a division by a spread near zero, rounding grows a millionfold within
50 steps of some rnn, in float64 as in float32."""
SLOPE_BOUND = 1e-8
"""Average relative error of gradients beside finite differences, at most."""
SHORTER = (1e-3, 1e-5, 1e-7, 1e-9)
"""Steps of the finite differences, the next where the one before does not agree."""
OPTIMIZERS = {
    "sgd": OptimizerConfig(optimizer="sgd"),
    "sgd, clipped by value": OptimizerConfig(optimizer="sgd", clip_norm=0.0, clip_value=0.02),
    "momentum": OptimizerConfig(optimizer="momentum", clip_layers=("l0=0.3", "decoder=0.2"), clip_norm=0.0),
    "momentum, keras": OptimizerConfig(optimizer="momentum", dialect="keras"),
    "nesterov": OptimizerConfig(optimizer="nesterov"),
    "nesterov, keras": OptimizerConfig(
        optimizer="nesterov", dialect="keras", clip_norm=0.25, clip_value=0.05, clip_layers=("l0=0.2",)
    ),
    "adagrad": OptimizerConfig(optimizer="adagrad", initial_accumulator=0.1),
    "adagrad, keras": OptimizerConfig(optimizer="adagrad", dialect="keras"),
    "rmsprop": OptimizerConfig(optimizer="rmsprop"),
    "rmsprop, centered, momentum": OptimizerConfig(optimizer="rmsprop", centered=True, rmsprop_momentum=0.7),
    "rmsprop, keras, centered": OptimizerConfig(optimizer="rmsprop", dialect="keras", centered=True),
    "rmsprop, optax, momentum": OptimizerConfig(optimizer="rmsprop", dialect="optax", rmsprop_momentum=0.7),
    "adam": OptimizerConfig(optimizer="adam"),
    "adam, keras": OptimizerConfig(optimizer="adam", dialect="keras"),
    "adamw": OptimizerConfig(optimizer="adamw", weight_decay=0.3),
    "adamw, keras": OptimizerConfig(optimizer="adamw", dialect="keras", weight_decay=0.3),
}
"""Every optimizer; in another dialect where its formula differs from PyTorch's."""
WHOLE = ("forward", "evaluation", "gradients", "training", "tokens", "traced")
BRIEF = ("forward", "evaluation", "gradients", "training")
SPOKEN = (*BRIEF, "tokens")
TRAINED = ("forward", "training")
"""Parts of an examination. JAX and TensorFlow compile each of them, so only the plainest cases repeat them all."""


class Design(NamedTuple):
    """A case before its numbers."""

    model: ModelConfig
    optimizers: tuple[str, ...]
    parts: tuple[str, ...] = BRIEF
    native: tuple[str, ...] = ()
    """The parts that are repeated with the framework's own layer; none where no framework has one."""
    again: tuple[str, ...] = TRAINED
    """The parts that are repeated in other precisions."""


def small(cell: Any, layers: int = 2, **options: Any) -> ModelConfig:
    """A model of the examination's sizes."""
    return ModelConfig(**{"cell": cell, "hidden_size": H, "num_layers": layers, "embedding_size": E, **options})


CASES = {
    "rnn": Design(small("rnn"), ("sgd", "adam"), WHOLE, BRIEF),
    "rnn one-hot": Design(small("rnn", 1, embedding_size=0), ("momentum", "rmsprop", "adagrad, keras")),
    "rnn relu, activation": Design(
        small("rnn", 1, nonlinearity="relu", embedding_activation="tanh"),
        ("rmsprop, centered, momentum",),
        native=BRIEF,
    ),
    "lstm": Design(small("lstm"), ("adam", "sgd, clipped by value"), WHOLE, BRIEF, SPOKEN),
    "lstm one-hot, residual": Design(
        small("lstm", embedding_size=0, residual=True), ("nesterov", "adam, keras"), native=BRIEF
    ),
    "lstm dropout, tied": Design(
        small("lstm", 3, dropout=0.4, output_dropout=0.2, tied_weights=True, embedding_size=H), ("adamw",)
    ),
    "lstm many-to-one": Design(
        small("lstm", 1, many_to_one=True, embedding_activation="relu"), ("rmsprop, keras, centered",)
    ),
    "gru": Design(small("gru"), ("momentum, keras",), WHOLE, BRIEF),
    "gru residual, dropout": Design(
        small("gru", 3, residual=True, dropout=0.3), ("adagrad", "rmsprop, optax, momentum")
    ),
    "gru reset before": Design(small("gru", 1, gru_reset="before"), ("nesterov, keras",), native=BRIEF),
    "wrnn": Design(small("wrnn"), ("adamw, keras",), WHOLE),
    "wrnn one-hot, many-to-one": Design(small("wrnn", 1, embedding_size=0, many_to_one=True), ("sgd",)),
    "wrnn residual, sigmoid": Design(small("wrnn", residual=True, embedding_activation="sigmoid"), ("rmsprop",)),
}
CELLS = ("rnn", "lstm", "gru", "wrnn")
"""Names of the cells; the case of a cell's name is its plainest."""
VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn"},
    "rnn relu": {"cell": "rnn", "nonlinearity": "relu"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "gru reset before": {"cell": "gru", "gru_reset": "before"},
    "wrnn": {"cell": "wrnn"},
}
INPUTS: dict[str, dict[str, Any]] = {
    "one-hot": {"embedding_size": 0},
    "embedding": {},
    **{f"embedding {name}": {"embedding_activation": name} for name in ("tanh", "relu", "sigmoid")},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "residual": {"residual": True},
    "dropout": {"dropout": 0.3, "output_dropout": 0.2},
    "tied": {"tied_weights": True},
    "many-to-one": {"many_to_one": True},
}


class Case(NamedTuple):
    """One examination: a model, its weights, and what it is fed. Values are exact in float32."""

    name: str
    model: ModelConfig
    optimizers: dict[str, OptimizerConfig]
    parts: tuple[str, ...]
    native: tuple[str, ...]
    again: tuple[str, ...]
    parameters: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    batches: Batch  # [K, B, T]


def designs(cell: str, full: bool) -> dict[str, Design]:
    """What is examined of a cell, or of "all": the covering selection and, with `full`, the whole grid."""
    selection = {name: CASES[name] for each in CELLS for name in CASES if CASES[name].model.cell == each}
    found = selection | (whole_grid() if full else {})
    return {name: design for name, design in found.items() if cell in ("all", design.model.cell)}


def whole_grid() -> dict[str, Design]:
    """Every combination of cell, depth, input and switches that `ModelConfig` allows, each with one optimizer, in an
    order that is random and always the same: any part of it is a fair sample."""
    found: dict[str, ModelConfig] = {}
    for cell, layers, given, on in product(VARIANTS, (1, 2, 3), INPUTS, product((False, True), repeat=len(SWITCHES))):
        switches = [name for name, chosen in zip(SWITCHES, on, strict=True) if chosen]
        options = {key: value for name in switches for key, value in SWITCHES[name].items()}
        size = {"embedding_size": H if "tied" in switches else E}
        if layers == 1:  # nothing lies between layers
            options.pop("dropout", None)
        try:
            model = small(layers=layers, **VARIANTS[cell], **{**size, **INPUTS[given]}, **options)
        except ConfigError:  # tied weights without an embedding
            continue
        found[", ".join((cell, counted(layers), given, *switches))] = model
    names, labels = list(found), list(OPTIMIZERS)
    shuffled = [names[place] for place in permutation(7, "check.grid", len(names))]
    return {
        name: Design(
            found[name], (labels[place % len(labels)],), BRIEF, () if found[name].cell == "wrnn" else BRIEF, BRIEF
        )
        for place, name in enumerate(shuffled)
    }


def counted(layers: int) -> str:
    """As words: "1 layer", "2 layers"."""
    return f"{layers} layer" if layers == 1 else f"{layers} layers"


def small_copy(model: ModelConfig, optimizer: OptimizerConfig, engine: Engine) -> Case:
    """A case with a user's options, in the examination's sizes."""
    embedding_size = (H if model.tied_weights else E) if model.embedding_size else 0
    layers = min(model.num_layers, 3)
    copied = replace(model, hidden_size=H, num_layers=layers, embedding_size=embedding_size)
    case = make_case(model.cell, Design(copied, (), WHOLE, BRIEF if engine != "scratch" else ()))
    present = ("embedding", "decoder", *(f"l{k}" for k in range(layers)))
    limits = tuple(each for each in optimizer.clip_layers if layer_limit(each)[0] in present)
    strong = replace(strengthened(optimizer), clip_layers=limits)
    return case._replace(optimizers={optimizer.optimizer: strong})


def make_case(name: str, design: Design) -> Case:
    """Random weights, state and batches."""
    model = design.model
    # The last two tokens are never read, so their rows of the embedding must have a gradient of exactly zero.
    tokens, targets = (integers(place, limit, (K, B, T)) for place, limit in (("tokens", V - 2), ("targets", V)))
    lengths = 1 + integers("lengths", T, (K, B, 1))
    # Two batches with as many tokens, one with an empty row: whoever compiles for a number of tokens does so once.
    lengths[:2, :, 0] = [[5, 2, 3], [4, 6, 0]]
    reset = integers("reset", 4, (K, B)) == 0
    reset[0] = [False, True, False]
    optimizers = {label: strengthened(OPTIMIZERS[label]) for label in design.optimizers}
    return Case(
        name,
        model,
        optimizers,
        design.parts,
        design.native,
        design.again,
        {name: numbers(name, 0.4, shape) for name, shape in parameter_shapes(model, V).items()},
        {name: numbers(name, 0.7, shape) for name, shape in state_shapes(model, B).items()},
        Batch(tokens, targets[:, :, 0] if model.many_to_one else targets, np.arange(T) < lengths, reset),
    )


def abridged(case: Case, engine: Engine = "scratch", again: bool = True) -> Case:
    """What engine and precision decide, with the first optimizer only; `again`: in a precision after the first."""
    label, optimizer = next(iter(case.optimizers.items()))
    asked = ("training",) if again else ("forward", "gradients", "training")  # what they have of their own
    parts = case.again if engine == "scratch" else tuple(part for part in case.native if part in asked)
    return case._replace(parts=parts, optimizers={label: optimizer})


def precisions(case: Case, engine: Engine, dtypes: Sequence[Dtype]) -> Sequence[Dtype]:
    """Those a case is examined in. How other engines round, each cell's plainest case says for the covering selection:
    its further cases ask which options an engine knows."""
    return dtypes[:1] if engine != "scratch" and case.name in CASES and case.name not in CELLS else dtypes


def strengthened(optimizer: OptimizerConfig) -> OptimizerConfig:
    """With numbers that make a mistake visible within 50 steps."""
    clip_norm = min(optimizer.clip_norm, 0.7)
    return replace(optimizer, betas=(0.8, 0.95), alpha=0.9, momentum=0.8, epsilon=1e-2, clip_norm=clip_norm)


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


def writings(case: Case) -> dict[str, Writing]:
    """What is written after ragged prompts; some tokens forced, some forbidden, rows that end."""
    prompt, lengths = case.batches.tokens[2][:, :PROMPT], np.array([2, PROMPT, 1], np.int32)
    draws = uniforms(7, "check.draws", B * WRITTEN).reshape(B, WRITTEN)
    forced = np.where(integers("forced", 8, (B, WRITTEN)) == 0, 4, -1).astype(np.int32)
    allowed = integers("allowed", 5, (WRITTEN, V)) > 0
    allowed[:, 0] = True
    return {
        "greedy": Writing(prompt, lengths, draws, SamplingRule(temperature=0.0)),
        "sampled": Writing(prompt, lengths, draws, SamplingRule(temperature=0.8)),
        "top-k and top-p": Writing(prompt, lengths, draws, SamplingRule(temperature=1.3, top_k=6, top_p=0.8)),
        "forced and forbidden": Writing(prompt, lengths, draws, SamplingRule(1.1, end=3), forced, allowed),
    }


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


def rates_of(optimizer: str) -> np.ndarray:
    """The learning rates [K] of an optimizer's training."""
    return RATES * CALMER.get(optimizer, 1.0)


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


def bound(quantity: str, dtype: Dtype) -> float:
    """The largest difference that rounding alone can explain, relative to the tensor's largest magnitude."""
    group = quantity.partition(":")[0]
    if group in ("tokens", "unused rows"):
        return 0.0
    trained = group in OPTIMIZERS
    layers = 3
    if dtype == "float64":
        return 1e-9 if trained else 1e-10
    # float32: each of T steps through each of three layers adds at most I + H rounded products. Training divides small
    # moments by their roots, which turns rounding of a gradient into 2e-5 of a step, K times.
    return K * 2e-5 if trained else T * layers * 2 * H * float(np.finfo(np.float32).eps)


def compare(measured: Arrays, reference: Arrays, dtype: Dtype, case: Case | None = None) -> list[dict[str, Any]]:
    """A row for each quantity: the worst relative error and whether rounding explains it. With the case given, tokens
    in other precisions than float64 may differ in near-ties, which the row then lists."""
    rows = []
    for name, expected in reference.items():
        got = measured[name]
        fits = got.shape == expected.shape
        distance = np.abs(got - expected).max(initial=0) if fits else np.inf
        error = float(distance / max(np.abs(expected).max(initial=0), np.finfo(np.float64).tiny)) if distance else 0.0
        limit = bound(name, dtype)
        row = {"quantity": name, "max_relative_error": error, "bound": limit, "ok": bool(error <= limit)}
        if case and dtype != "float64" and name.startswith("tokens: ") and fits:
            row |= judged_tokens(case, name.removeprefix("tokens: "), expected, got, dtype)
        rows.append(row)
    return rows


def judged_tokens(case: Case, name: str, expected: np.ndarray, got: np.ndarray, dtype: Dtype) -> dict[str, Any]:
    """The first differences: near-ties and others. Where there are no others, the row is in order."""
    found: list[Difference] = []
    if not np.array_equal(expected, got):
        model = Examinee("numpy", "cpu").create(case, "float64")
        found = differences(model, case.model, writings(case)[name], expected.astype(int), got.astype(int), dtype)
    ties, others = ([each._asdict() for each in found if each.near_tie == tie] for tie in (True, False))
    return {"near_ties": ties, "unexplained": others} | ({} if others else {"max_relative_error": 0.0, "ok": True})
