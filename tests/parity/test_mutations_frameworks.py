"""The tests catch mistakes in the mathematics of PyTorch, JAX and TensorFlow: one mutation of `mutate` for each."""

import mutate
import pytest
from mutate import EXAMINE, Stage

FIXED = {
    "torch": (
        "impl_torch/optimizer.py",
        "lstm many-to-one",
        "training",
        "square - mean * mean",
        "square + mean * mean",
    ),
    "jax": ("impl_jax/loss.py", "lstm many-to-one", "evaluation", "batch.mask.sum(1) - 1", "batch.mask.sum(1) - 2"),
    "tf": ("impl_tf/wrnn.py", "wrnn one-hot, many-to-one", "forward", "+ weights.bias_b", "- weights.bias_b"),
}
"""Module, the case of `check` and the part that meet it, text, and the text that stands there after the mutation."""


@pytest.mark.parametrize("name", FIXED)
def test_a_mutation_is_caught_and_nothing_else_is(name):
    path, case, part, old, new = FIXED[name]
    stage = Stage(name, (EXAMINE, name, case, part))
    with mutate.project_copy() as folder:
        assert mutate.run(folder, stage).outcome == "passed"
        with mutate.mutated(folder, mutate.replacement(folder, path, old, new)):
            ran = mutate.run(folder, stage)
    assert ran.outcome == "failed"
    assert ran.by.startswith(f"check {case}: ")
