"""The WRNN's backward pass as it was once published, kept here alone to show how far off it was: the derivative of tanh
on sigmoid units, and nothing carried through time. (That ours is right, finite differences say: test_gradients.py.)"""

import numpy as np
import pytest

from impl_numpy import create_model
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.parameters import parameter_shapes

T, V, H = 25, 30, 20
HIDDEN = ("weight_ih", "weight_hh", "bias", "weight_ab", "weight_skip", "weight_bb", "bias_b")


def published(parameters, tokens, targets, states):
    """Gradients of the mean loss, the published way; states: a and b [T, H], logits [T, V]."""
    found = {name: np.zeros_like(value) for name, value in parameters.items()}
    weight = {name: parameters[f"rnn.{name}_l0"] for name in HIDDEN}
    a, b, logits = states
    for t in range(T):
        before_a, before_b = (a[t - 1], b[t - 1]) if t else (np.zeros(H), np.zeros(H))
        d_z = np.exp(logits[t] - logits[t].max())
        d_z /= d_z.sum()
        d_z[targets[t]] -= 1
        d_z /= T
        d_b = (parameters["decoder.weight"].T @ d_z) * (1 - b[t] ** 2)
        d_a = (weight["weight_ab"].T @ d_b) * (1 - a[t] ** 2)
        found["decoder.weight"] += np.outer(d_z, b[t])
        found["decoder.bias"] += d_z
        found["rnn.weight_ih_l0"][:, tokens[t]] += d_a
        for name, change in {
            "weight_hh": np.outer(d_a, before_a),
            "bias": d_a,
            "weight_ab": np.outer(d_b, a[t]),
            "weight_skip": np.outer(d_b, before_a),
            "weight_bb": np.outer(d_b, before_b),
            "bias_b": d_b,
        }.items():
            found[f"rnn.{name}_l0"] += change
    return found


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.3, 0.5])
def test_the_published_gradient_is_far_off(scale):
    config, random = ModelConfig(cell="wrnn", hidden_size=H, embedding_size=0), np.random.default_rng(1)
    model = create_model(config, OptimizerConfig(), V, RuntimeConfig(device="cpu", dtype="float64"))
    parameters = {name: random.normal(0, scale, shape) for name, shape in parameter_shapes(config, V).items()}
    model.load_parameters(parameters)
    tokens, targets = (random.integers(0, V, (1, T)).astype(np.int32) for _ in range(2))
    batch = Batch(tokens, targets, np.ones((1, T), bool), np.array([True]))
    _, right, _ = model.loss_and_gradients(batch, model.initial_state(1))
    trace = model.trace(batch, model.initial_state(1))
    states = [trace[name][0] for name in ("first_l0", "hidden_l0", "logits")]
    wrong = published(parameters, tokens[0], targets[0], states)
    for name in ("decoder.weight", "decoder.bias"):
        np.testing.assert_allclose(wrong[name], right.parameters[name], rtol=0, atol=1e-14)
    both = [np.concatenate([each[f"rnn.{name}_l0"].ravel() for name in HIDDEN]) for each in (wrong, right.parameters)]
    assert np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1]) > 1.5
