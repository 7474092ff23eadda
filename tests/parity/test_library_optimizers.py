"""Every optimizer in every dialect against the dialect's own library: 50 steps, float64, a learning rate that changes,
gradients of which some are tiny and some always zero. It is NumPy that is tried here; the others agree with it."""

from dataclasses import replace

import numpy as np
import pytest

from impl_numpy.optimizer import init_slots, update
from runner.registry import import_quietly
from shared.config import OptimizerConfig

STEPS, SHAPE = 50, (5, 3)
RATES = np.where(np.arange(STEPS) < 20, 0.03125, 0.0078125)
# Keras holds Python floats in float32, so its constants are ones that float32 holds exactly.
EXACT = OptimizerConfig(
    betas=(0.875, 0.96875), alpha=0.9375, momentum=0.875, epsilon=2.0**-20, weight_decay=0.0625, clip_norm=0.0
)
VARIANTS = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "momentum"},
    "nesterov": {"optimizer": "nesterov"},
    "adagrad": {"optimizer": "adagrad", "initial_accumulator": 0.125},
    "rmsprop": {"optimizer": "rmsprop"},
    "rmsprop centered": {"optimizer": "rmsprop", "centered": True},
    "rmsprop momentum": {"optimizer": "rmsprop", "rmsprop_momentum": 0.75},
    "rmsprop centered momentum": {"optimizer": "rmsprop", "centered": True, "rmsprop_momentum": 0.75},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw"},
}


def gradients() -> np.ndarray:
    drawn = np.random.default_rng(4).normal(size=(STEPS, *SHAPE))
    drawn[:, 0] *= 1e-7
    drawn[:, 1] = 0
    return drawn


START = np.random.default_rng(5).normal(size=SHAPE)


def ours(config: OptimizerConfig) -> np.ndarray:
    parameters = {"p": START.copy()}
    slots = init_slots(config, parameters)
    for step, gradient in enumerate(gradients()):
        update(config, parameters, {"p": gradient}, slots, step, True, float(RATES[step]))
    return parameters["p"]


def torchs(config: OptimizerConfig) -> np.ndarray:
    torch = import_quietly("torch")
    parameter = torch.nn.Parameter(torch.tensor(START))
    momentum = config.rmsprop_momentum if config.optimizer == "rmsprop" else config.momentum
    made = {
        "sgd": lambda: torch.optim.SGD([parameter], 1.0),
        "momentum": lambda: torch.optim.SGD([parameter], 1.0, momentum=momentum),
        "nesterov": lambda: torch.optim.SGD([parameter], 1.0, momentum=momentum, nesterov=True),
        "adagrad": lambda: torch.optim.Adagrad(
            [parameter], 1.0, eps=config.epsilon, initial_accumulator_value=config.initial_accumulator
        ),
        "rmsprop": lambda: torch.optim.RMSprop(
            [parameter], 1.0, config.alpha, config.epsilon, momentum=momentum, centered=config.centered
        ),
        "adam": lambda: torch.optim.Adam([parameter], 1.0, config.betas, config.epsilon),
        "adamw": lambda: torch.optim.AdamW([parameter], 1.0, config.betas, config.epsilon, config.weight_decay),
    }[config.optimizer]()
    for rate, gradient in zip(RATES, gradients(), strict=True):
        made.param_groups[0]["lr"] = float(rate)
        parameter.grad = torch.tensor(gradient)
        made.step()
    return parameter.detach().numpy()


def optaxs(config: OptimizerConfig) -> np.ndarray:
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_enable_x64", True)

    def schedule(step):
        return jnp.asarray(RATES)[step]

    momentum = config.rmsprop_momentum or None
    made = {
        "sgd": lambda: optax.sgd(schedule),
        "momentum": lambda: optax.sgd(schedule, config.momentum),
        "nesterov": lambda: optax.sgd(schedule, config.momentum, nesterov=True),
        "adagrad": lambda: optax.adagrad(schedule, config.initial_accumulator, config.epsilon),
        "rmsprop": lambda: optax.rmsprop(
            schedule, config.alpha, config.epsilon, centered=config.centered, momentum=momentum
        ),
        "adam": lambda: optax.adam(schedule, *config.betas, eps=config.epsilon),
        "adamw": lambda: optax.adamw(schedule, *config.betas, eps=config.epsilon, weight_decay=config.weight_decay),
    }[config.optimizer]()
    parameter = jnp.asarray(START)
    state = made.init(parameter)
    for gradient in gradients():
        change, state = made.update(jnp.asarray(gradient), state, parameter)
        parameter = optax.apply_updates(parameter, change)
    return np.asarray(parameter)


def kerass(config: OptimizerConfig) -> np.ndarray:
    keras = import_quietly("keras")
    import tensorflow as tf

    beta1, beta2 = config.betas
    momentum = config.rmsprop_momentum if config.optimizer == "rmsprop" else config.momentum
    made = {
        "sgd": lambda: keras.optimizers.SGD(1.0),
        "momentum": lambda: keras.optimizers.SGD(1.0, momentum),
        "nesterov": lambda: keras.optimizers.SGD(1.0, momentum, nesterov=True),
        "adagrad": lambda: keras.optimizers.Adagrad(1.0, config.initial_accumulator, config.epsilon),
        "rmsprop": lambda: keras.optimizers.RMSprop(
            1.0, config.alpha, momentum, config.epsilon, centered=config.centered
        ),
        "adam": lambda: keras.optimizers.Adam(1.0, beta1, beta2, config.epsilon),
        "adamw": lambda: keras.optimizers.AdamW(1.0, config.weight_decay, beta1, beta2, config.epsilon),
    }[config.optimizer]()
    parameter = keras.Variable(START, dtype="float64")
    for rate, gradient in zip(RATES, gradients(), strict=True):
        made.learning_rate = float(rate)
        made.apply([tf.constant(gradient)], [parameter])
    return np.asarray(parameter)


LIBRARIES = {"torch": torchs, "optax": optaxs, "keras": kerass}


@pytest.mark.parametrize("dialect", LIBRARIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_dialect_is_its_library(dialect, variant):
    config = replace(EXACT, dialect=dialect, **VARIANTS[variant])
    expected = LIBRARIES[dialect](config)
    assert np.isfinite(expected).all()
    # Moved, not absolute: what a parameter was is no merit of the optimizer.
    moved = np.abs(expected - START).max()
    assert np.abs(ours(config) - expected).max() / moved <= 1e-12
