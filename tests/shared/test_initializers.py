"""Initial values: bounds, variances, fans, orthogonality, and that each depends on nothing it does not concern."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from shared.config import Cell, Initializer, ModelConfig
from shared.initializers import INITIALIZERS, initial_parameters, orthonormal
from shared.parameters import GATES, parameter_shapes

V, H, E = 11, 48, 20
ROOT = Path(__file__).parents[2]


def model(**options):
    return ModelConfig(**{"hidden_size": H, "embedding_size": E, "num_layers": 2, **options})


def values(seed=0, vocabulary_size=V, **options):
    return initial_parameters(model(**options), vocabulary_size, seed)


def gates(weight):
    return weight.reshape(-1, H, weight.shape[1])


def fills(weight, bound):
    """Whether the numbers are uniform in [-bound, bound], by largest magnitude and variance."""
    spread = 4 / np.sqrt(weight.size)
    near = 1 - 12 / weight.size
    return near * bound < np.abs(weight).max() <= bound and abs(weight.std() / (bound / np.sqrt(3)) - 1) < spread


def is_identity(product):
    return np.allclose(product, np.eye(product.shape[-1]), rtol=0, atol=1e-13)


def test_every_initializer_that_can_be_asked_for_is_there():
    assert set(INITIALIZERS) == set(get_args(Initializer))


@pytest.mark.parametrize("initializer", get_args(Initializer))
@pytest.mark.parametrize("cell", get_args(Cell))
def test_every_parameter_of_every_cell_gets_finite_values(initializer, cell):
    for more in ({}, {"embedding_size": 0}, {"gru_reset": "before"} if cell == "gru" else {"residual": True}):
        found = values(initializer=initializer, cell=cell, **more)
        shapes = parameter_shapes(model(cell=cell, **more), V)
        assert {name: value.shape for name, value in found.items()} == shapes
        assert all(value.dtype == np.float64 and np.isfinite(value).all() for value in found.values())
        random = [name for name, value in found.items() if value.ndim == 2 and value.std() > 0]
        assert random == [name for name, shape in shapes.items() if len(shape) == 2 and initializer != "zero"]


def test_uniform_fills_its_bounds():
    found = values()
    for name, value in found.items():
        if name != "embedding.weight":
            assert np.abs(value).max() <= 1 / np.sqrt(H)
            assert np.abs(value).max() > 0.7 / np.sqrt(H)
    assert fills(found["rnn.weight_hh_l0"], 1 / np.sqrt(H))
    assert found["embedding.weight"].std() == pytest.approx(0.1, rel=0.15)


def test_normal_is_small_and_has_no_biases():
    found = values(initializer="normal")
    assert found["rnn.weight_hh_l0"].std() == pytest.approx(0.01, rel=0.02)
    assert not found["rnn.bias_l0"].any()


def test_xavier_counts_each_gate_alone():
    found = values(initializer="xavier")
    assert fills(found["rnn.weight_ih_l0"], np.sqrt(6 / (E + H)))
    assert fills(found["rnn.weight_ih_l1"], np.sqrt(6 / (H + H)))
    assert fills(found["decoder.weight"], np.sqrt(6 / (H + V)))
    assert not found["decoder.bias"].any()


def test_kaiming_counts_what_comes_in():
    found = values(initializer="kaiming")
    assert fills(found["embedding.weight"], np.sqrt(6 / E))
    assert fills(found["rnn.weight_ih_l0"], np.sqrt(6 / E))
    assert fills(found["rnn.weight_ih_l1"], np.sqrt(6 / H))
    assert fills(found["rnn.weight_hh_l0"], np.sqrt(6 / H))
    assert fills(found["decoder.weight"], np.sqrt(6 / H))
    assert not found["rnn.bias_l1"].any()


@pytest.mark.parametrize("initializer", ["orthogonal", "flax"])
@pytest.mark.parametrize("cell", get_args(Cell))
def test_every_gate_alone_is_orthogonal(initializer, cell):
    found = values(initializer=initializer, cell=cell)
    names = [f"rnn.{field}_l1" for field in ("weight_hh", "weight_skip", "weight_bb")]
    for each in (found[name] for name in names if name in found):
        blocks = gates(each)
        assert len(blocks) == GATES[cell]
        assert is_identity(blocks @ blocks.swapaxes(1, 2))
        assert len({block.tobytes() for block in blocks}) == len(blocks)


@pytest.mark.parametrize(("embedding", "vocabulary"), [(E, V), (H + 9, 3 * H)])
def test_the_shorter_side_of_a_rectangle_is_orthonormal(embedding, vocabulary):
    found = values(initializer="orthogonal", embedding_size=embedding, vocabulary_size=vocabulary)
    blocks = gates(found["rnn.weight_ih_l0"])
    wide = embedding > H
    assert is_identity(blocks @ blocks.swapaxes(1, 2) if wide else blocks.swapaxes(1, 2) @ blocks)
    decoder = found["decoder.weight"]  # one block, also where V is a multiple of H
    assert is_identity(decoder @ decoder.T if vocabulary < H else decoder.T @ decoder)


def test_orthogonal_matrices_are_uniformly_distributed():
    """Every entry and the trace have mean zero: without the sign of R's diagonal they have not."""
    blocks = np.concatenate([gates(values(seed, initializer="orthogonal")["rnn.weight_hh_l0"]) for seed in range(100)])
    assert abs(np.trace(blocks, axis1=1, axis2=2).mean()) < 4 / np.sqrt(len(blocks))
    assert abs(blocks[:, 0, 0].mean()) < 4 / np.sqrt(H * len(blocks))


