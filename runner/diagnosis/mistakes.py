"""The mistakes that people make in a cell: by name, in words that follow "what comes out when ", and the cells in which
each can be made. `mistaken_cells` makes them."""

from itertools import permutations
from typing import NamedTuple

GATED, SQUASHED = ("lstm", "gru", "gru-before"), ("rnn", "lstm", "gru", "gru-before")
CURVED = (*GATED, "wrnn")
"""Cells with sigmoid units."""
ALL = ("rnn", "rnn-relu", *GATED, "wrnn")
ORDERS = {"lstm": "ifgo", "gru": "rzn", "gru-before": "rzn"}
"""Row blocks of the gates, as the canonical weights have them; a cell without gates has one block."""
KNOWN = {
    "lstm": {"iofg": "ONNX's", "igfo": "that of old TensorFlow cells"},
    "gru": {"zrn": "Keras' and ONNX's"},
    "gru-before": {"zrn": "Keras' and ONNX's"},
}
"""Whose order of the blocks it is."""
UNITS = {
    "lstm": {"i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate", "c": "tanh around the cell"},
    "gru": {"r": "reset gate", "z": "update gate"},
    "gru-before": {"r": "reset gate", "z": "update gate"},
    "wrnn": {"a": "first layer", "b": "second layer"},
}
TANHS = ("g", "c")
"""The units among them that are tanh; the others are sigmoid."""
SUMS = {"weight_ab": "V", "weight_skip": "R", "weight_bb": "T"}


class Mistake(NamedTuple):
    """A mistake in words, and where it can be made."""

    words: str
    cells: tuple[str, ...]


