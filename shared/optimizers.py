"""What each optimizer means, as data; the implementations' optimizer.py compute it. No array is updated here.

One update serves all. p is a parameter, g its clipped gradient, t counts the updates from 1, lr is the learning rate of
the step; what a `Rule` leaves out is skipped:

    p      -= lr weight_decay p                                     decoupled decay
    mean    = first mean + (1 - first) g                            slots exp_avg, grad_avg
    square  = second square + added g g                             slots exp_avg_sq, square_avg, sum
    c1, c2  = 1 - first^t, 1 - second^t  if corrected, else 1, 1
    top     = mean / c1  if corrected, else g
    spread  = square / c2,  max(square - mean mean, 0)  if centered
    d       = top / (sqrt(spread) + epsilon)                        epsilon outside the root
              top / sqrt(spread + epsilon)                          inside
              top / (sqrt(spread) + epsilon / sqrt(c2))             uncorrected: Keras' "epsilon hat"
              g  without squares
    d      *= lr  if rate_inside
    buffer  = momentum buffer + d                                   slot momentum_buffer
    d       = buffer,  d + momentum buffer  if nesterov
    p      -= d  if rate_inside, else lr d

Dialects differ in the places that `rule` shows and nowhere else; numbers, such as epsilon and decays, are the options'
in every dialect. Sources: torch.optim, keras.optimizers, optax; Polyak 1964, Nesterov 1983, Duchi et al. 2011, Tieleman
and Hinton 2012, Kingma and Ba 2015, Loshchilov and Hutter 2019.

Clipping, each part where it is asked for, in this order: every number to [-clip_value, clip_value]; the norm of each
layer to its limit; the norm over all parameters to clip_norm. Scaling is g * c / max(norm, c).
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from shared.config import OptimizerConfig, layer_limit
from shared.errors import ConfigError

Shapes = dict[str, tuple[int, ...]]


class Rule(NamedTuple):
    """An optimizer in a dialect: the constants of the update above."""

    mean: str = ""
    """Slot of the mean gradient; empty: none is kept."""
    square: str = ""
    """Slot of the squares; empty: none is kept."""
    buffer: str = ""
    """Slot of the velocity; empty: none is kept."""
    first: float = 0.0
    second: float = 1.0
    added: float = 1.0
    initial: float = 0.0
    """What the squares start from."""
    corrected: bool = False
    centered: bool = False
    epsilon: float = 0.0
    place: Literal["outside", "inside", "uncorrected"] = "outside"
    momentum: float = 0.0
    nesterov: bool = False
    rate_inside: bool = False
    weight_decay: float = 0.0

    @property
    def slots(self) -> dict[str, float]:
        """Slot -> what it starts from, in canonical order."""
        starts = {self.mean: 0.0, self.square: self.initial, self.buffer: 0.0}
        return {slot: start for slot, start in starts.items() if slot}


def rule(config: OptimizerConfig) -> Rule:
    """The constants that an optimizer and a dialect stand for."""
    keras, torch = config.dialect == "keras", config.dialect == "torch"
    place: Literal["outside", "inside"] = "outside" if torch else "inside"
    if config.optimizer == "sgd":
        return Rule()
    if config.optimizer in ("momentum", "nesterov"):
        nesterov = config.optimizer == "nesterov"
        return Rule(buffer="momentum_buffer", momentum=config.momentum, nesterov=nesterov, rate_inside=keras)
    if config.optimizer == "adagrad":
        return Rule(square="sum", initial=config.initial_accumulator, epsilon=config.epsilon, place=place)
    if config.optimizer == "rmsprop":
        return Rule(
            mean="grad_avg" if config.centered else "",
            square="square_avg",
            buffer="momentum_buffer" if config.rmsprop_momentum else "",
            first=config.alpha,
            second=config.alpha,
            added=1 - config.alpha,
            centered=config.centered,
            epsilon=config.epsilon,
            place=place,
            momentum=config.rmsprop_momentum,
            rate_inside=not torch,
        )
    return Rule(
        mean="exp_avg",
        square="exp_avg_sq",
        first=config.betas[0],
        second=config.betas[1],
        added=1 - config.betas[1],
        corrected=True,
        epsilon=config.epsilon,
        place="uncorrected" if keras else "outside",
        weight_decay=config.weight_decay if config.optimizer == "adamw" else 0.0,
    )


def slot_shapes(optimizer: OptimizerConfig, parameters: Shapes) -> Shapes:
    """The names "<slot>.<parameter>" and their shapes, in canonical order."""
    return {f"{slot}.{name}": shape for slot in rule(optimizer).slots for name, shape in parameters.items()}


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: embedding, l0, l1, ..., decoder."""
    part, _, field = name.partition(".")
    return field.rpartition("_")[2] if part == "rnn" else part


def clipped_layers(optimizer: OptimizerConfig, names: Iterable[str]) -> list[tuple[float, list[str]]]:
    """The norm limit of each layer that has one, and the names of its parameters; ConfigError for an unknown layer."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(layer_of(name), []).append(name)
    limits = dict(map(layer_limit, optimizer.clip_layers))
    if unknown := sorted(limits.keys() - layers.keys()):
        raise ConfigError(f"--clip-layers: no layer {', '.join(unknown)}; this model has {', '.join(layers)}.")
    return [(limit, layers[layer]) for layer, limit in limits.items()]
