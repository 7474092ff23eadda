"""What `differences` measures on the libraries' own layers, each library in a process of its own, and the numbers that
docs/differences.md gives for it."""

import re
from pathlib import Path

import numpy as np
import pytest

from runner.differences import measured
from runner.effects.catalogue import DIFFERENCES

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text("utf-8")
LEFT = {"two-biases": 1e-12, "keras-constants": 1e-12}
"""How far from the library the option may leave us; elsewhere rounding in one pass."""


def names_of(impl):
    return [name for name, each in DIFFERENCES.items() if each.impl == impl]


@pytest.mark.parametrize("library", ["torch", "jax", "tf"])
def test_the_libraries_differ_as_the_page_says(library):
    rows = list(measured(library, names_of(library)))
    assert [row["name"] for row in rows] == names_of(library)
    for row in rows:
        assert "error" not in row, row
        assert row["before"] > 1e-9
        if row["option"]:
            assert row["after"] <= LEFT.get(row["name"], 1e-13), row
        shown = re.search(rf"^\| `{row['name']}`:.*\*\*([0-9.e+-]+)(?: ->.*)?\*\*", PAGE, re.MULTILINE)
        # What torch.topk does with ties, and Keras' masks, are one draw and one machine's.
        near = 0.15 if row["name"] in ("topk-ties", "dropout-through-time") else 0.05
        assert float(shown[1]) == pytest.approx(row["before"], rel=near), row


def test_two_biases_are_one_that_moves_twice_as_far():
    """Against plain descent written out, with the bias's rate doubled."""
    from runner.effects.fixtures import by_hand, distance
    from runner.effects.model import torch_lstm

    def step(p, g, slots, t, lr):
        return p - lr * g * (2 if p.shape == (4 * 64,) else 1)

    assert distance(torch_lstm(second_bias=True), by_hand(step, 0.5)) < 1e-12


def test_the_norm_of_a_gathered_table_counts_each_occurrence_alone():
    """The gradient of sum(x x) is 2 x in each of its rows, and 2 x times the count in the true one."""
    from runner.effects.fixtures import E, V, batches
    from shared.random_bits import normals

    table = 2 * normals(8, "table", V * E).reshape(V, E)
    counts = np.bincount(batches().tokens[0].ravel(), minlength=V)[:, None]
    apart = np.sqrt((counts * table**2).sum()) / np.linalg.norm(counts * table)
    shown = re.search(r"`gathered-rows`:.*\*\*([0-9.]+) ->", PAGE)
    assert float(shown[1]) == pytest.approx(1 - apart, rel=0.05)
