"""One step of every cell in which each mistake of `mistakes` can be made: what a wrong program computes can then
be computed here, and compared with what a user's program gave.

A step is written on a tape of a few operations (reverse mode), so that a mistake in the forward pass finds its way into
the gradients as it does under a framework's autograd, and a mistake of the backward pass alone stays there.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from runner.diagnosis.mistakes import ORDERS

Array = np.ndarray
Arrays = dict[str, Array]


class Node:
    """An array on the tape, and what brings its gradient back to the nodes that it came from."""

    def __init__(self, step: "Step", data: Array, *back: tuple["Node", Callable[[Array], Array]]) -> None:
        self.step, self.data, self.back, self.gradient = step, data, back, np.zeros_like(data)
        step.nodes.append(self)

    def __add__(self, other: "Node") -> "Node":
        return Node(self.step, self.data + other.data, (self, lambda d: d), (other, lambda d: d))

    def __mul__(self, other: "Node") -> "Node":
        return self.times(other, lambda: self.data, lambda: other.data)

    def times(self, other: "Node", mine: Callable[[], Array], others: Callable[[], Array]) -> "Node":
        """The product, whose derivatives take `mine` for this factor and `others` for the other one."""
        return Node(self.step, self.data * other.data, (self, lambda d: d * others()), (other, lambda d: d * mine()))

    def complement(self) -> "Node":
        """1 - this."""
        return Node(self.step, 1 - self.data, (self, lambda d: -d))


class Step:
    """One step of a cell on its tape: x [B, I], state fields [B, H], canonical weights."""

    def __init__(self, cell: str, made: Iterable[str], x: Array, state: Arrays, weights: Arrays) -> None:
        self.made, self.nodes = frozenset(made), list[Node]()
        self.order = self.named("order") or ORDERS.get(cell, "-")
        self.stacked, self.size = self.named("stacked") or self.order, len(state["hidden"][0])
        self.x, self.before = Node(self, x), {name: Node(self, value) for name, value in state.items()}
        self.weights = {name: Node(self, value) for name, value in weights.items()}
        self.after: dict[str, Node] = CELLS[cell](self)

    def backward(self, d_state: Mapping[str, Array]) -> tuple[Array, Arrays, Arrays]:
        """Gradients at the state after the step -> at x, at the state before, of the weights."""
        for name, node in self.after.items():
            received = name == "hidden" or not self.made & {"time forgotten", f"{name} not received"}
            node.gradient = node.gradient + d_state[name] * received
        for node in reversed(self.nodes):
            for source, pull in node.back:
                source.gradient = source.gradient + pull(node.gradient)
        stopped = bool(self.made & {"time forgotten", "nothing handed back"})
        d_before = {
            name: node.gradient * (not stopped and f"{name} not handed back" not in self.made)
            for name, node in self.before.items()
        }
        return self.x.gradient, d_before, {name: node.gradient for name, node in self.weights.items()}

    def gate(self, name: str, recurrent: Node | None = None) -> Node:
        """The sum W x + U h + b of a gate; `recurrent` in place of U h."""
        bias = self.rows("bias", name)
        total = self.product("weight_ih", self.x, name) + (recurrent or self.recurrent(name))
        return (
            total if "bias missing" in self.made else total + bias + bias if "bias twice" in self.made else total + bias
        )

    def recurrent(self, name: str = "-", state: Node | None = None) -> Node:
        """U h of a gate, or of another state."""
        return self.product("weight_hh", state or self.before["hidden"], name, "recurrence missing")

    def rows(self, weight: str, name: str = "-") -> Node:
        """A gate's row block of a weight or a bias."""
        whole = self.weights[weight]

        def back(d: Array) -> Array:
            gradient = np.zeros_like(whole.data)
            gradient[self.block(self.stacked, name)] = d if gradient.ndim == d.ndim else d.sum(0)
            return gradient

        return Node(self, whole.data[self.block(self.order, name)], (whole, back))

    def block(self, order: str, name: str) -> slice:
        """Where a gate's rows are, the first rows where there are no gates."""
        place = order.find(name) if name in order else 0
        return slice(place * self.size, (place + 1) * self.size)

    def named(self, mistake: str) -> str:
        """The order of the gates that a mistake names, if it is made."""
        return next((name.partition(" ")[2] for name in self.made if name.startswith(f"{mistake} ")), "")

    def product(self, weight: str, vector: Node, name: str = "-", missing: str = "") -> Node:
        """W v of a gate: v [B, N] -> [B, H]."""
        block = self.rows(weight, name)
        if (missing or f"{weight} missing") in self.made:
            return Node(self, np.zeros((len(vector.data), self.size)))
        matrix = block.data.T if f"{weight} transposed" in self.made else block.data
        stacked = self.weights[weight].data[self.block(self.stacked, name)]
        back = (
            stacked.T
            if (f"{weight} transposed back" in self.made) != (f"{weight} transposed" in self.made)
            else stacked
        )

        def to_weight(d: Array) -> Array:
            gradient = d.T @ self.seen(vector)
            return gradient.T if f"{weight} transposed" in self.made else gradient

        return Node(self, vector.data @ matrix.T, (block, to_weight), (vector, lambda d: d @ back))

    def seen(self, vector: Node) -> Array:
        """What a weight's gradient takes for the vector that the weight multiplied."""
        if "after for before" in self.made:
            return next(
                (self.after[name].data for name, node in self.before.items() if node.data is vector.data), vector.data
            )
        return vector.data

    def squash(self, kind: str, node: Node, unit: str) -> Node:
        """tanh, sigmoid or relu, of a unit."""
        used = next((other for other in SHAPES if f"{kind} as {other}" in self.made), kind)
        shape, slope = SHAPES[used]
        y, made = shape(node.data), self.made
        seen = (
            node.data
            if f"{kind} slope of its sum" in made
            else shape(y)
            if f"{kind} slope of its output" in made
            else y
        )
        wrong = (
            SHAPES[other][1] for other in SHAPES if made & {f"{other} slope of {kind}", f"{other} slope of {unit}"}
        )
        left_out = made & {f"{kind} slope missing", f"{unit} slope missing"}
        factor = np.ones_like(y) if left_out else next(wrong, slope)(seen)
        return Node(self, y, (node, lambda d: d * factor))

    def cut(self, node: Node, mistake: str) -> Node:
        """The node, through which no gradient goes where the mistake is made."""
        return Node(self, node.data) if mistake in self.made else node


