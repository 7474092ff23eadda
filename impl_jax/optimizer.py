"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Every function is pure."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from impl_jax.arrays import Array
from shared.config import OptimizerConfig
from shared.optimizers import SLOTS

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Zero slots, "<slot>.<parameter>"."""
    slots = SLOTS[optimizer.optimizer]
    return {f"{slot}.{name}": jnp.zeros_like(value) for slot in slots for name, value in parameters.items()}


def global_norm(gradients: Arrays) -> Array:
    """Euclidean norm over all gradients together."""
    return optax.tree.norm(optax.tree.cast(gradients, jnp.float64))


def clip_by_global_norm(gradients: Arrays, norm: Array, clip_norm: float) -> Arrays:
    """Scale down to clip_norm where the norm is greater; 0 leaves the gradients alone."""
    if not clip_norm:
        return gradients
    scale = clip_norm / jnp.maximum(norm, clip_norm)
    return {name: gradient * scale.astype(gradient.dtype) for name, gradient in gradients.items()}


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
        directions, new_slots = adam_direction(optimizer, gradients, slots, step)
    new_parameters = {name: value - learning_rate * directions[name] for name, value in parameters.items()}
    return jax.tree.map(partial(jnp.where, finite), (new_parameters, new_slots), (parameters, slots))


def adam_direction(optimizer: OptimizerConfig, gradients: Arrays, slots: Arrays, step: Array) -> tuple[Arrays, Arrays]:
    """The steps that the two moments advise, and the moments."""
    adam = optax.scale_by_adam(*optimizer.betas, eps=optimizer.epsilon)
    moments = ({name: slots[f"{slot}.{name}"] for name in gradients} for slot in SLOTS["adam"])
    directions, state = adam.update(gradients, optax.ScaleByAdamState(step, *moments))
    advanced = zip(SLOTS["adam"], (state.mu, state.nu), strict=True)
    return directions, {f"{slot}.{name}": value for slot, moment in advanced for name, value in moment.items()}
