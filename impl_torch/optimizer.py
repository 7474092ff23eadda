"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Tensors are updated in place."""

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from impl_torch.arrays import Array
from shared.config import OptimizerConfig
from shared.optimizers import Rule, clipped_layers, rule

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Slots as they start, "<slot>.<parameter>"."""
    starts = rule(optimizer).slots
    return {
        f"{s}.{name}": torch.full_like(value, start, requires_grad=False)
        for s, start in starts.items()
        for name, value in parameters.items()
    }


def norms(gradients: Arrays) -> Array:
    """Euclidean norm of each gradient alone, in float64 [P]."""
    return torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients.values()])


def together(each: Array) -> Array:
    """The norm of what has these norms."""
    return torch.linalg.vector_norm(each)


def global_norm(gradients: Arrays) -> Array:
    """Euclidean norm over all gradients together, in float64."""
    return together(norms(gradients))


def clip(optimizer: OptimizerConfig, gradients: Arrays, norm: Array) -> Arrays:
    """By value, by layer, by global norm, each where it is asked for; `norm` is the global norm before."""
    gradients = clip_by_value(gradients, optimizer.clip_value)
    for limit, names in clipped_layers(optimizer, gradients):
        layer = {name: gradients[name] for name in names}
        gradients = gradients | clip_by_global_norm(layer, global_norm(layer), limit)
    changed = optimizer.clip_value or optimizer.clip_layers
    return clip_by_global_norm(gradients, global_norm(gradients) if changed else norm, optimizer.clip_norm)


def clip_by_value(gradients: Arrays, limit: float) -> Arrays:
    """Every number to [-limit, limit]; 0 leaves the gradients alone."""
    return {name: gradient.clamp(-limit, limit) for name, gradient in gradients.items()} if limit else gradients


def clip_by_global_norm(gradients: Arrays, norm: Array, limit: float) -> Arrays:
    """Scale down to the limit where the norm is greater; 0 leaves the gradients alone."""
    if not limit:
        return gradients
    scale = limit / norm.clamp(min=limit)
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

    torch's fused kernels, where they compute the rule, leave everything alone where `found_inf` is 1, so no number
    travels to the host. They also read a gradient in the parameter's memory order, whatever its own: a transposed one
    would be applied scrambled.
    """
    how, found_inf = rule(optimizer), (~finite).float()
    values, grads = list(parameters.values()), [gradients[name].contiguous() for name in parameters]
    if how.corrected and how.place == "outside":
        means, squares = ([slots[f"{slot}.{name}"] for name in parameters] for slot in (how.mean, how.square))
        adamw(
            values, grads, means, squares, [], [step.float() for _ in values], fused=True, found_inf=found_inf,
            lr=learning_rate, beta1=how.first, beta2=how.second, eps=how.epsilon,
            amsgrad=False, weight_decay=how.weight_decay, maximize=False,
        )  # fmt: skip
    elif not how.square and not how.rate_inside and bool(how.buffer) == bool(how.momentum):
        sgd(
            values, grads, [slots.get(f"{how.buffer}.{name}") for name in parameters], fused=True, found_inf=found_inf,
            lr=learning_rate, momentum=how.momentum, dampening=0.0, nesterov=how.nesterov, weight_decay=0.0,
            maximize=False,
        )  # fmt: skip
    else:
        old = parameters | slots
        new = dict(old)
        for name, gradient in gradients.items():
            change = velocity(how, direction(how, gradient, name, new, step + 1), name, new, learning_rate)
            new[name] = new[name] * (1 - learning_rate * how.weight_decay) - change
        for name, value in old.items():
            value.copy_(torch.where(finite, new[name], value))
    return parameters, slots


def direction(how: Rule, gradient: Array, name: str, slots: Arrays, step: Array) -> Array:
    """Put the next moments of one parameter into `slots`; the change that they advise, before rate and velocity."""
    if not how.square:
        return gradient
    square = how.second * slots[f"{how.square}.{name}"] + how.added * gradient * gradient
    slots[f"{how.square}.{name}"] = square
    if how.mean:
        mean = slots[f"{how.mean}.{name}"].lerp(gradient, 1 - how.first)
        slots[f"{how.mean}.{name}"] = mean
    c1, c2 = (1 - how.first**step, 1 - how.second**step) if how.corrected else (1.0, 1.0)
    top = mean / c1 if how.corrected else gradient
    spread = (square - mean * mean).clamp(min=0) if how.centered else square / c2
    if how.place == "inside":
        return top / (spread + how.epsilon).sqrt()
    return top / (spread.sqrt() + (how.epsilon / c2**0.5 if how.place == "uncorrected" else how.epsilon))


def velocity(how: Rule, change: Array, name: str, slots: Arrays, learning_rate: float) -> Array:
    """Put the next velocity of one parameter, if there is one, into `slots`; what is subtracted from the parameter."""
    if not how.buffer:
        return learning_rate * change
    change = learning_rate * change if how.rate_inside else change
    buffer = how.momentum * slots[f"{how.buffer}.{name}"] + change
    slots[f"{how.buffer}.{name}"] = buffer
    change = change + how.momentum * buffer if how.nesterov else buffer
    return change if how.rate_inside else learning_rate * change
