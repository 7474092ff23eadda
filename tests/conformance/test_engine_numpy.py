"""What only NumPy's fused engine has: rows shared among threads, and products by blocks."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from impl_numpy import dropout, fused, model, parallel
from impl_numpy.arrays import open_device
from runner.examination.bounds import compare
from runner.examination.cases import CASES, make_case
from runner.examination.examinee import Examinee
from runner.registry import create_model
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.initializers import initial_parameters
from shared.sampling import SamplingRule, sampling_uniforms

COUNT = 3
ROUNDING = 1e-14
"""Of sums of some sixteen products of numbers about 1 in float64: 16 x 2^-53, times five for numbers above 1."""
SHARED = ("lstm", "gru", "lstm dropout, tied", "lstm many-to-one", "gru residual, dropout", "lstm one-hot, residual")


@pytest.fixture
def shares(monkeypatch):
    """Three threads, however few cores there are; how many had shares, call by call."""
    seen, right, prepare = [], parallel.Threads.share, parallel.Threads.__init__

    def of_three(self, device):
        prepare(self, device)
        self._count, self._pool = COUNT, parallel.ThreadPoolExecutor(COUNT)

    @contextmanager
    def watched(self, rows, width):
        with right(self, rows, width) as each:
            yield lambda function: (found := each(function), seen.append(len(found)))[0]

    monkeypatch.setattr(parallel, "LEAST", 1)
    monkeypatch.setattr(parallel.Threads, "__init__", of_three)
    monkeypatch.setattr(parallel.Threads, "share", watched)
    return seen


def wrong(name):
    case = make_case(name, CASES[name])
    expected = Examinee("numpy", "cpu").measure(case, "float64")["quantities"]
    found = Examinee("numpy", "cpu").measure(case, "float64", "fused")["quantities"]
    return [row for row in compare(found, expected, "float64", case) if not row["ok"]]


@pytest.mark.parametrize("name", SHARED)
def test_threads_that_share_a_batch_compute_what_one_computes(name, shares):
    assert wrong(name) == []
    assert max(shares) == COUNT


def masks_of_the_first_rows(patch):
    right, first = dropout.keep_mask, slice(0, None, 1)
    patch.setattr(dropout, "keep_mask", lambda outputs, layer, given: right(outputs, layer, given._replace(rows=first)))


def means_of_their_own(patch):
    right = model.mean_nats_backward
    patch.setattr(
        model, "mean_nats_backward", lambda rows, targets, _: right(rows, targets, np.int64(len(targets) or 1))
    )


def gradients_of_one(patch):
    right = model.Model._share_gradients

    def first_only(self, batch, state, given, count):
        loss, gradients, *states = right(self, batch, state, given, count)
        others = given is not None and given.rows.start > 0
        return loss, {name: 0 * each if others else each for name, each in gradients.items()}, *states

    patch.setattr(model.Model, "_share_gradients", first_only)


def states_of_one(patch):
    right = model.joined
    patch.setattr(model, "joined", lambda states: right([states[0]] * len(states)))


@pytest.mark.parametrize("defect", [masks_of_the_first_rows, means_of_their_own, gradients_of_one, states_of_one])
def test_a_wrong_share_is_noticed(defect, shares, monkeypatch):
    defect(monkeypatch)
    assert wrong("lstm dropout, tied")


def test_rows_are_shared_evenly_and_not_too_few(monkeypatch):
    threads = parallel.Threads(open_device(RuntimeConfig(device="cpu")))
    monkeypatch.setattr(threads, "_count", 4)

    def shared(rows, width):
        with threads.share(rows, width) as each:
            return each(lambda share: list(range(rows)[share]))

    assert shared(10, 4096) == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert shared(10, parallel.LEAST // 4) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert shared(2, 10**6) == [[0], [1]]
    assert shared(64, 0) == [list(range(64))]
    assert shared(0, 512) == [[]]


def test_parameters_are_dealt_out_evenly():
    sizes = {"a": 5, "b": 9, "c": 2, "d": 7, "e": 0}
    hands = parallel.dealt(sizes, 2)
    assert sorted(name for hand in hands for name in hand) == list(sizes)
    assert sorted(sum(sizes[name] for name in hand) for hand in hands) == [11, 12]
    assert parallel.dealt(sizes, 1) == [["b", "d", "a", "c", "e"]]


def test_blas_has_one_thread_meanwhile_and_its_own_number_afterwards():
    def numbers():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        threads = parallel.Threads(open_device(RuntimeConfig(device="cpu")))
        with threads.share(64, 512) as each:
            assert len(each(lambda share: share)) == 2
            assert numbers() == {1}
        assert numbers() == {2}
        with threads.share(1, 512):
            assert numbers() == {2}


def test_what_a_thread_raises_arrives(shares):
    def fail(share):
        raise ZeroDivisionError(share.start)

    shared = parallel.Threads(open_device(RuntimeConfig(device="cpu")))
    with pytest.raises(ZeroDivisionError), shared.share(9, 9) as each:
        each(fail)


def test_no_thread_warns_of_overflow(shares):
    config = ModelConfig(hidden_size=8, embedding_size=0)
    model = create_model("numpy", config, OptimizerConfig(), 5, RuntimeConfig("fused", "cpu", "float32"))
    model.load_parameters({name: 1e38 * value for name, value in initial_parameters(config, 5, 1).items()})
    tokens = np.arange(60, dtype=np.int32).reshape(1, 6, 10) % 5
    batch = Batch(tokens, tokens, np.ones(tokens.shape, bool), np.zeros((1, 6), bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = model.train_steps(batch, model.initial_state(6), np.array([1e-3]))
    assert not steps.finite.any()
    assert max(shares) == COUNT


def test_each_text_is_its_own_whoever_writes_it(shares):
    """As many texts, one at a time and by three threads."""
    config = ModelConfig(hidden_size=24, embedding_size=6, num_layers=2)
    model = create_model("numpy", config, OptimizerConfig(), 11, RuntimeConfig("fused", "cpu", "float64"))
    model.load_parameters({name: 8 * value for name, value in initial_parameters(config, 11, 1).items()})
    prompt, lengths = np.arange(35, dtype=np.int32).reshape(7, 5) % 11, np.array([5, 1, 2, 5, 4, 3, 1], np.int32)
    drawn, rule = sampling_uniforms(3, 7, 40), SamplingRule(0.9, top_k=7, end=2)
    forced = np.full((7, 40), -1, np.int32)
    forced[np.arange(7), np.arange(7)] = np.arange(7)
    allowed = np.ones((40, 11), bool)
    allowed[20:, 4] = False
    together = model.generate(prompt, lengths, drawn, rule, forced, allowed)
    assert max(shares) == COUNT
    for row in range(7):
        one = slice(row, row + 1)
        alone = model.generate(prompt[one], lengths[one], drawn[one], rule, forced[one], allowed)
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(64, 5, (2, 32, 16)), (63, 5, (1, 63, 16)), (64, 999, (1, 64, 16)), (48, 7, (3, 16, 16))],
)
def test_blocks(rows, columns, expected, monkeypatch):
    monkeypatch.setattr(fused, "UNPACKED", 32 * 16 * 5 + 15)
    weight = np.random.default_rng(0).normal(size=(16, rows)).T
    stacked = fused.blocks(weight, columns)
    assert stacked.shape == expected
    x = np.random.default_rng(1).normal(size=(16, columns))
    assert np.allclose((stacked @ x).reshape(rows, columns), weight @ x, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layers_by_blocks(cell, monkeypatch):
    """The same gradients and texts, up to the order of sums."""
    config = ModelConfig(hidden_size=16, embedding_size=4, cell=cell, num_layers=2)
    random = np.random.default_rng(5)
    tokens = random.integers(0, 9, (2, 3, 7)).astype(np.int32)
    batch = Batch(tokens[0], tokens[1], np.ones((3, 7), bool), np.zeros(3, bool))

    def answers():
        model = create_model("numpy", config, OptimizerConfig(), 9, RuntimeConfig("fused", "cpu", "float64"))
        model.load_parameters({name: 3 * value for name, value in initial_parameters(config, 9, 1).items()})
        _, gradients, _ = model.loss_and_gradients(batch, model.initial_state(3))
        texts = model.generate(tokens[0], np.full(3, 7, np.int32), sampling_uniforms(1, 3, 30), SamplingRule())
        return gradients.parameters, texts

    (whole, texts), made = answers(), []
    right = fused.blocks
    monkeypatch.setattr(fused, "UNPACKED", 8 * 64 * 3)
    monkeypatch.setattr(fused, "blocks", lambda *given: made.append(right(*given)) or made[-1])
    by_blocks, same_texts = answers()
    assert all(len(stacked) > 1 for stacked in made)
    assert len(made) == 6
    assert np.array_equal(texts, same_texts)
    assert all(np.abs(whole[name] - by_blocks[name]).max() < ROUNDING for name in whole)
