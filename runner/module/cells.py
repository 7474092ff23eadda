"""The examination of a cell: what it is fed, and what is asked of the user's cell, of the reference, and of the cells
with a mistake, all alike: forward T steps, one step back, and back through time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from runner.diagnosis.mistaken_cells import Step
from runner.examination.cases import B, E, H, T, numbers
from runner.module.subject import CELLS
from runner.registry import import_quietly
from shared.config import ModelConfig
from shared.parameters import STATES, cell_shapes

Array = np.ndarray
Arrays = dict[str, Array]
ENTRIES = 200
"""Of a tensor, tried by finite differences at most."""


class Cell(Protocol):
    """One time step: x [B, I], state fields [B, H], canonical weights."""

    def forward(self, x: Array, state: Arrays, weights: Arrays) -> Arrays:
        """The state after."""

    def backward(self, d_state: Arrays, x: Array, state: Arrays, weights: Arrays) -> tuple[Array, Arrays, Arrays]:
        """Gradients at the state after -> at x, at the state before, of the weights."""


class Fixture(NamedTuple):
    """What a cell is fed: random, asymmetric, another size on every axis, no bias zero."""

    cell: str
    xs: Array  # [T, B, I]
    state: Arrays  # before the first step
    weights: Arrays
    d_outputs: Array  # [T, B, H], arrives at hidden of every step
    d_state: Arrays  # arrives at the state after one step
    befores: list[Arrays]  # the reference's state before each step

    def part(self, name: str, cell: Cell) -> Arrays:
        """The quantities of a part of the examination, "<part>: <tensor>"."""
        return {f"{name}: {tensor}": value for tensor, value in PARTS[name](self, cell).items()}


class ReferenceCell:
    """The cell of the NumPy implementation, whose gradients are proven by finite differences."""

    def __init__(self, cell: str) -> None:
        self._numpy = import_quietly("impl_numpy.unroll")
        self._cell = self._numpy.cell_of(ModelConfig(**CELLS[cell]))

    def forward(self, x: Array, state: Arrays, weights: Arrays) -> Arrays:
        before, given = self._cell.state(**state), self._cell.weights(**weights)
        found: Arrays = self._numpy.unroll(self._cell, x[None], before, given, False)[1]._asdict()
        return found

    def backward(self, d_state: Arrays, x: Array, state: Arrays, weights: Arrays) -> tuple[Array, Arrays, Arrays]:
        cell, numpy = self._cell, self._numpy
        before, given = cell.state(**state), cell.weights(**weights)
        _, after, record = numpy.unroll(cell, x[None], before, given, True)
        d_after, gates = cell.state(**d_state), numpy.at(record.gates, 0)
        d_projected, d_recurrent, d_before = cell.step_backward(d_after, after, gates, before, given)
        d_x, d_weight_ih = numpy.multiply_backward(d_projected[None], x[None], weights["weight_ih"])
        befores = cell.state(*(field[None] for field in before))
        d_weights = cell.weights_backward(d_projected[None], d_recurrent[None], befores, record.states, record.gates)
        found = {"weight_ih": d_weight_ih, "bias": d_projected.sum(0), **d_weights}
        return d_x[0], d_before._asdict(), {name: found[name] for name in weights}


class MistakenCell:
    """A cell in which mistakes are made."""

    def __init__(self, cell: str, made: tuple[str, ...]) -> None:
        self._cell, self._made = cell, made

    def forward(self, x: Array, state: Arrays, weights: Arrays) -> Arrays:
        return {name: node.data for name, node in Step(self._cell, self._made, x, state, weights).after.items()}

    def backward(self, d_state: Arrays, x: Array, state: Arrays, weights: Arrays) -> tuple[Array, Arrays, Arrays]:
        return Step(self._cell, self._made, x, state, weights).backward(d_state)


def make_fixture(cell: str) -> Fixture:
    """Random numbers in the sizes of `check`."""
    model = ModelConfig(**{**CELLS[cell], "hidden_size": H})

    def state(what: str) -> Arrays:
        return {name: numbers(f"module.{what}.{name}", 0.7, (B, H)) for name in STATES[model.cell]}

    shapes = cell_shapes(model, E, tokens=False)
    weights = {name: numbers(f"module.{name}", 0.4, shape) for name, shape in shapes.items()}
    xs, d_outputs = numbers("module.x", 1.0, (T, B, E)), numbers("module.d_outputs", 1.0, (T, B, H))
    befores, reference = [state("before")], ReferenceCell(cell)
    for x in xs[:-1]:
        befores.append(reference.forward(x, befores[-1], weights))
    return Fixture(cell, xs, befores[0], weights, d_outputs, state("d_state"), befores)


def forward(fixture: Fixture, cell: Cell) -> Arrays:
    """The states after each step, [T, B, H], the cell's own carried on."""
    states = [fixture.state]
    for x in fixture.xs:
        states.append(cell.forward(x, states[-1], fixture.weights))
    return {name: np.stack([state[name] for state in states[1:]]) for name in fixture.state}


