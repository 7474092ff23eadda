"""The examination of a user's whole model: loss and gradients of one batch, beside NumPy's; and what they would be with
the mistakes that people make around a cell."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from runner.diagnosis.hypotheses import CLOSE
from runner.diagnosis.mistakes import KNOWN, ORDERS
from runner.examination.cases import Design, E, H, V, make_case
from runner.examination.examinee import SEED, at
from runner.module.cells import differences
from runner.registry import create_model
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch

Array = np.ndarray
Arrays = dict[str, Array]


class Problem(NamedTuple):
    """What a model is fed: random parameters, a state that is not zero, rows that end at different steps."""

    model: ModelConfig
    parameters: Arrays
    state: Arrays
    batch: Batch  # [B, T]; no row starts anew


def make_problem(options: Mapping[str, Any]) -> Problem:
    """A problem for a model with the options; sizes that are not given are those of `check`."""
    tied = options.get("tied_weights", False)
    model = ModelConfig(**{"hidden_size": H, "embedding_size": options.get("hidden_size", H) if tied else E, **options})
    case = make_case("module", Design(model, ()))
    batch = at(case.batches, 0)
    return Problem(model, case.parameters, case.state, batch._replace(reset=np.zeros_like(batch.reset)))


def reference(problem: Problem) -> Arrays:
    """Loss [1] and gradients by NumPy in float64; without dropout."""
    model, state = loaded(problem)
    loss, found, _ = model.loss_and_gradients(problem.batch, state)
    return quantities(loss, found.parameters)


def quantities(loss: float, gradients: Arrays) -> Arrays:
    """By name, as they are compared."""
    return {"loss: loss": np.array([loss]), **{f"gradients: {name}": value for name, value in gradients.items()}}


def loaded(problem: Problem) -> tuple[Any, Any]:
    """The NumPy model with the problem's parameters, and its state."""
    runtime = RuntimeConfig(device="cpu", dtype="float64")
    model = create_model("numpy", problem.model, OptimizerConfig(), V, runtime, SEED)
    model.load_parameters(problem.parameters)
    return model, model.load_state(problem.state)


def model_differences(problem: Problem) -> Arrays:
    """The gradients of the reference by finite differences."""
    model, state = loaded(problem)
    batches = Batch(*(each[None] for each in problem.batch))

    def objective(parameters: Arrays) -> float:
        model.load_parameters(parameters)
        found = model.evaluate(batches, state)
        return found.nats / found.tokens

    return {f"gradients: {name}": slopes for name, slopes in differences(objective, problem.parameters).items()}


def mistaken(problem: Problem) -> Iterator[tuple[str, Arrays]]:
    """Mistakes in words that follow "what comes out when ", and what they give."""
    yield "the mask is not looked at", reference(with_mask(problem, np.ones_like(problem.batch.mask)))
    zero = {name: np.zeros_like(each) for name, each in problem.state.items()}
    yield "the given state is not used", reference(problem._replace(state=zero))
    yield from scaled(problem)
    if not problem.model.many_to_one:
        yield "nothing is carried back through time", truncated(problem)
    if problem.model.embedding_activation != "none":
        plain = replace(problem.model, embedding_activation="none")
        yield "the activation behind the embedding is left out", reference(problem._replace(model=plain))
    yield "the biases of the layers are left out", changed(problem, "rnn.bias", lambda each: 0 * each)
    yield "weight_hh is transposed", changed(problem, "rnn.weight_hh", lambda each: transposed(each))
    cell = (
        f"gru{'-before' * (problem.model.gru_reset == 'before')}" if problem.model.cell == "gru" else problem.model.cell
    )
    usual = ORDERS.get(cell, "")
    for order in map("".join, permutations(usual)):
        if order != usual:
            whose = f": {KNOWN[cell][order]} order" if order in KNOWN[cell] else ""
            words = f"the row blocks are taken as {' '.join(order)}, not {' '.join(usual)}{whose}"
            yield words, reordered(problem, usual, order)


def repeated(problem: Problem, found: Arrays, expected: Arrays) -> dict[str, list[str]]:
    """What is wrong with a table's gradient that is right for tokens read once; empty where that is not so."""
    name = "gradients: embedding.weight" if problem.model.embedding_size else "gradients: rnn.weight_ih_l0"
    yours, ours = (each[name] if problem.model.embedding_size else each[name].T for each in (found, expected))
    wrong = np.abs(yours - ours).max(1) > CLOSE * np.abs(ours).max()
    if not wrong.any() or (np.bincount(problem.batch.tokens.ravel(), minlength=len(ours))[wrong] < 2).any():
        return {}
    why = "right for tokens that are read once, wrong for those that repeat"
    return {f"{why}: table[tokens] += d keeps one of them, np.add.at adds all": [name]}


def with_mask(problem: Problem, mask: Array) -> Problem:
    """The problem with another mask."""
    return problem._replace(batch=problem.batch._replace(mask=mask))


def scaled(problem: Problem) -> Iterator[tuple[str, Arrays]]:
    """Wrong means: the loss and all gradients times the same number."""
    mask, right = problem.batch.mask, reference(problem)
    count = int(mask.any(1).sum() if problem.model.many_to_one else mask.sum())
    rows, steps = mask.shape
    wrong = {
        "the nats are summed, not averaged": count,
        "the sum is divided by the rows, not by the unmasked tokens": count / rows,
        "the sum is divided by the steps, not by the unmasked tokens": count / steps,
        "the sum is divided by all tokens, padding too": count / (rows * steps),
        "the loss is in bits (logarithm to the base 2), not in nats": 1 / np.log(2),
    }
    for words, factor in wrong.items():
        yield words, {name: factor * value for name, value in right.items()}


def truncated(problem: Problem) -> Arrays:
    """Every step's gradients alone, its state a constant."""
    model, state = loaded(problem)
    mask = problem.batch.mask
    loss, sums = 0.0, {name: np.zeros_like(value) for name, value in problem.parameters.items()}
    for t in range(mask.shape[1]):
        step = problem.batch._replace(
            **{name: getattr(problem.batch, name)[:, t : t + 1] for name in ("tokens", "targets", "mask")}
        )
        if step.mask.any():
            share = step.mask.sum() / mask.sum()
            part, found, _ = model.loss_and_gradients(step, state)
            loss += share * part
            sums = {name: value + share * found.parameters[name] for name, value in sums.items()}
        state = model.logits(step.tokens, state)[1]
    return quantities(loss, sums)


def changed(problem: Problem, prefix: str, change: Any) -> Arrays:
    """With parameters replaced by a linear function that is its own transpose; their gradients likewise."""
    inside = {name: change(value) if name.startswith(prefix) else value for name, value in problem.parameters.items()}
    found = reference(problem._replace(parameters=inside))
    return {name: change(value) if name.startswith(f"gradients: {prefix}") else value for name, value in found.items()}


def transposed(weight: Array) -> Array:
    """Each gate's square transposed."""
    size = weight.shape[1]
    return weight.reshape(-1, size, size).swapaxes(1, 2).reshape(weight.shape)


def reordered(problem: Problem, usual: str, order: str) -> Arrays:
    """With the row blocks read in another order."""
    fields = ("rnn.weight_ih", "rnn.weight_hh", "rnn.bias_l")

    def take(arrays: Arrays, wanted: str, given: str) -> Arrays:
        return {
            name: np.concatenate([np.split(value, len(given))[given.index(gate)] for gate in wanted])
            if name.removeprefix("gradients: ").startswith(fields)
            else value
            for name, value in arrays.items()
        }

    return take(reference(problem._replace(parameters=take(problem.parameters, usual, order))), order, usual)