def test_torchs_gru_keeps_two_biases_apart_in_its_candidate():
    """Variance of a uniform [-b, b]: b^2 / 3; of a sum of two: twice that."""
    one = 1 / (3 * 400)
    found = initial_parameters(ModelConfig(cell="gru", hidden_size=400, initializer="torch"), V, 0)
    variances = found["rnn.bias_l0"].reshape(3, 400).var(1) / one
    assert variances == pytest.approx([2, 2, 1], rel=0.25)
    assert fills(found["rnn.bias_hn_l0"], 1 / np.sqrt(400))
    before = ModelConfig(cell="gru", gru_reset="before", hidden_size=400, initializer="torch")
    variances = initial_parameters(before, V, 0)["rnn.bias_l0"].reshape(3, 400).var(1) / one
    assert variances == pytest.approx([2, 2, 2], rel=0.25)


def test_kerass_fans_and_orthogonality_are_those_of_all_gates_together():
    found = values(initializer="keras")
    assert fills(found["rnn.weight_ih_l0"], np.sqrt(6 / (E + 4 * H)))
    stack = found["rnn.weight_hh_l0"]
    assert is_identity(stack.T @ stack)
    assert not is_identity(gates(stack)[0].T @ gates(stack)[0])
    assert np.array_equal(found["rnn.bias_l0"], np.repeat([0.0, 1.0, 0.0, 0.0], H))
    assert not values(initializer="keras", cell="gru")["rnn.bias_l0"].any()


def test_flax_cuts_its_normals_and_scales_them_back():
    found = values(initializer="flax", vocabulary_size=300)
    cut = 2 / 0.87962566103423978
    for name, fan_in in (("rnn.weight_ih_l0", E), ("rnn.weight_ih_l1", H), ("decoder.weight", H)):
        scaled = found[name] * np.sqrt(fan_in)
        assert 0.99 * cut < np.abs(scaled).max() <= cut
        assert scaled.std() == pytest.approx(1, rel=0.03)
    assert np.abs(found["embedding.weight"]).max() > cut / np.sqrt(E)
    assert found["embedding.weight"].std() == pytest.approx(1 / np.sqrt(E), rel=0.05)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 30_000])
def test_truncated_draws_never_run_out(size):
    found = initial_parameters(ModelConfig(hidden_size=1, initializer="flax"), size, 4)
    assert found["decoder.weight"].shape == (size, 1)


@pytest.mark.parametrize(
    ("initializer", "bound"),
    [("torch", E**-0.5), ("keras", (6 / (E + H)) ** 0.5), ("kaiming", (6 / E) ** 0.5), ("uniform", H**-0.5)],
)
def test_residual_projections_are_dense_layers(initializer, bound):
    found = values(initializer=initializer, residual=True)
    assert fills(found["rnn.residual_l0"], bound)


@pytest.mark.parametrize("initializer", get_args(Initializer))
def test_the_forget_bias_is_added_to_the_forget_gate_alone(initializer):
    without, changed = (values(initializer=initializer, forget_bias=bias) for bias in (0.0, 1.5))
    for name, value in changed.items():
        expected = without[name].copy()
        if name in ("rnn.bias_l0", "rnn.bias_l1"):
            expected[H : 2 * H] += 1.5
        assert np.array_equal(value, expected), name


@pytest.mark.parametrize("initializer", sorted(set(get_args(Initializer)) - {"zero"}))
def test_values_depend_on_seed_and_name_alone(initializer):
    first, again, other = (values(seed, initializer=initializer) for seed in (5, 5, 6))
    weights = [name for name, value in first.items() if value.ndim == 2]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in weights)
    one_layer = values(5, initializer=initializer, num_layers=1)
    assert np.array_equal(one_layer["decoder.weight"], first["decoder.weight"])
    assert not np.array_equal(first["rnn.weight_hh_l0"], first["rnn.weight_hh_l1"])


def test_values_do_not_depend_on_the_number_of_threads():
    """OpenBLAS splits some sums of a long and narrow factorisation among its threads."""
    code = (
        "from shared.config import ModelConfig as M; from shared.initializers import initial_parameters as p\n"
        "import hashlib; v = p(M(hidden_size=50, embedding_size=50, initializer='orthogonal'), 20_000, 1)\n"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in v.values())).hexdigest())"
    )
    threads = ({"OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n} for n in ("1", "2"))
    settings = ({**os.environ, "PYTHONPATH": str(ROOT), **each} for each in threads)
    shown = {subprocess.check_output([sys.executable, "-c", code], env=each, text=True) for each in settings}
    assert len(shown) == 1


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7)])
def test_orthonormal_is_the_one_factor_of_what_was_drawn(shape):
    """Of a stack, or lying on its side, it is Q of the QR factorisation whose R has a positive diagonal: no other draw
    of the same distribution, since runs are repeated by it."""
    drawn = np.random.default_rng(5).normal(size=shape)
    factor, whole = orthonormal(drawn), drawn
    if shape[0] < shape[1]:
        factor, whole = factor.T, drawn.T
    right = factor.T @ whole
    assert np.abs(np.tril(right, -1)).max() < 1e-14
    assert np.diagonal(right).min() > 0
