"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Arrays are updated in place."""

import numpy as np

from impl_numpy.arrays import Array, pieces
from shared.config import OptimizerConfig
from shared.optimizers import Rule, clipped_layers, rule

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Slots as they start, "<slot>.<parameter>"."""
    starts = rule(optimizer).slots
    return {
        f"{s}.{name}": np.full_like(value, start) for s, start in starts.items() for name, value in parameters.items()
    }


def norms(gradients: Arrays) -> Array:
    """Euclidean norm of each gradient alone, in float64 [P]."""
    return np.sqrt(np.stack([sum_of_squares(gradient.reshape(-1)) for gradient in gradients.values()]))


def sum_of_squares(numbers: Array) -> Array:
    """In float64, of numbers [N]."""
    parts = [numbers[piece].astype(np.float64) for piece in pieces(numbers)]
    return np.stack([part @ part for part in parts]).sum()


def together(each: Array) -> Array:
    """The norm of what has these norms."""
    return np.sqrt(np.square(each).sum())


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
    return {name: gradient.clip(-limit, limit) for name, gradient in gradients.items()} if limit else gradients


def clip_by_global_norm(gradients: Arrays, norm: Array, limit: float) -> Arrays:
    """Scale down to the limit where the norm is greater; 0 leaves the gradients alone."""
    if not limit:
        return gradients
    scale = limit / np.maximum(norm, limit)
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
    how = rule(optimizer)
    c1, c2 = (1 - how.first ** (step + 1), 1 - how.second ** (step + 1)) if how.corrected else (1.0, 1.0)
    rate = learning_rate * c2**0.5 / c1
    for name, parameter in parameters.items():
        flat, gradient = parameter.reshape(-1), gradients[name].reshape(-1)
        own = {slot: slots[f"{slot}.{name}"].reshape(-1) for slot in how.slots}
        for piece in pieces(flat):
            some = {slot: value[piece] for slot, value in own.items()}
            if how.weight_decay:
                flat[piece] *= 1 - learning_rate * how.weight_decay
            change = direction(how, gradient[piece], some, c2)
            flat[piece] -= velocity(how, change, some, rate)
    return parameters, slots


def direction(how: Rule, gradient: Array, slots: Arrays, c2: float) -> Array:
    """Advance the moments of a piece of a parameter; the change that they advise, before learning rate and velocity.
    Of the corrections, only epsilon's is made here: c1 and sqrt(c2) are factors of the learning rate."""
    if not how.square:
        return gradient
    square, top = slots[how.square], gradient
    added = gradient * gradient
    added *= how.added
    square *= how.second
    square += added
    if how.mean:
        mean = slots[how.mean]
        towards = np.subtract(gradient, mean, out=added)
        towards *= 1 - how.first
        mean += towards
        top = mean if how.corrected else gradient
    spread = np.maximum(square - mean * mean, 0) if how.centered else square
    if how.place == "inside":
        return top / np.sqrt(spread + how.epsilon * c2)
    length = np.sqrt(spread, out=added)
    length += how.epsilon * (1 if how.place == "uncorrected" else c2**0.5)
    return np.divide(top, length, out=length)


def velocity(how: Rule, change: Array, slots: Arrays, learning_rate: float) -> Array:
    """Advance the velocity of the piece, if there is one; what is subtracted from the parameter."""
    if not how.buffer:
        return learning_rate * change
    change = learning_rate * change if how.rate_inside else change
    buffer = slots[how.buffer]
    buffer *= how.momentum
    buffer += change
    change = change + how.momentum * buffer if how.nesterov else buffer
    return change if how.rate_inside else learning_rate * change