def one_step(fixture: Fixture, cell: Cell) -> Arrays:
    """Gradients of one step, at whose state gradients arrive in every field."""
    d_x, d_before, d_weights = cell.backward(fixture.d_state, fixture.xs[0], fixture.state, fixture.weights)
    return {"x": d_x, **{f"{name} before": each for name, each in d_before.items()}, **d_weights}


def through_time(fixture: Fixture, cell: Cell) -> Arrays:
    """Gradients of sum(d_outputs * hidden): of x [T, B, I], of the state before the first step, of the weights. The
    states are the reference's, so that the way back is judged alone."""
    d_state = {name: np.zeros_like(each) for name, each in fixture.state.items()}
    d_weights = {name: np.zeros_like(each) for name, each in fixture.weights.items()}
    d_xs = []
    for x, before, d_output in zip(fixture.xs[::-1], fixture.befores[::-1], fixture.d_outputs[::-1], strict=True):
        d_after = {**d_state, "hidden": d_state["hidden"] + d_output}
        d_x, d_state, d_step = cell.backward(d_after, x, before, fixture.weights)
        d_weights = {name: each + d_step[name] for name, each in d_weights.items()}
        d_xs.append(d_x)
    return {"x": np.stack(d_xs[::-1]), **{f"{name} before": each for name, each in d_state.items()}, **d_weights}


PARTS: dict[str, Callable[[Fixture, Cell], Arrays]] = {
    "forward": forward,
    "one step back": one_step,
    "back through time": through_time,
}


def cell_differences(fixture: Fixture) -> Arrays:
    """Gradients through time of the reference by finite differences."""
    reference = ReferenceCell(fixture.cell)
    names = [f"{name} before" for name in fixture.state]

    def objective(arrays: Arrays) -> float:
        state = {name: arrays[f"{name} before"] for name in fixture.state}
        weights = {name: arrays[name] for name in fixture.weights}
        hidden = forward(fixture._replace(xs=arrays["x"], state=state, weights=weights), reference)["hidden"]
        return float((fixture.d_outputs * hidden).sum())

    given = {"x": fixture.xs, **dict(zip(names, fixture.state.values(), strict=True)), **fixture.weights}
    return {f"back through time: {name}": slopes for name, slopes in differences(objective, given).items()}


def differences(objective: Callable[[Arrays], float], arrays: Mapping[str, Array], step: float = 1e-3) -> Arrays:
    """Five-point differences, whose own error is of the order step^4, at no more than ENTRIES entries of each array;
    nan elsewhere."""
    found = {}
    for name, values in arrays.items():
        slopes = np.full(values.shape, np.nan)
        for place in np.linspace(0, values.size - 1, min(values.size, ENTRIES)).astype(int):
            where = np.unravel_index(place, values.shape)
            slopes[where] = slope(objective, arrays, name, where, step)
        found[name] = slopes
    return found


def slope(
    objective: Callable[[Arrays], float], arrays: Mapping[str, Array], name: str, where: Any, step: float
) -> float:
    """The derivative at one entry of one array."""
    losses = []
    for shift in (-2, -1, 1, 2):
        moved = arrays[name].copy()
        moved[where] += shift * step
        losses.append(objective({**arrays, name: moved}))
    return (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)
