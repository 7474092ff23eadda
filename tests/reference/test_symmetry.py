"""Zero weights never break symmetry: hidden units that begin alike get the same gradient and stay alike for ever."""

from typing import get_args

import numpy as np
import pytest

from runner.registry import create_model
from shared.config import Cell, ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.initializers import initial_parameters

B, T, V, E, H, K = 3, 5, 9, 4, 6, 40


def train(cell, initializer):
    """The parameters after K steps on one batch, from these initial values, and the last loss."""
    config = ModelConfig(cell=cell, hidden_size=H, embedding_size=E, initializer=initializer)
    model = create_model("numpy", config, OptimizerConfig(), V, RuntimeConfig(device="cpu", dtype="float64"))
    model.load_parameters(initial_parameters(config, V, seed=2))
    tokens = np.random.default_rng(4).integers(0, V, (B, T + 1)).astype(np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones((B, T), bool), np.ones(B, bool))
    batches = Batch(*(np.stack([each] * K) for each in batch))
    steps = model.train_steps(batches, model.initial_state(B), np.full(K, 0.02))
    return model.dump_parameters(), steps.losses[-1]


def unlike(parameters):
    """The largest difference between any two hidden units, by what they read and by what reads them."""
    rows = parameters["rnn.weight_ih_l0"].reshape(-1, H, E)
    return max(np.ptp(rows, axis=1).max(), np.ptp(parameters["decoder.weight"], axis=1).max())


@pytest.mark.parametrize("cell", get_args(Cell))
def test_zero_weights_never_break_symmetry(cell):
    zero, loss = train(cell, "zero")
    assert unlike(zero) < 1e-12  # products may round each column in their own way
    assert not zero["embedding.weight"].any()  # what is read never matters
    assert not zero["rnn.weight_ih_l0"].any()
    assert zero["decoder.bias"].any()
    random, better = train(cell, "orthogonal")
    assert unlike(random) > 0.1
    assert better < 0.8 * loss
