"""Clipping and the optimizers, on canonical names; formulas in shared.optimizers. Every function is pure."""

import tensorflow as tf

from impl_tf.arrays import Array
from shared.config import OptimizerConfig
from shared.optimizers import Rule, clipped_layers, rule

Arrays = dict[str, Array]


def init_slots(optimizer: OptimizerConfig, parameters: Arrays) -> Arrays:
    """Slots as they start, "<slot>.<parameter>"."""
    starts = rule(optimizer).slots
    return {
        f"{s}.{name}": tf.fill(value.shape, tf.constant(start, value.dtype))
        for s, start in starts.items()
        for name, value in parameters.items()
    }


def norms(gradients: Arrays) -> Array:
    """Euclidean norm of each gradient alone, in float64 [P]."""
    return tf.stack([tf.norm(tf.cast(gradient, tf.float64)) for gradient in gradients.values()])


def together(each: Array) -> Array:
    """The norm of what has these norms."""
    return tf.norm(each)


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
    if not limit:
        return gradients
    return {name: tf.clip_by_value(gradient, -limit, limit) for name, gradient in gradients.items()}


def clip_by_global_norm(gradients: Arrays, norm: Array, limit: float) -> Arrays:
    """Scale down to the limit where the norm is greater; 0 leaves the gradients alone."""
    if not limit:
        return gradients
    scale = limit / tf.maximum(norm, limit)
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
    how = rule(optimizer)
    new_parameters: Arrays = {}
    new_slots: Arrays = {}
    for name, parameter in parameters.items():
        before = {slot: slots[f"{slot}.{name}"] for slot in how.slots}
        change, moments = direction(how, gradients[name], before, step + 1)
        change, buffer = velocity(how, change, before, learning_rate)
        if how.weight_decay:
            parameter *= 1 - learning_rate * how.weight_decay
        new_parameters[name] = parameter - change
        new_slots |= {f"{slot}.{name}": value for slot, value in (moments | buffer).items()}
    return keep(finite, new_parameters, parameters), keep(finite, new_slots, slots)


def direction(how: Rule, gradient: Array, slots: Arrays, step: Array) -> tuple[Array, Arrays]:
    """The change that the moments of one parameter advise, before learning rate and velocity; the moments."""
    if not how.square:
        return gradient, {}
    square = how.second * slots[how.square] + how.added * gradient * gradient
    moments, top, spread, epsilon = {how.square: square}, gradient, square, how.epsilon
    if how.mean:
        moments[how.mean] = mean = slots[how.mean] + (1 - how.first) * (gradient - slots[how.mean])
    if how.corrected:
        c1, c2 = (correction(decay, step, square.dtype) for decay in (how.first, how.second))
        top, spread = mean / c1, square / c2
        epsilon = how.epsilon / tf.sqrt(c2) if how.place == "uncorrected" else epsilon
    if how.centered:
        spread = tf.maximum(square - mean * mean, 0)
    return top / (tf.sqrt(spread + epsilon) if how.place == "inside" else tf.sqrt(spread) + epsilon), moments


def correction(decay: float, step: Array, dtype: tf.DType) -> Array:
    """1 - decay^step, the weight that a moment begun at zero has gathered."""
    return tf.cast(1 - tf.constant(decay, tf.float64) ** tf.cast(step, tf.float64), dtype)


def velocity(how: Rule, change: Array, slots: Arrays, learning_rate: Array) -> tuple[Array, Arrays]:
    """What is subtracted from one parameter, and its next velocity, if there is one."""
    if not how.buffer:
        return learning_rate * change, {}
    change = learning_rate * change if how.rate_inside else change
    buffer = how.momentum * slots[how.buffer] + change
    change = change + how.momentum * buffer if how.nesterov else buffer
    return change if how.rate_inside else learning_rate * change, {how.buffer: buffer}


def keep(finite: Array, after: Arrays, before: Arrays) -> Arrays:
    """What is after the step, or what was before it where the step was not finite."""
    return {name: tf.where(finite, after[name], value) for name, value in before.items()}
