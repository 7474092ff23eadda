"""Where two computations first differ: the earliest tensor, step and number, in the order of computation."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from runner.diagnosis.causes import GATES
from runner.diagnosis.mistaken_layers import cell_name
from runner.diagnosis.mistakes import ORDERS
from runner.examination.bounds import bound
from runner.examination.cases import OPTIMIZERS, Arrays, Case, K, rates_of
from runner.examination.examinee import at, traced
from runner.workers import WorkerError
from shared.config import Dtype
from shared.contract import LanguageModel
from shared.optimizers import layer_of

FIELDS = (
    *("input_gate", "forget_gate", "reset_gate", "update_gate", "recurrent", "candidate", "output_gate"),
    *("cell", "first", "hidden"),
)
"""Gates and states in the order in which a step computes them."""
AXES = {
    "trace": ("row", "step", "unit"),
    "logits": ("row", "step", "token"),
    "state": ("row", "unit"),
    "tokens": ("row", "written token"),
}
SUMS = ("nats", "predictions", "hits")
"""What an evaluation counts."""


class Place(NamedTuple):
    """Where two arrays first differ."""

    quantity: str
    indices: tuple[int, ...]
    words: str
    value: float
    reference: float
    relative: float
    """The difference, in terms of the tensor's largest magnitude."""
    ulps: float
    """The same in units in the last place of the reference's number, in the examined precision."""


def locate(
    stage: str, case: Case, who: Mapping[str, Any], found: Arrays, expected: Arrays, examinee: Any, reference: Any
) -> Place | None:
    """The first place of a stage that differs; gates and single updates are asked for where they tell more."""
    dtype, engine = who["dtype"], who["engine"]
    question: Any = None
    if stage == "forward" and engine == "scratch":
        question, label = traced, ""
    elif stage in case.optimizers:
        question, label = partial(by_steps, label=stage), stage
    if question:
        try:
            got = examinee.call("answer", question, case, dtype, engine, label)
            right = reference.call("answer", question, case, "float64", "scratch", label)
        except WorkerError:
            pass  # what was measured already has to do
        else:
            if place := first_place(case, dtype, got, right):
                return place
    return first_place(case, dtype, found, expected)


def by_steps(model: LanguageModel, case: Case, label: str) -> dict[str, Any]:
    """Everything after each update, [K, ...]; each update is a call of its own."""
    state, records = model.load_state(case.state), []
    for k in range(K):
        steps = model.train_steps(at(case.batches, slice(k, k + 1)), state, rates_of(label)[k : k + 1])
        state = steps.state
        slots, count = model.dump_optimizer()
        if k + 1 == K // 2:
            model.load_optimizer(slots, count)
        scores = {"losses": steps.losses[0], "gradient norms": steps.gradient_norms[0]}
        records.append({**scores, **slots, **model.dump_parameters(), **model.dump_state(state)})
    return {f"{label}: {name}": np.stack([record[name] for record in records]) for name in records[0]}


def first_place(case: Case, dtype: Dtype, found: Arrays, expected: Arrays) -> Place | None:
    """The first step that differs, in it the first tensor in the order of computation, in that the worst number."""
    places = []
    for name, right in expected.items():
        got = found[name]
        if got.shape != right.shape:
            words = f"shape {list(got.shape)}, expected {list(right.shape)}"
            return Place(name, (), words, np.nan, np.nan, np.inf, np.inf)
        distance = np.nan_to_num(np.abs(got - right), nan=np.inf)
        wrong = distance > bound(name, dtype) * np.abs(right).max(initial=0)
        if not wrong.any():
            continue
        step, axis = 0, time_axis(name, right)
        if axis is not None:
            step = int(np.moveaxis(wrong, axis, 0).reshape(wrong.shape[axis], -1).any(1).argmax())
            steps = np.arange(wrong.shape[axis]).reshape([-1 if a == axis else 1 for a in range(wrong.ndim)])
            distance = np.where(steps == step, distance, -1)
        index = tuple(int(i) for i in np.unravel_index(distance.argmax(), distance.shape))
        places.append(((step, *rank(name)), name, index))
    if not places:
        return None
    _, name, index = min(places)
    return numbers_at(case, dtype, name, index, found[name], expected[name])


def numbers_at(
    case: Case, dtype: Dtype, name: str, index: tuple[int, ...], got: np.ndarray, right: np.ndarray
) -> Place:
    """Both numbers at a place, and their distance."""
    value, reference = float(got[index]), float(right[index])
    with np.errstate(all="ignore"):
        distance = np.abs(got[index] - right[index])
        relative = float(distance / np.abs(right).max())
        ulps = float(distance / np.spacing(np.abs(right[index]).astype(dtype)))
    return Place(name, index, words_of(case, name, index), value, reference, relative, ulps)


def time_axis(quantity: str, array: np.ndarray) -> int | None:
    """The axis along which a quantity was computed."""
    group = quantity.partition(":")[0]
    if group in OPTIMIZERS:
        return 0 if array.ndim and len(array) == K else None
    return 1 if group in ("trace", "tokens") or (group == "logits" and array.ndim == 3) else None


def rank(quantity: str) -> tuple[int, int, int]:
    """What is computed earlier comes first: layers upwards, gradients downwards; of an update the loss, the norm, the
    slots, the parameters, the state."""
    group, _, name = quantity.partition(": ")
    if group == "trace" and "_l" in name:
        field, _, layer = name.rpartition("_l")
        return 0, int(layer), FIELDS.index(field)
    if group == "gradient":
        layer = "initial" if name.startswith("initial") else layer_of(name)
        depth = {"decoder": -1000, "embedding": 1, "initial": 2}.get(layer) or -int(layer[1:])
        return 1, depth, int("bias" not in name)
    scores, parts = ("losses", "gradient norms"), ("embedding", "rnn", "decoder")
    if name in scores:
        return 2, scores.index(name), 0
    first, dot, _ = name.partition(".")
    return 3, 0 if dot and first not in parts else 1 if dot else 2, 0


def words_of(case: Case, quantity: str, index: tuple[int, ...]) -> str:
    """A place in words; everything is counted from 0."""
    group, _, name = quantity.partition(": ")
    cell, field = cell_name(case.model), name.rpartition(".")[2].rpartition("_l")[0]
    if group in OPTIMIZERS:
        return f"after update {index[0]}, place {list(index[1:])}" if index[1:] else f"update {index[0]}"
    if quantity == "loss: evaluation":
        return SUMS[index[0]]
    if group in AXES:
        axes = AXES[group]
        axes = axes if len(index) == len(axes) else (axes[0], axes[-1])
        return ", ".join(f"{axis} {place}" for axis, place in zip(axes, index, strict=True))
    gated = group == "gradient" and field in ("weight_ih", "weight_hh", "bias") and cell in ORDERS
    gate = f", a row of the {GATES[ORDERS[cell][index[0] // case.model.hidden_size]]}" if gated else ""
    return f"place {list(index)}{gate}" if index else "a single number"
