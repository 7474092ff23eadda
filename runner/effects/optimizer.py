"""Effects of clipping and of optimizers: the formulas as their libraries write them, and not by shared.optimizers; for
each difference a function that returns how large it is before the option that settles it, and after it.
`runner.differences` has the table of them; `model` measures all else.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from runner.effects.fixtures import (
    STEPS,
    Array,
    Arrays,
    Clip,
    E,
    Effect,
    V,
    apart,
    batches,
    by_hand,
    distance,
    relative,
    settled,
    trained,
)
from runner.registry import import_quietly
from shared.config import OptimizerConfig
from shared.random_bits import normals

# Clipping.


def norm_of(arrays: Mapping[str, Array]) -> float:
    return float(np.sqrt(sum(np.square(each).sum() for each in arrays.values())))


def descend(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    return p - lr * g


def clipped_otherwise(clip: Clip, limit: float) -> Effect:
    """Plain descent with another clipping than g c / max(norm, c), and with that one."""
    ours = trained(OptimizerConfig(optimizer="sgd", clip_norm=limit), 0.5)

    def contract(gradients: Arrays) -> Arrays:
        return {name: g * limit / max(norm_of(gradients), limit) for name, g in gradients.items()}

    return distance(by_hand(descend, 0.5, clip), ours), distance(by_hand(descend, 0.5, contract), ours)


def torch_clipping() -> Effect:
    def clip(gradients: Arrays) -> Arrays:
        return {name: g * min(1, 0.1 / (norm_of(gradients) + 1e-6)) for name, g in gradients.items()}

    return clipped_otherwise(clip, 0.1)


def keras_clipnorm() -> Effect:
    def clip(gradients: Arrays) -> Arrays:
        return {name: g * 0.1 / max(norm_of({name: g}), 0.1) for name, g in gradients.items()}

    return clipped_otherwise(clip, 0.1)


def gathered_rows() -> Effect:
    """TensorFlow's global_norm of a table's gradient, a row for each occurrence, and made dense."""
    tf = import_quietly("tensorflow")
    table = tf.Variable(normals(8, "table", V * E).reshape(V, E))
    with tf.GradientTape() as tape:
        vectors = tf.gather(table, batches().tokens[0])
        loss = tf.reduce_sum(vectors * vectors)
    gradient = tape.gradient(loss, table)
    counts = np.bincount(batches().tokens[0].ravel(), minlength=V)
    right = norm_of({"": 2 * table.numpy() * counts[:, None]})
    found = [float(tf.linalg.global_norm([each])) for each in (gradient, tf.convert_to_tensor(gradient))]
    return relative(found[0], right), relative(found[1], right)


# Optimizers: the formulas as their libraries write them.

MU, RHO, B1, B2, TINY = 0.9, 0.99, 0.9, 0.999, 1e-8


def keras_momentum(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    slots["v"] = MU * slots.get("v", 0) - lr * g
    return np.asarray(p + slots["v"])


def keras_nesterov(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    slots["v"] = MU * slots.get("v", 0) - lr * g
    return np.asarray(p + MU * slots["v"] - lr * g)


def keras_rmsprop(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    slots["s"] = RHO * slots.get("s", 0) + (1 - RHO) * g**2
    return np.asarray(p - lr * g / np.sqrt(slots["s"] + TINY))


def optax_rmsprop_momentum(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    slots["s"] = RHO * slots.get("s", 0) + (1 - RHO) * g**2
    slots["v"] = MU * slots.get("v", 0) + lr * g / np.sqrt(slots["s"] + TINY)
    return np.asarray(p - slots["v"])


def keras_adagrad(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    slots["s"] = slots.get("s", 0.1) + g**2
    return np.asarray(p - lr * g / np.sqrt(slots["s"] + TINY))


def adam_moments(g: Array, slots: dict[str, Any], b1: float = B1, b2: float = B2) -> tuple[Any, Any]:
    slots["m"] = b1 * slots.get("m", 0) + (1 - b1) * g
    slots["s"] = b2 * slots.get("s", 0) + (1 - b2) * g**2
    return slots["m"], slots["s"]


def keras_adam(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    m, s = adam_moments(g, slots)
    return np.asarray(p - lr * np.sqrt(1 - B2**t) / (1 - B1**t) * m / (np.sqrt(s) + TINY))


def torch_adam(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float, epsilon: float = TINY) -> Array:
    m, s = adam_moments(g, slots)
    return np.asarray(p - lr * (m / (1 - B1**t)) / (np.sqrt(s / (1 - B2**t)) + epsilon))


def decoupled(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    """AdamW."""
    return torch_adam(p * (1 - lr * 0.01), g, slots, t, lr)


def float32_adam(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
    """Adam with constants that were rounded to float32 on the way."""
    b1, b2 = float(np.float32(B1)), float(np.float32(B2))
    m, s = adam_moments(g, slots, b1, b2)
    return np.asarray(p - lr * (m / (1 - b1**t)) / (np.sqrt(s / (1 - b2**t)) + TINY))


def unclipped(**options: Any) -> OptimizerConfig:
    return OptimizerConfig(clip_norm=0, **options)


def momentum_rate() -> Effect:
    usual = unclipped(optimizer="momentum")
    return settled(keras_momentum, 0.1, usual, unclipped(optimizer="momentum", dialect="keras"))


def nesterov_rate() -> Effect:
    usual = unclipped(optimizer="nesterov")
    return settled(keras_nesterov, 0.1, usual, unclipped(optimizer="nesterov", dialect="keras"))


def rmsprop_epsilon() -> Effect:
    usual = unclipped(optimizer="rmsprop")
    return settled(keras_rmsprop, 2e-3, usual, unclipped(optimizer="rmsprop", dialect="keras"))


def rmsprop_momentum() -> Effect:
    """The epsilon is inside the root in optax, too: so before the option both differences act."""
    usual = unclipped(optimizer="rmsprop", rmsprop_momentum=MU)
    option = unclipped(optimizer="rmsprop", rmsprop_momentum=MU, dialect="optax")
    return settled(optax_rmsprop_momentum, 1e-3, usual, option)


def rmsprop_decay() -> Effect:
    """Defaults: 0.99 in PyTorch, 0.9 in Keras and optax."""

    def keras_default(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
        slots["s"] = 0.9 * slots.get("s", 0) + (1 - 0.9) * g**2
        return np.asarray(p - lr * g / (np.sqrt(slots["s"]) + TINY))

    usual = unclipped(optimizer="rmsprop")
    return settled(keras_default, 2e-3, usual, unclipped(optimizer="rmsprop", alpha=0.9))


def adagrad_start() -> Effect:
    """Defaults: 0 in PyTorch, 0.1 in Keras and optax, whose epsilon is inside the root."""
    option = unclipped(optimizer="adagrad", initial_accumulator=0.1, dialect="keras")
    return settled(keras_adagrad, 0.05, unclipped(optimizer="adagrad"), option)


def adam_epsilon() -> Effect:
    return settled(keras_adam, 2e-3, unclipped(), unclipped(dialect="keras"))


def adam_default_epsilon() -> Effect:
    """Defaults: 1e-8 in PyTorch and optax, 1e-7 in Keras."""

    def larger(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
        return torch_adam(p, g, slots, t, lr, 1e-7)

    return settled(larger, 2e-3, unclipped(), unclipped(epsilon=1e-7))


def adamw_decay() -> Effect:
    """Defaults: 0.01 in PyTorch, 0.0001 in optax, 0.004 in Keras; ours against Adam's without decay is the scale."""
    option = unclipped(optimizer="adamw", weight_decay=0.01)
    return settled(decoupled, 2e-3, unclipped(optimizer="adamw", weight_decay=0.004), option)


