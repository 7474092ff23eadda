"""No logits are computed of masked positions, and nothing else changes: against NumPy, whatever the mask."""

import importlib

import numpy as np
import pytest

from runner.registry import create_model
from shared.batching import unmasked_rows
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError
from shared.parameters import parameter_shapes, state_shapes

B, T, V, H = 3, 16, 11, 6
PLAIN, TIED = {"embedding_size": 4}, {"embedding_size": H, "tied_weights": True}
CASES = {
    "a row all padding": ("scratch", PLAIN, [(9, 0, 5), (9, 0, 5), (9, 0, 5)]),
    "of each batch another": ("fused", TIED, [(1, 0, 2), (16, 4, 7), (3, 12, 1)]),
    "of one batch none": ("native", PLAIN, [(1, 0, 2), (16, 16, 16), (3, 12, 1)]),
    "the longest rows first": ("fused", TIED, [(16, 9, 4), (12, 5, 0), (16, 16, 2)]),
    "the longest first, two layers": ("fused", {**PLAIN, "num_layers": 2}, [(11, 11, 1), (3, 0, 0), (16, 8, 8)]),
    "the longest first, gru": ("fused", {**PLAIN, "cell": "gru"}, [(16, 9, 4), (12, 5, 0), (16, 16, 2)]),
    "one prediction a row, the longest first": (
        "fused",
        {**PLAIN, "many_to_one": True},
        [(16, 2, 1), (9, 7, 0), (3, 3, 3)],
    ),
    "one prediction a row": ("fused", {**PLAIN, "many_to_one": True}, [(1, 0, 2), (16, 4, 7), (3, 12, 1)]),
}
"""Engine, model, and the unmasked steps of each row, of each batch of a stack."""


def make(impl, engine="scratch", **options):
    """A model, and a state to start from; skipped where the engine has no such thing."""
    config = ModelConfig(**{"hidden_size": H, "embedding_size": 4} | options)
    try:
        runtime = RuntimeConfig(engine, "cpu", "float64")
        model = create_model(impl, config, OptimizerConfig(clip_norm=1.0), V, runtime)
    except ImplementationError as error:
        pytest.skip(f"{impl} has no engine {engine} here: {error}")
    random = np.random.default_rng(1)
    model.load_parameters({name: random.normal(0, 0.4, shape) for name, shape in parameter_shapes(config, V).items()})
    state = {name: random.normal(size=shape) for name, shape in state_shapes(config, B).items()}
    return model, model.load_state(state)


def stack_of(lengths, many_to_one=False):
    """Batches [K, B, T] whose rows have so many unmasked steps."""
    random, shape = np.random.default_rng(2), (len(lengths), B, T)
    tokens, targets = (random.integers(0, V, shape).astype(np.int32) for _ in range(2))
    mask = np.arange(T) < np.array(lengths)[..., None]
    return Batch(tokens, targets[..., 0] if many_to_one else targets, mask, np.zeros(shape[:2], bool))


def worst(found, expected):
    assert found.keys() == expected.keys()
    return max(np.abs(found[name] - expected[name]).max() for name in expected)


@pytest.mark.parametrize(("engine", "options", "lengths"), CASES.values(), ids=CASES)
def test_numpys_numbers(impl, engine, options, lengths):
    stacked = stack_of(lengths, options.get("many_to_one", False))
    (model, state), (numpy, numpys) = make(impl, engine, **options), make("numpy", **options)
    first = Batch(*(each[0] for each in stacked))
    loss, gradients, after = model.loss_and_gradients(first, state)
    expected, right, right_after = numpy.loss_and_gradients(first, numpys)
    assert loss == pytest.approx(expected, rel=1e-13)
    assert worst(gradients.parameters, right.parameters) < 1e-12
    assert worst(gradients.initial_state, right.initial_state) < 1e-12
    assert worst(model.dump_state(after), numpy.dump_state(right_after)) < 1e-12
    scores = model.evaluate(stacked, state), numpy.evaluate(stacked, numpys)
    assert scores[0].nats == pytest.approx(scores[1].nats, rel=1e-13)
    assert scores[0][1:3] == scores[1][1:3]
    steps, wanted = (each.train_steps(stacked, by, np.full(3, 0.01)) for each, by in ((model, state), (numpy, numpys)))
    np.testing.assert_allclose(steps.losses, wanted.losses, rtol=1e-12)
    assert steps.finite.all()
    assert worst(model.dump_parameters(), numpy.dump_parameters()) < 1e-10  # Adam, where gradients are tiny


