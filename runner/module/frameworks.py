"""Arrays and gradients of the framework that a user's file is written in; imported only where that file asks for it."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

FRAMEWORKS = ("numpy", "torch", "jax", "tf")
MODULES = {"torch": "torch", "jax": "jax.numpy", "tf": "tensorflow"}
MAKERS = {"torch": "tensor", "jax": "asarray", "tf": "constant"}


def to_framework(framework: str, values: np.ndarray) -> Any:
    """A copy as the framework's array, on the processor, float64."""
    if framework == "numpy":
        return values.copy()
    return getattr(importlib.import_module(MODULES[framework]), MAKERS[framework])(values.copy())


def differentiate(framework: str, forward: Callable[..., Any], d_state: Any, x: Any, state: Any, weights: Any) -> Any:
    """Gradients of sum(d_state * forward(x, state, weights)) -> at x, at the state, of the weights."""
    return {"torch": by_torch, "jax": by_jax, "tf": by_tf}[framework](forward, d_state, x, state, weights)


def by_torch(forward: Callable[..., Any], d_state: Any, x: Any, state: Any, weights: Any) -> Any:
    """Autograd; zero where no path leads."""
    torch = importlib.import_module("torch")
    leaves = [x, *state.values(), *weights.values()]
    for leaf in leaves:
        leaf.requires_grad_(True)
    after = forward(x, state, weights)
    objective = sum((after[name] * d).sum() for name, d in d_state.items())
    found = [torch.zeros_like(leaf) for leaf in leaves]
    if objective.requires_grad:
        found = list(torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True))
    d_before = dict(zip(state, found[1:], strict=False))
    return found[0], d_before, dict(zip(weights, found[1 + len(state) :], strict=True))


def by_jax(forward: Callable[..., Any], d_state: Any, x: Any, state: Any, weights: Any) -> Any:
    """`jax.grad`."""

    def objective(x: Any, state: Any, weights: Any) -> Any:
        after = forward(x, state, weights)
        return sum((after[name] * d).sum() for name, d in d_state.items())

    return importlib.import_module("jax").grad(objective, (0, 1, 2))(x, state, weights)


def by_tf(forward: Callable[..., Any], d_state: Any, x: Any, state: Any, weights: Any) -> Any:
    """`GradientTape`; zero where no path leads."""
    tensorflow = importlib.import_module("tensorflow")
    with tensorflow.GradientTape() as tape:
        tape.watch((x, state, weights))
        after = forward(x, state, weights)
        objective = sum(tensorflow.reduce_sum(after[name] * d) for name, d in d_state.items())
    return tape.gradient(objective, (x, state, weights), unconnected_gradients=tensorflow.UnconnectedGradients.ZERO)
