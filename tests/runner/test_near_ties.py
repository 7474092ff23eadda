"""How far logits must move for another token to be drawn: never more than they did, and far for a mistake."""

import numpy as np
import pytest

from impl_numpy.generate import draw
from runner.check import show
from runner.examination.bounds import compare
from runner.examination.cases import CASES, V, make_case, writings
from runner.examination.near_ties import Writing, differences, first_differences, reach, rounding
from runner.registry import create_model
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.sampling import SamplingRule

CASE = make_case("gru", CASES["gru"])


def reference():
    model = create_model("numpy", CASE.model, OptimizerConfig(), V, RuntimeConfig(device="cpu", dtype="float64"))
    model.load_parameters(CASE.parameters)
    return model


def drawn(logits, uniform, rule):
    return int(draw(logits[None], np.array([uniform]), rule, None)[0])


def test_the_reach_is_never_more_than_what_moved():
    """Random logits, moved at random, drawn with every kind of rule."""
    random = np.random.default_rng(2)
    shares = []
    for trial in range(6000):
        size = int(random.integers(2, 9))
        rule = SamplingRule(
            float(random.choice([0, 0.3, 0.8, 1.7])),
            int(random.integers(0, size + 1)),
            float(random.choice([1, 0.9, 0.5])),
        )
        logits = random.normal(size=size) * random.choice([0.01, 1, 3])
        moved = 10.0 ** random.uniform(-3, -0.5)
        uniform = random.random()
        signs = random.choice([-1, 1], size) if trial % 2 else random.uniform(-1, 1, size)
        before, after = drawn(logits, uniform, rule), drawn(logits + signs * moved, uniform, rule)
        if before != after:
            shares.append(reach(logits, uniform, rule, after) / moved)
    assert len(shares) > 500
    assert max(shares) <= 1
    assert max(shares) > 0.9, "a reach that is always small would excuse everything"


@pytest.mark.parametrize("rule", [SamplingRule(1.0), SamplingRule(0.7, top_k=4), SamplingRule(1.3, top_p=0.9)], ids=str)
def test_the_reach_of_a_token_far_from_the_uniform_is_long(rule):
    logits = np.array([1.0, 0.4, -0.2, -0.9, -1.5])
    order = [drawn(logits, uniform, rule) for uniform in (0.001, 0.9999)]
    assert reach(logits, 0.001, rule, order[0]) < 1e-12
    assert reach(logits, 0.001, rule, order[1]) > 0.3
    assert reach(logits, 0.9999, rule, order[0]) > 0.2


def test_greedy_needs_half_the_distance_of_the_two():
    assert reach(np.array([0.5, 2.0, 1.25]), 0.3, SamplingRule(0.0), 2) == 0.375


@pytest.mark.parametrize(("off", "near"), [(1e-9, True), (1e-3, False)])
def test_a_uniform_on_the_border_is_a_near_tie(off, near):
    """The uniform lies `off` beyond the border between two tokens that follow each other."""
    model = reference()
    prompt = np.array([[3, 5, 1], [2, 0, 0]], np.int32)
    logits, _ = model.logits(prompt[:1], model.initial_state(1))
    weights = np.exp(logits[0, -1])
    first, second = 2, 3
    border = weights[:second].sum() / weights.sum()
    uniforms = np.array([[border - off, 0.3], [0.5, 0.5]])
    writing = Writing(prompt, np.array([3, 1], np.int32), uniforms, SamplingRule(1.0))
    expected = model.generate(*writing)
    assert expected[0, 0] == first
    got = expected.copy()
    got[0, 0] = second
    (found,) = differences(model, CASE.model, writing, expected, got, "float32")
    assert (found.row, found.place, found.expected, found.got) == (0, 0, first, second)
    assert found.expected_logit == pytest.approx(logits[0, -1, first], rel=1e-14)
    assert found.near_tie == near
    # a border at c moves by 2 c (1 - c) d when all logits move by d
    unit = np.spacing(np.float32(np.abs(logits[0, -1]).max()))
    assert found.gap * unit == pytest.approx(off / (2 * border * (1 - border)), rel=0.01)


def test_only_the_first_difference_of_a_row_counts():
    expected = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    got = np.array([[1, 2, 3], [4, 0, 0], [0, 8, 0]])
    assert first_differences(expected, got) == [(1, 1), (2, 0)]


def test_forced_and_forbidden_tokens_are_no_near_ties():
    writing = writings(CASE)["forced and forbidden"]
    model = reference()
    expected = model.generate(*writing)
    assert writing.forced is not None
    assert writing.allowed is not None
    row, place = np.argwhere(writing.forced >= 0)[0]
    got = expected.copy()
    got[row, place] = (expected[row, place] + 1) % V
    assert differences(model, CASE.model, writing, expected, got, "float32")[0].gap == np.inf
    place = int(np.argmin(writing.allowed.all(1)))
    got = expected.copy()
    got[0, place] = int(np.argmin(writing.allowed[place]))
    assert differences(model, CASE.model, writing, expected, got, "float32")[0].gap == np.inf


def test_the_bound_grows_with_the_sizes_and_the_precision():
    small, large = ModelConfig(hidden_size=8), ModelConfig(hidden_size=32)
    assert rounding(large, "float32") == pytest.approx(2 * rounding(small, "float32"))
    assert rounding(small, "float64") < 1e-14


def test_check_counts_near_ties_and_shows_them(capsys):
    """A token that rounding does not explain fails; one that it explains does not, and is listed."""
    expected = {f"tokens: {name}": reference().generate(*each) * 1.0 for name, each in writings(CASE).items()}
    got = {name: each.copy() for name, each in expected.items()}
    got["tokens: sampled"][2, 7] = (got["tokens: sampled"][2, 7] + 1) % V
    strict, lenient = (compare(got, expected, dtype, CASE) for dtype in ("float64", "float32"))
    for rows in (strict, lenient):
        assert [row["quantity"] for row in rows if not row["ok"]] == ["tokens: sampled"]
    assert not any("near_ties" in row for row in strict)
    row = next(row for row in lenient if not row["ok"])
    assert row["near_ties"] == []
    assert [each["place"] for each in row["unexplained"]] == [7]
    who = {"impl": "torch", "engine": "scratch", "dtype": "float32", "case": "gru"}
    near = {**row, "ok": True, "max_relative_error": 0.0, "near_ties": row["unexplained"], "unexplained": []}
    show([{**who, **each} for each in lenient], [])
    assert "no near-tie: torch scratch float32, gru, tokens: sampled: row 2, token 7" in capsys.readouterr().out
    show([{**who, **near}], [])
    shown = capsys.readouterr().out
    assert "near-tie: torch" in shown
    assert "0, near-ties 1" in shown
    assert "0 differ" in shown