def test_a_batch_all_padding_has_no_loss(impl):
    """Nothing over nothing is no number: the step is left out, and what was read is not carried on."""
    model, state = make(impl)
    before = model.dump_parameters()
    stacked = stack_of([(0, 0, 0)])
    steps = model.train_steps(stacked, state, np.array([0.01]))
    assert not steps.finite.any()
    assert worst(model.dump_parameters(), before) == 0
    assert all(not values.any() for values in model.dump_state(steps.state).values())
    score = model.evaluate(stacked, state)
    assert score[:3] == (0, 0, 0)


def left_out(right):
    return right


def a_row_too_few(right):
    return tuple((start, stop, max(rows - 1, 1)) for start, stop, rows in right)


def a_step_too_few(right):
    *before, (start, stop, rows) = right
    return (*before, (start, max(stop - 1, start + 1), rows))


@pytest.mark.parametrize("changed", [left_out, a_row_too_few, a_step_too_few])
def test_padded_steps_are_left_out_and_no_others(impl, changed, monkeypatch):
    module = importlib.import_module(f"impl_{impl}.model")
    if impl in ("jax", "tf"):
        pytest.skip(f"{impl} computes padded steps: its programs have fixed shapes")
    made, right = [], module.stretches
    monkeypatch.setattr(module, "stretches", lambda mask: made.append(changed(right(mask))) or made[-1])
    (model, state), (numpy, numpys) = make(impl, "fused"), make("numpy")
    batch = Batch(*(each[0] for each in stack_of([(T, 9, 4)])))
    found, expected = (each.loss_and_gradients(batch, by)[1] for each, by in ((model, state), (numpy, numpys)))
    agree = worst(found.parameters, expected.parameters) < 1e-12
    assert agree == (changed is left_out)
    if agree:
        assert made == [((0, 4, 3), (4, 9, 2), (9, T, 1))]


def rows_decoded(impl, monkeypatch):
    """A list that grows by the number of rows of logits wherever a product is made, or compiled."""
    module, seen = importlib.import_module(f"impl_{impl}.model"), []
    place = module if hasattr(module, "_decode") else module.Model
    decode = place._decode

    def spy(*arguments):
        seen.append(int(np.prod(arguments[-1].shape[:-1])))
        return decode(*arguments)

    monkeypatch.setattr(place, "_decode", spy)
    return seen


@pytest.mark.parametrize("work", ["loss_and_gradients", "train_steps", "evaluate"])
def test_masked_logits_are_not_computed(impl, work, monkeypatch):
    seen = rows_decoded(impl, monkeypatch)
    model, state = make(impl, hidden_size=len(work))  # of a size of its own, so that it is compiled here
    for lengths in ((9, 0, 5), (T, T, T)):
        stacked = stack_of([lengths])
        if work == "loss_and_gradients":
            model.loss_and_gradients(Batch(*(each[0] for each in stacked)), state)
        else:
            getattr(model, work)(stacked, state, *([np.array([0.01])] if work == "train_steps" else []))
    some = 18 if impl in ("jax", "tf") else 14  # up to the next eighth of 48
    assert set(seen) == {some, B * T}


def test_places_are_in_order_and_masked_ones_behind():
    mask = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 1, 0]]], bool)
    rows = unmasked_rows(mask, 4)  # of 2 * 4: 5 of 8 are 6
    assert rows.shape == (2, 6)
    assert rows.dtype == np.int32
    assert rows[0].tolist() == [0, 1, 2, 4, 3, 5]  # T B, time first
    assert rows[1, :5].tolist() == [0, 1, 2, 3, 5]
    for each, places in zip(mask, rows, strict=True):
        assert len(set(places.tolist())) == len(places)
        assert each.T.ravel()[places].sum() == each.sum()


@pytest.mark.parametrize(("count", "expected"), [(0, 3), (1, 3), (3, 3), (4, 6), (20, 21), (21, 21), (22, None)])
def test_numbers_of_rows_are_few(count, expected):
    """Eighths of 24, but never none."""
    mask = (np.arange(24) < count).reshape(1, 1, 24)
    rows = unmasked_rows(mask, 8)
    assert (None if rows is None else rows.shape[1]) == expected