FORWARD = {
    "bias missing": Mistake("the bias is left out", ALL),
    "bias twice": Mistake("the bias is added twice", ALL),
    "recurrence missing": Mistake("the state before does not go into the sum (no weight_hh)", ALL),
    "weight_hh transposed": Mistake("weight_hh is transposed (h @ weight_hh, where h @ weight_hh.T belongs)", ALL),
    "tanh as sigmoid": Mistake("sigmoid stands where tanh belongs", SQUASHED),
    "tanh as relu": Mistake("relu stands where tanh belongs", ("rnn",)),
    "relu as tanh": Mistake("tanh stands where relu belongs", ("rnn-relu",)),
    "sigmoid as tanh": Mistake("tanh stands where sigmoid belongs", CURVED),
    "candidate as sigmoid": Mistake("the candidate g is a sigmoid, not a tanh", ("lstm",)),
    "kept by input": Mistake("the input gate keeps the cell (c' = i * c + i * g)", ("lstm",)),
    "forget missing": Mistake("the forget gate is left out (c' = c + i * g)", ("lstm",)),
    "forget plus one": Mistake("1 is added to the forget gate's sum (a forget bias is in the bias already)", ("lstm",)),
    "input missing": Mistake("the input gate is left out (c' = f * c + g)", ("lstm",)),
    "output missing": Mistake("the output gate is left out (h' = tanh(c'))", ("lstm",)),
    "cell not squashed": Mistake("h' = o * c', without the tanh around the cell", ("lstm",)),
    "old cell shown": Mistake("h' = o * tanh(c) takes the cell before the step, not the new one", ("lstm",)),
    "update inverted": Mistake("the update gate is inverted (h' = z * n + (1 - z) * h)", ("gru", "gru-before")),
    "reset missing": Mistake("the reset gate is left out", ("gru", "gru-before")),
    "reset before": Mistake("the reset gate acts before the product, U (r * h): that is CELL = 'gru-before'", ("gru",)),
    "reset after": Mistake("the reset gate acts after the product, r * (U h): that is CELL = 'gru'", ("gru-before",)),
    "bias_hn missing": Mistake("bias_hn is left out", ("gru",)),
    "bias_hn outside": Mistake("bias_hn is added outside the reset product", ("gru",)),
    "old first read": Mistake(
        "the second layer reads the first one's state before the step (V a, not V a')", ("wrnn",)
    ),
    "new first skips": Mistake("the skip reads the first layer's new state (R a', not R a)", ("wrnn",)),
    "bias_b missing": Mistake("bias_b is left out", ("wrnn",)),
    **{f"{name} missing": Mistake(f"{name} ({letter}) is left out", ("wrnn",)) for name, letter in SUMS.items()},
    **{f"{name} transposed": Mistake(f"{name} is transposed", ("wrnn",)) for name in SUMS},
}
"""Mistakes of the forward pass; of the gradients too, where they are taken from it."""
BACKWARD = {
    "tanh slope of sigmoid": Mistake("tanh's derivative, 1 - y**2, stands on sigmoid units (y * (1 - y))", CURVED),
    "sigmoid slope of tanh": Mistake("sigmoid's derivative, y * (1 - y), stands on tanh units (1 - y**2)", SQUASHED),
    "sigmoid slope of its sum": Mistake("y * (1 - y) is given the sum before the sigmoid, not its output y", CURVED),
    "tanh slope of its sum": Mistake("1 - y**2 is given the sum before the tanh, not its output y", SQUASHED),
    "sigmoid slope of its output": Mistake("sigmoid is applied once more inside its derivative", CURVED),
    "tanh slope of its output": Mistake("tanh is applied once more inside its derivative", SQUASHED),
    "sigmoid slope missing": Mistake("sigmoid's derivative, y * (1 - y), is left out", CURVED),
    "tanh slope missing": Mistake("tanh's derivative, 1 - y**2, is left out", SQUASHED),
    "relu slope missing": Mistake("relu lets the gradient of dead units through", ("rnn-relu",)),
    "weight_hh transposed back": Mistake("weight_hh is transposed on the way back (d @ weight_hh.T)", ALL),
    "after for before": Mistake("the recurrent gradients take the state after the step, not the one before", ALL),
    "nothing handed back": Mistake("no gradient is handed to the step before: d_previous_state is zero", ALL),
    "time forgotten": Mistake(
        "time is forgotten: nothing is handed to the step before, and what comes from the step after is not used",
        ("lstm", "wrnn"),
    ),
    "hidden not handed back": Mistake("no gradient is handed to the hidden state before", ("lstm", "wrnn")),
    "cell not handed back": Mistake("no gradient is handed to the cell before (d_c' * f)", ("lstm",)),
    "cell not received": Mistake("the gradient that comes with d_state['cell'] is not used", ("lstm",)),
    "cell bypassed": Mistake("the gradient of h' does not go on through tanh(c')", ("lstm",)),
    "cell without output": Mistake("the output gate is missing where the gradient of h' goes on to c'", ("lstm",)),
    "new cell forgotten": Mistake("the forget gate's gradient takes the new cell c', not the one before", ("lstm",)),
    "output of bare cell": Mistake("the output gate's gradient takes c', not tanh(c')", ("lstm",)),
    "kept path missing": Mistake("the path of z * h to the state before is missing", ("gru", "gru-before")),
    "reset missing back": Mistake("the reset gate is missing where the gradient goes on to U h", ("gru",)),
    "kept by whole": Mistake("the candidate's rows of weight_hh see h, not r * h", ("gru-before",)),
    "first not handed back": Mistake("no gradient is handed to the first layer's state before", ("wrnn",)),
    "first not received": Mistake("the gradient that comes with d_state['first'] is not used", ("wrnn",)),
    "layers apart": Mistake("the second layer hands no gradient to the first one (through weight_ab)", ("wrnn",)),
    "skip missing back": Mistake(
        "the skip (weight_skip) hands no gradient to the first layer's state before", ("wrnn",)
    ),
    **{f"{name} transposed back": Mistake(f"{name} is transposed on the way back", ("wrnn",)) for name in SUMS},
}
"""Mistakes of a backward pass that was written by hand."""


def forward_mistakes(cell: str) -> dict[str, str]:
    """Name -> words of the mistakes of a forward pass, the blocks of the gates in every wrong order among them."""
    found = {name: mistake.words for name, mistake in FORWARD.items() if cell in mistake.cells}
    usual = ORDERS.get(cell, "")
    for order in map("".join, permutations(usual)):
        if order != usual:
            whose = f": {KNOWN[cell][order]} order" if order in KNOWN[cell] else ""
            found[f"order {order}"] = f"the row blocks are taken as {' '.join(order)}, not {' '.join(usual)}{whose}"
    return found


def backward_mistakes(cell: str) -> dict[str, str]:
    """Name -> words of the mistakes of a backward pass, the slope of each unit alone among them."""
    found = {name: mistake.words for name, mistake in BACKWARD.items() if cell in mistake.cells}
    for order in map("".join, permutations(ORDERS.get(cell, ""))):
        found |= {f"stacked {order}": f"the gradients of the gates are stacked as {' '.join(order)}"} if order else {}
    for unit, title in UNITS.get(cell, {}).items():
        right, wrong = ("tanh", "sigmoid") if unit in TANHS else ("sigmoid", "tanh")
        found[f"{wrong} slope of {unit}"] = f"the {title}'s slope is {wrong}'s, not {right}'s"
        found[f"{unit} slope missing"] = f"the {title}'s derivative is left out"
    return found
