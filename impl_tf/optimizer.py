"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Every function is pure."""

import tensorflow as tf

from impl_tf.arrays import Array
from shared.config import OptimizerConfig
from shared.optimizers import SLOTS

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Zero slots, "<slot>.<parameter>"."""
    slots = SLOTS[optimizer.optimizer]
    return {f"{slot}.{name}": tf.zeros_like(value) for slot in slots for name, value in parameters.items()}


def global_norm(gradients: Arrays) -> Array:
    """Euclidean norm over all gradients together."""
    return tf.linalg.global_norm([tf.cast(gradient, tf.float64) for gradient in gradients.values()])


def clip_by_global_norm(gradients: Arrays, norm: Array, clip_norm: float) -> Arrays:
    """Scale down to clip_norm where the norm is greater; 0 leaves the gradients alone."""
    if not clip_norm:
        return gradients
    scale = clip_norm / tf.maximum(norm, clip_norm)
    return {name: gradient * tf.cast(scale, gradient.dtype) for name, gradient in gradients.items()}


def update(
    optimizer: OptimizerConfig,
    parameters: Arrays,
    gradients: Arrays,
    slots: Arrays,
    step: Array,
    finite: Array,
    learning_rate: Array,
) -> tuple[Arrays, Arrays]:
    """The update after `step` others -> new parameters and slots; where not finite, nothing changes."""
    directions, new_slots = gradients, slots
    if optimizer.optimizer == "adam":
        directions, new_slots = adam_directions(optimizer, gradients, slots, step + 1)
    new_parameters = {name: value - learning_rate * directions[name] for name, value in parameters.items()}
    return keep(finite, new_parameters, parameters), keep(finite, new_slots, slots)


def adam_directions(optimizer: OptimizerConfig, gradients: Arrays, slots: Arrays, step: Array) -> tuple[Arrays, Arrays]:
    """The steps that the two moments advise, and the moments."""
    directions: Arrays = {}
    moments: Arrays = {}
    beta1, beta2 = optimizer.betas
    for name, gradient in gradients.items():
        mean, square = slots[f"exp_avg.{name}"], slots[f"exp_avg_sq.{name}"]
        mean += (1 - beta1) * (gradient - mean)
        square += (1 - beta2) * (gradient * gradient - square)
        moments |= {f"exp_avg.{name}": mean, f"exp_avg_sq.{name}": square}
        root = tf.sqrt(square / correction(beta2, step, square.dtype))
        directions[name] = mean / correction(beta1, step, mean.dtype) / (root + optimizer.epsilon)
    return directions, moments


def correction(beta: float, step: Array, dtype: tf.DType) -> Array:
    """1 - beta^step, the weight that a moment begun at zero has gathered."""
    return tf.cast(1 - tf.constant(beta, tf.float64) ** tf.cast(step, tf.float64), dtype)


def keep(finite: Array, after: Arrays, before: Arrays) -> Arrays:
    """What is after the step, or what was before it where the step was not finite."""
    return {name: tf.where(finite, after[name], value) for name, value in before.items()}
