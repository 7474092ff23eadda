"""The fused engine against the cells written out, in float64: the way forward, back, every gradient, sampling."""

import numpy as np
import pytest

from impl_numpy import create_model
from impl_numpy.fused import COLUMNS, unroll_fused, unroll_fused_backward
from impl_numpy.generate import draw
from impl_numpy.loss import mean_nats_backward, token_nats
from impl_numpy.unroll import CELLS, unroll, unroll_backward
from runner.examination.cases import Design, V, make_case, small
from runner.examination.examinee import at
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError
from shared.initializers import initial_parameters
from shared.sampling import SamplingRule, sampling_uniforms

SIZES = {
    "vectors": (7, 5, 3, 6, 0),
    "wide inputs": (3, 11, 2, 5, 0),
    "one of each": (1, 1, 1, 1, 0),
    "more rows than a product takes": (2, 3, COLUMNS + 1, 3, 0),
    "several products": (2, 3, COLUMNS // 2, 5, 0),
    "few tokens": (7, 9, 3, 6, 9),
    "more tokens than gates": (2, 40, 3, 6, 40),
}
"""H, I, B, T, and V where tokens are read."""
GATES = {"lstm": 4, "gru-after": 3}
DEEP = small("lstm", embedding_size=7)
MODELS = {
    "lstm": DEEP,
    "gru": small("gru"),
    "one-hot": small("lstm", embedding_size=0),
    "activation": small("gru", embedding_activation="tanh"),
    "residual": small("lstm", residual=True, embedding_size=7),
    "residual, projected": small("gru", residual=True),
    "residual, one-hot": small("lstm", residual=True, embedding_size=0),
    "tied, dropout": small("lstm", embedding_size=7, tied_weights=True, dropout=0.3),
    "many-to-one": small("gru", many_to_one=True),
}


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", GATES)
def test_a_layer_and_its_way_back(name, sizes):
    (H, wide, B, T, tokens), G, cell = sizes, GATES[name], CELLS[name]
    numbers = np.random.default_rng(1)
    shapes = ((G * H, wide), (G * H, H), (G * H,), (H,))[: len(cell.weights._fields)]
    weights = cell.weights(*map(numbers.normal, [0] * 4, [0.7] * 4, shapes))
    state = cell.state(*(numbers.normal(size=(B, H)) for _ in cell.state._fields))
    inputs = numbers.integers(0, tokens, (T, B)) if tokens else numbers.normal(size=(T, B, wide))
    d_outputs, kept = numbers.normal(size=(T, B, H)), [each.copy() for each in (*weights, *state)]

    expected, found = (run(cell, inputs, state, weights, True) for run in (unroll, unroll_fused))
    close(found[0], expected[0])
    for pair in zip(found[1], expected[1], strict=True):
        close(*pair)
    back = unroll_backward(cell, d_outputs, inputs, state, weights, expected[2])
    for _ in range(2):  # a record may be read again
        again = unroll_fused_backward(cell, d_outputs, inputs, state, weights, found[2])
        assert (again[0] is None) == (back[0] is None) == bool(tokens)
        if not tokens:
            close(again[0], back[0])
        for pair in zip(again[1], back[1], strict=True):
            close(*pair)
        assert again[2].keys() == back[2].keys()
        for field, gradient in back[2].items():
            close(again[2][field], gradient)
    assert all(np.array_equal(*pair) for pair in zip(kept, (*weights, *state), strict=True))


def models(model, vocabulary_size=V):
    """The same model in both engines."""
    for engine in ("scratch", "fused"):
        runtime = RuntimeConfig(device="cpu", dtype="float64", engine=engine)
        made = create_model(model, OptimizerConfig(), vocabulary_size, runtime, seed=3)
        made.load_parameters(initial_parameters(model, vocabulary_size, 0))
        yield made


@pytest.mark.parametrize("vocabulary_size", [V, 100], ids=["folded embedding", "more words than places"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model(model, vocabulary_size):
    case = make_case("any", Design(model, ()))
    batch, (scratch, fused) = at(case.batches, 0), models(model, vocabulary_size)
    assert not batch.mask.all()
    start = [made.load_state(case.state) for made in (scratch, fused)]
    loss, expected, after = scratch.loss_and_gradients(batch, start[0], 5)
    found_loss, found, found_after = fused.loss_and_gradients(batch, start[1], 5)
    assert found_loss == pytest.approx(loss, rel=1e-14)
    for name, gradient in (expected.parameters | expected.initial_state | scratch.dump_state(after)).items():
        close((found.parameters | found.initial_state | fused.dump_state(found_after))[name], gradient)
    close(fused.logits(batch.tokens, start[1])[0], scratch.logits(batch.tokens, start[0])[0])
    some, rates = at(case.batches, slice(0, 8)), np.full(8, 0.01)
    steps = [made.train_steps(some, made.initial_state(3), rates) for made in (scratch, fused)]
    close(steps[1].losses, steps[0].losses)
    traces = [made.trace(batch, made.initial_state(3)) for made in models(model, vocabulary_size)]
    assert all(np.array_equal(traces[0][name], traces[1][name]) for name in traces[0])


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("written", [3, 40], ids=["vectors", "folded embedding"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_same_tokens(model, written, rows):
    prompt, lengths = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3) % V, np.arange(rows, dtype=np.int32) % 3 + 1
    given = prompt, lengths, sampling_uniforms(1, rows, written), SamplingRule(0.9)
    scratch, fused = models(model, 31)
    assert np.array_equal(fused.generate(*given), scratch.generate(*given))


@pytest.mark.parametrize("cell", ["rnn", "wrnn"])
def test_other_cells_are_refused(cell):
    with pytest.raises(ImplementationError, match=r"written for --cell lstm, .*, not for .*: use --engine auto"):
        create_model(ModelConfig(cell=cell), OptimizerConfig(), V, RuntimeConfig(device="cpu", engine="fused"))


def test_a_batch_of_padding_is_not_finite():
    model = next(models(DEEP))
    zeros = np.zeros((1, 2, 3), np.int32)
    batch = Batch(zeros, zeros, np.zeros((1, 2, 3), bool), np.ones((1, 2), bool))
    steps = model.train_steps(batch, model.initial_state(2), np.array([0.1]))
    assert np.isnan(steps.losses).all()
    assert not steps.finite.any()


@pytest.mark.parametrize("rows", [1, 7, 3000])
def test_the_loss_in_one_pass(rows):
    numbers = np.random.default_rng(2)
    logits, targets = numbers.normal(size=(rows, 13)), numbers.integers(0, 13, rows)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    nats = token_nats(logits, targets)
    count = rows + 4  # others have the rest
    loss, d_logits = mean_nats_backward(logits.copy(), targets, np.int64(count))
    assert loss == pytest.approx(nats.sum() / count, rel=1e-14)
    close(d_logits, (softmax - np.eye(13)[targets]) / count)


def test_nothing_is_sorted_unless_it_is_asked_for(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("sorted")

    for name in ("sort", "argsort", "partition", "argpartition"):
        monkeypatch.setattr(np, name, refuse)
    logits, uniforms = np.random.default_rng(0).normal(size=(3, 300)), np.array([0.0, 0.5, 0.9])
    for temperature in (0.0, 0.5, 1.0):
        assert draw(logits, uniforms, SamplingRule(temperature), np.ones(300, bool)).shape == (3,)
    for rule in (SamplingRule(1.0, 7), SamplingRule(1.0, 0, 0.9)):
        with pytest.raises(AssertionError, match="sorted"):
            draw(logits, uniforms, rule, None)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kept", [6, 4, 2])
def test_tokens_are_drawn_in_their_order_and_of_equals_the_first_are_kept(rows, kept):
    logits = np.tile([0.0, 1.0, 0.0, 1.0, -0.0, 1.0], (rows, 1))
    weights = np.where(np.isin(np.arange(6), [1, 3, 5, 0, 2, 4][:kept]), np.exp(logits[0]), 0)
    share = weights / weights.sum()
    for token in np.flatnonzero(weights):
        for uniform in (share[:token].sum() + 1e-9, share[: token + 1].sum() - 1e-9):
            drawn = draw(logits, np.full(rows, uniform), SamplingRule(1.0, kept), None)
            assert drawn.tolist() == [token] * rows
