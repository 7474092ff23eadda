"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Tensors are updated in place."""

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from impl_torch.arrays import Array
from shared.config import OptimizerConfig
from shared.optimizers import SLOTS

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Zero slots, "<slot>.<parameter>"."""
    slots = SLOTS[optimizer.optimizer]
    return {f"{slot}.{name}": torch.zeros_like(value) for slot in slots for name, value in parameters.items()}


def global_norm(gradients: Arrays) -> Array:
    """Euclidean norm over all gradients together."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients.values()]
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_by_global_norm(gradients: Arrays, norm: Array, clip_norm: float) -> Arrays:
    """Scale down to clip_norm where the norm is greater; 0 leaves the gradients alone."""
    if not clip_norm:
        return gradients
    scale = clip_norm / norm.clamp(min=clip_norm)
    return {name: gradient * scale.to(gradient.dtype) for name, gradient in gradients.items()}


def update(
    optimizer: OptimizerConfig,
    parameters: Arrays,
    gradients: Arrays,
    slots: Arrays,
    step: Array,
    finite: Array,
    learning_rate: float,
) -> tuple[Arrays, Arrays]:
    """The update after `step` others -> new parameters and slots; where not finite, nothing changes.

    torch's fused kernels leave everything alone where `found_inf` is 1, so no number travels to the host. They also
    read a gradient in the parameter's memory order, whatever its own: a transposed one would be applied scrambled.
    """
    values, grads = list(parameters.values()), [gradients[name].contiguous() for name in parameters]
    found_inf = (~finite).float()
    if optimizer.optimizer == "sgd":
        sgd(
            values, grads, [None] * len(values), fused=True, found_inf=found_inf,
            lr=learning_rate, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, maximize=False,
        )  # fmt: skip
    else:
        beta1, beta2 = optimizer.betas
        means, squares = ([slots[f"{slot}.{name}"] for name in parameters] for slot in SLOTS["adam"])
        adam(
            values, grads, means, squares, [], [step.float() for _ in values], fused=True, found_inf=found_inf,
            lr=learning_rate, beta1=beta1, beta2=beta2, eps=optimizer.epsilon,
            amsgrad=False, weight_decay=0.0, maximize=False,
        )  # fmt: skip
    return parameters, slots
