"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Arrays are updated in place."""

import numpy as np

from impl_numpy.arrays import Array
from shared.config import OptimizerConfig
from shared.optimizers import SLOTS

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Zero slots, "<slot>.<parameter>"."""
    slots = SLOTS[optimizer.optimizer]
    return {f"{slot}.{name}": np.zeros_like(value) for slot in slots for name, value in parameters.items()}


def global_norm(gradients: Arrays) -> Array:
    """Euclidean norm over all gradients together."""
    return np.sqrt(sum(np.square(gradient, dtype=np.float64).sum() for gradient in gradients.values()))


def clip_by_global_norm(gradients: Arrays, norm: Array, clip_norm: float) -> Arrays:
    """Scale down to clip_norm where the norm is greater; 0 leaves the gradients alone."""
    if not clip_norm:
        return gradients
    scale = clip_norm / np.maximum(norm, clip_norm)
    return {name: gradient * scale.astype(gradient.dtype) for name, gradient in gradients.items()}


def update(
    optimizer: OptimizerConfig,
    parameters: Arrays,
    gradients: Arrays,
    slots: Arrays,
    step: int,
    finite: bool,
    learning_rate: float,
) -> tuple[Arrays, Arrays]:
    """The update after `step` others -> new parameters and slots; where not finite, nothing changes."""
    if not finite:
        return parameters, slots
    for name, parameter in parameters.items():
        if optimizer.optimizer == "sgd":
            parameter -= learning_rate * gradients[name]
        else:
            mean, square = slots[f"exp_avg.{name}"], slots[f"exp_avg_sq.{name}"]
            parameter -= learning_rate * adam_direction(optimizer, gradients[name], mean, square, step + 1)
    return parameters, slots


def adam_direction(optimizer: OptimizerConfig, gradient: Array, mean: Array, square: Array, step: int) -> Array:
    """Advance the two moments; the step that they advise."""
    beta1, beta2 = optimizer.betas
    mean += (1 - beta1) * (gradient - mean)
    square += (1 - beta2) * (gradient * gradient - square)
    return mean / (1 - beta1**step) / (np.sqrt(square / (1 - beta2**step)) + optimizer.epsilon)