def coupled_decay() -> Effect:
    """torch.optim.Adam(weight_decay=) adds it to the gradient; AdamW, and Keras' weight_decay=, to the update."""

    def in_gradient(p: Array, g: Array, slots: dict[str, Any], t: int, lr: float) -> Array:
        return torch_adam(p, g + 0.01 * p, slots, t, lr)

    option = trained(unclipped(optimizer="adamw"), 2e-3)
    return distance(by_hand(in_gradient, 2e-3), option), distance(by_hand(decoupled, 2e-3), option)


def rounded_constants() -> Effect:
    """Constants rounded to float32, and as they are."""
    ours = trained(unclipped(), 2e-3)
    return distance(by_hand(float32_adam, 2e-3), ours), distance(by_hand(torch_adam, 2e-3), ours)


def keras_constants() -> Effect:
    """keras.optimizers.SGD in float64, with a momentum of 0.9 and with one that float32 holds exactly."""
    keras = import_quietly("keras")
    keras.config.set_floatx("float64")
    found = []
    for momentum in (0.9, 0.875):
        variable = keras.Variable(np.zeros(5), dtype="float64")
        optimizer, velocity, truth = keras.optimizers.SGD(0.125, momentum=momentum), np.zeros(5), np.zeros(5)
        optimizer.build([variable])
        for gradient in normals(11, "constants", STEPS * 5).reshape(STEPS, 5):
            optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype="float64")])
            velocity = momentum * velocity - 0.125 * gradient
            truth = truth + velocity
        found.append(apart(np.asarray(variable), truth))
    return found[0], found[1]
