"""The sets `torch`, `keras` and `flax` against those libraries' own layers: the same distribution, block by block. Each
block is compared by mean, standard deviation, largest magnitude and singular values; sizes differ on every axis."""

from functools import cache

import numpy as np
import pytest

from shared.config import ModelConfig
from shared.initializers import initial_parameters

V, H, E = 331, 160, 96
CELLS = ("rnn", "lstm", "gru")


def torch_layers(cell):
    """Canonical parameters as torch.nn's layers draw them."""
    import torch

    torch.manual_seed(1)
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    embedding, recurrent, dense = torch.nn.Embedding(V, E), kind(E, H, num_layers=2), torch.nn.Linear(H, V)
    found = {"embedding.weight": embedding.weight, "decoder.weight": dense.weight, "decoder.bias": dense.bias}
    for layer in range(2):
        ih, hh, b_ih, b_hh = (
            getattr(recurrent, f"{name}_l{layer}").detach().clone()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if cell == "gru":
            found[f"rnn.bias_hn_l{layer}"] = b_hh[2 * H :].clone()
            b_hh[2 * H :] = 0
        found |= {f"rnn.weight_ih_l{layer}": ih, f"rnn.weight_hh_l{layer}": hh, f"rnn.bias_l{layer}": b_ih + b_hh}
    return {name: value.detach().numpy() for name, value in found.items()}


def keras_layers(cell):
    """As Keras' layers draw them; its gru stacks z r n, which are drawn alike."""
    import keras

    keras.utils.set_random_seed(1)
    kind = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[cell]
    embedding, dense = keras.layers.Embedding(V, E), keras.layers.Dense(V)
    embedding.build(None)
    dense.build((1, H))
    kernel, bias = dense.get_weights()
    found = {"embedding.weight": embedding.get_weights()[0], "decoder.weight": kernel.T, "decoder.bias": bias}
    for layer, inputs in enumerate((E, H)):
        recurrent = kind(H)
        recurrent.build((1, 1, inputs))
        ih, hh, bias = recurrent.get_weights()
        if cell == "gru":
            bias, found[f"rnn.bias_hn_l{layer}"] = bias[0], bias[1][2 * H :]
        found |= {f"rnn.weight_ih_l{layer}": ih.T, f"rnn.weight_hh_l{layer}": hh.T, f"rnn.bias_l{layer}": bias}
    return found


def flax_layers(cell):
    """As flax.linen's layers draw them; the lstm's biases stand at the recurrent kernels, others' at the input's."""
    import jax
    from flax import linen

    def drawn(layer, seed, *inputs):
        return jax.device_get(layer.init(jax.random.key(seed), *inputs)["params"])

    embedding = drawn(linen.Embed(V, E), 1, np.zeros(1, np.int32))["embedding"]
    dense = drawn(linen.Dense(V), 2, np.zeros((1, H)))
    found = {"embedding.weight": embedding, "decoder.weight": dense["kernel"].T, "decoder.bias": dense["bias"]}
    kind = {"rnn": linen.SimpleCell, "lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell}[cell]
    for layer, inputs in enumerate((E, H)):
        carry = (np.zeros((1, H)),) * 2 if cell == "lstm" else np.zeros((1, H))
        parts = drawn(kind(H), 3 + layer, carry, np.zeros((1, inputs)))
        of_input = {"rnn": "i", "lstm": ("ii", "if", "ig", "io"), "gru": ("ir", "iz", "in")}[cell]
        of_hidden = {"rnn": "h", "lstm": ("hi", "hf", "hg", "ho"), "gru": ("hr", "hz", "hn")}[cell]
        found[f"rnn.weight_ih_l{layer}"] = np.concatenate([parts[name]["kernel"].T for name in of_input])
        found[f"rnn.weight_hh_l{layer}"] = np.concatenate([parts[name]["kernel"].T for name in of_hidden])
        with_bias = of_hidden if cell == "lstm" else of_input
        found[f"rnn.bias_l{layer}"] = np.concatenate([parts[name]["bias"] for name in with_bias])
        if cell == "gru":
            found[f"rnn.bias_hn_l{layer}"] = parts["hn"]["bias"]
    return found


LAYERS = {"torch": cache(torch_layers), "keras": cache(keras_layers), "flax": cache(flax_layers)}


def blocks(name, value):
    """The gates of a recurrent layer's parameter; other parameters whole."""
    return value.reshape(-1, H, *value.shape[1:]) if name.startswith("rnn.") else value[None]


def excess(sample):
    """E[x^4] / E[x^2]^2: 1.8 for a uniform, 2.4 for a sum of two, 2.37 for a normal cut at 2, 3 for a normal."""
    return (sample**4).mean() / (sample**2).mean() ** 2


def assert_same_distribution(ours, theirs):
    """Two samples of n numbers each: mean and deviation within 5 standard errors of a difference, sqrt(2/n) for the
    mean in deviations and at most 1/sqrt(n) for the deviation; the fourth moment, whose error is below 10/sqrt(n)."""
    ours, theirs = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
    error, scale = 1 / np.sqrt(ours.size), theirs.std()
    if scale == 0:
        assert np.array_equal(ours, theirs)
        return
    assert abs(ours.mean() - theirs.mean()) < 5 * np.sqrt(2) * error * scale
    assert abs(ours.std() / scale - 1) < 5 * error
    assert abs(excess(ours) - excess(theirs)) < 25 * error
    if excess(theirs) < 1.85:  # a uniform's largest of n lies within 12 / n of its bound
        assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=12 / ours.size)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("library", LAYERS)
def test_default_layers_are_reproduced_in_distribution(library, cell):
    theirs = LAYERS[library](cell)
    model = ModelConfig(cell=cell, hidden_size=H, embedding_size=E, num_layers=2, initializer=library)
    ours = initial_parameters(model, V, 7)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    for name, value in ours.items():
        for mine, other in zip(blocks(name, value), blocks(name, theirs[name]), strict=True):
            assert_same_distribution(mine, other)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("library", LAYERS)
def test_recurrent_weights_have_the_singular_values_of_the_library(library, cell):
    """Each gate alone and the whole stack: what tells flax' orthogonal gates from Keras' orthogonal stack."""
    theirs = LAYERS[library](cell)["rnn.weight_hh_l1"]
    model = ModelConfig(cell=cell, hidden_size=H, embedding_size=E, num_layers=2, initializer=library)
    ours = initial_parameters(model, V, 7)["rnn.weight_hh_l1"]
    for mine, other in ((ours, theirs), *zip(blocks("rnn.", ours), blocks("rnn.", theirs), strict=True)):
        ours_, theirs_ = (np.linalg.svd(each.astype(np.float64), compute_uv=False) for each in (mine, other))
        assert ours_ == pytest.approx(theirs_, abs=0.12 * theirs_.max() if theirs_.std() > 1e-5 else 1e-5)
