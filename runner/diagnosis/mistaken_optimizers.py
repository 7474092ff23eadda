"""Clipping and the update of `shared.optimizers`, in which the mistakes of `causes` can be made."""

from collections.abc import Mapping

import numpy as np

from shared.config import OptimizerConfig
from shared.optimizers import Rule, clipped_layers, rule

Array = np.ndarray
Arrays = dict[str, Array]
Made = frozenset[str]
"""The names of the mistakes that are made."""


def norm_of(gradients: Mapping[str, Array]) -> float:
    """Euclidean norm over all gradients together."""
    return float(np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values())))


def clip(optimizer: OptimizerConfig, gradients: Arrays, made: Made) -> Arrays:
    """By value, by layer, by global norm, each where it is asked for."""
    before = norm_of(gradients)
    if optimizer.clip_value and "value clipping left out" not in made:
        lowest = None if "value clipping from above only" in made else -optimizer.clip_value
        gradients = {name: gradient.clip(lowest, optimizer.clip_value) for name, gradient in gradients.items()}
    if "layer clipping left out" not in made:
        for limit, names in clipped_layers(optimizer, gradients):
            whole = "layer's limit for all layers" in made
            layer = gradients if whole else {name: gradients[name] for name in names}
            gradients = gradients | scaled(layer, norm_of(layer), limit, made)
    norm = before if "norm before the other clippings" in made else norm_of(gradients)
    if not optimizer.clip_norm or "clipping left out" in made:
        return gradients
    return scaled(gradients, norm, optimizer.clip_norm, made)


def scaled(gradients: Arrays, norm: float, limit: float, made: Made) -> Arrays:
    """Scaled down to the limit where the norm is greater."""
    alone = "clipping per tensor" in made
    always = "clipping scales up too" in made
    norms = {name: norm_of({name: gradient}) if alone else norm for name, gradient in gradients.items()}
    return {name: g * limit / (norms[name] if always else max(norms[name], limit)) for name, g in gradients.items()}


def slots_of(optimizer: OptimizerConfig, parameters: Arrays, made: Made) -> Arrays:
    """Slots as they start."""
    starts = rule(optimizer).slots
    if "squares start from zero" in made:
        starts = dict.fromkeys(starts, 0.0)
    return {
        f"{slot}.{name}": np.full_like(value, start)
        for slot, start in starts.items()
        for name, value in parameters.items()
    }


def update(
    optimizer: OptimizerConfig, parameters: Arrays, gradients: Arrays, slots: Arrays, step: int, rate: float, made: Made
) -> None:
    """The update with number `step`, counted from 1, in place."""
    how = mistaken(rule(optimizer), made)
    late, early = "bias correction one step late" in made, "bias correction one step early" in made
    for name, parameter in parameters.items():
        gradient = gradients[name]
        if "decay enters the gradient" in made:
            gradient = gradient + how.weight_decay * parameter
        elif "decay left out" not in made:
            parameter *= 1 - (1 if "decay without the learning rate" in made else rate) * how.weight_decay
        if "gradient's memory scrambled" in made:
            gradient = gradient.T.reshape(gradient.shape) if name in MEMORY_TRANSPOSED else gradient
        change = direction(how, gradient, name, slots, max(step + late - early, 1), made)
        parameter -= velocity(how, change, name, slots, rate, made)


MEMORY_TRANSPOSED = ("rnn.weight_ih_l0", "rnn.residual_l0")
"""Weights that a token picks a column of: a framework's gradient of them may lie transposed in memory."""


def mistaken(how: Rule, made: Made) -> Rule:
    """The constants of the update, with those that a mistake changes."""
    for place in ("outside", "inside", "uncorrected"):
        if f"epsilon {place}" in made:
            how = how._replace(place=place)
    for name, epsilon in EPSILONS.items():
        if name in made:
            how = how._replace(epsilon=epsilon)
    if "epsilon's root" in made:
        how = how._replace(epsilon=how.epsilon**0.5)
    if "betas swapped" in made:
        how = how._replace(first=how.second, second=how.first, added=1 - how.first)
    if "rate on the other side of the velocity" in made:
        how = how._replace(rate_inside=not how.rate_inside)
    return how


EPSILONS = {"epsilon 1e-7": 1e-7, "epsilon 1e-8": 1e-8, "epsilon left out": 0.0}


def direction(how: Rule, gradient: Array, name: str, slots: Arrays, step: int, made: Made) -> Array:
    """Advance the moments of one parameter; the change that they advise."""
    if not how.square:
        return gradient
    square = slots[f"{how.square}.{name}"]
    square *= how.second
    square += how.added * gradient * gradient
    if how.mean:
        mean = slots[f"{how.mean}.{name}"]
        mean += (1 - how.first) * (gradient - mean)
    c1 = 1.0 if made & {"mean not corrected", "nothing corrected"} or not how.corrected else 1 - how.first**step
    c2 = 1.0 if made & {"squares not corrected", "nothing corrected"} or not how.corrected else 1 - how.second**step
    centered = how.centered and "mean not subtracted" not in made
    top = mean / c1 if how.corrected else gradient
    spread = np.maximum(square - mean * mean, 0) if centered else square / c2
    if "root left out" in made:
        return top / (spread + how.epsilon)
    if how.place == "inside":
        return top / np.sqrt(spread + how.epsilon)
    return top / (np.sqrt(spread) + (how.epsilon / c2**0.5 if how.place == "uncorrected" else how.epsilon))


def velocity(how: Rule, change: Array, name: str, slots: Arrays, rate: float, made: Made) -> Array:
    """Advance the velocity of one parameter, if there is one; what is subtracted from the parameter."""
    if not how.buffer:
        return rate * change
    buffer = slots[f"{how.buffer}.{name}"]
    buffer *= how.momentum
    buffer += (rate if how.rate_inside else 1) * ((1 - how.momentum) * change if "velocity damped" in made else change)
    change = (rate if how.rate_inside else 1) * change
    ahead = how.nesterov != ("nesterov's look ahead" in made)
    if ahead and "nesterov without momentum" in made:
        result = change + buffer
    elif ahead and "nesterov without velocity" in made:
        result = change
    else:
        result = change + how.momentum * buffer if ahead else buffer
    rated = how.rate_inside and "learning rate twice" not in made
    return result if rated else rate * result