SHAPES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, lambda y: 1 - y**2),
    "sigmoid": (lambda x: 0.5 * (1 + np.tanh(x / 2)), lambda y: y * (1 - y)),
    "relu": (lambda x: np.maximum(x, 0), lambda y: (y > 0).astype(y.dtype)),
}
"""Function, and its derivative written in terms of its output."""


def rnn(step: Step) -> dict[str, Node]:
    return {"hidden": step.squash("tanh", step.gate("-"), "h")}


def rnn_relu(step: Step) -> dict[str, Node]:
    return {"hidden": step.squash("relu", step.gate("-"), "h")}


def lstm(step: Step) -> dict[str, Node]:
    made, old, one = step.made, step.before["cell"], np.ones_like(step.before["cell"].data)
    i, f, g, o = (step.gate(name) for name in "ifgo")
    f = f + Node(step, one) if "forget plus one" in made else f
    i, f, o = (step.squash("sigmoid", *each) for each in ((i, "i"), (f, "f"), (o, "o")))
    g = step.squash("sigmoid" if "candidate as sigmoid" in made else "tanh", g, "g")
    seen = (lambda: cell.data) if "new cell forgotten" in made else (lambda: old.data)
    keeper = i if "kept by input" in made else f
    kept = old if "forget missing" in made else keeper.times(old, lambda: keeper.data, seen)
    cell: Node = kept + (g if "input missing" in made else i * g)
    shown = step.cut(old if "old cell shown" in made else cell, "cell bypassed")
    squashed = shown if "cell not squashed" in made else step.squash("tanh", shown, "c")
    gate = (lambda: one) if "cell without output" in made else (lambda: o.data)
    bare = (lambda: cell.data) if "output of bare cell" in made else (lambda: squashed.data)
    return {"hidden": squashed if "output missing" in made else o.times(squashed, gate, bare), "cell": cell}


def gru(step: Step) -> dict[str, Node]:
    made, bias, sums = step.made, step.rows("bias_hn"), step.recurrent("n")
    sums = sums if made & {"bias_hn missing", "bias_hn outside"} else sums + bias
    reset = step.squash("sigmoid", step.gate("r"), "r")
    one = np.ones_like(reset.data)
    passing = (lambda: one) if "reset missing back" in made else (lambda: reset.data)
    recurrent = sums if "reset missing" in made else reset.times(sums, passing, lambda: sums.data)
    recurrent = recurrent + bias if "bias_hn outside" in made else recurrent
    if "reset before" in made:
        recurrent = step.recurrent("n", reset * step.before["hidden"]) + bias
    return keep(step, step.squash("tanh", step.gate("n", recurrent), "n"))


def gru_before(step: Step) -> dict[str, Node]:
    made, hidden = step.made, step.before["hidden"]
    reset = step.squash("sigmoid", step.gate("r"), "r")
    kept = hidden if "reset missing" in made else reset * hidden
    recurrent = reset * step.recurrent("n") if "reset after" in made else step.recurrent("n", kept)
    if "kept by whole" in made:
        whole, part = step.recurrent("n"), step.recurrent("n", kept)
        (block, to_weight), (vector, to_vector) = whole.back[0], part.back[1]
        recurrent = Node(step, part.data, (block, to_weight), (vector, to_vector))
    return keep(step, step.squash("tanh", step.gate("n", recurrent), "n"))


def keep(step: Step, candidate: Node) -> dict[str, Node]:
    """h' = (1 - z) n + z h."""
    update = step.squash("sigmoid", step.gate("z"), "z")
    new, old = (update, update.complement()) if "update inverted" in step.made else (update.complement(), update)
    hidden = step.before["hidden"]
    back = np.zeros_like(hidden.data) if "kept path missing" in step.made else None
    kept = old.times(hidden, lambda: old.data if back is None else back, lambda: hidden.data)
    return {"hidden": new * candidate + kept}


def wrnn(step: Step) -> dict[str, Node]:
    made, a, b = step.made, step.before["first"], step.before["hidden"]
    first = step.squash("sigmoid", step.gate("-", step.recurrent("-", a)), "a")
    read = step.cut(a if "old first read" in made else first, "layers apart")
    skipped = step.cut(first if "new first skips" in made else a, "skip missing back")
    total = step.product("weight_ab", read) + step.product("weight_skip", skipped) + step.product("weight_bb", b)
    total = total if "bias_b missing" in made else total + step.rows("bias_b")
    return {"hidden": step.squash("sigmoid", total, "b"), "first": first}


CELLS = {"rnn": rnn, "rnn-relu": rnn_relu, "lstm": lstm, "gru": gru, "gru-before": gru_before, "wrnn": wrnn}
