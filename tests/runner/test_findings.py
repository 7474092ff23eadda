"""What the page of a comparison says: nothing better than it is."""

import math

import pytest
from made_up import SAMPLE, check_row, make_result

from runner.reporting.findings import agreement, headline, problems, relative, side_by_side


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda r: r["failures"].append({"impl": "tf", "what": "no answer"}), "no answer"),
        (lambda r: r["check"].append(check_row("jax", "logits", 0.25)), "logits differs by 0.25"),
        (lambda r: r["check"].append(check_row("jax", "logits", math.inf)), "logits differs by inf"),
        (lambda r: r["growth"][0].update(ok=False), "differ by more than 1e-09"),
        (lambda r: r["agreement"].update(ok=False, held_out_spread=0.5), "0.5 apart"),
        (lambda r: r.update(samples=[SAMPLE | {"text": "x"}, SAMPLE | {"text": "y"}]), "in float64"),
        (lambda r: r.update(ok=False), "does not say why"),
    ],
)
def test_a_failure_is_told(break_it, words):
    result = make_result()
    assert problems(result) == []
    break_it(result)
    (wrong,) = problems(result)
    assert words in wrong["what"]
    assert headline(result, [wrong]) == "Not everything agrees: one problem"


def test_unchecked_is_not_called_equal():
    result = make_result() | {"check": [], "growth": []}
    assert headline(result, problems(result)) == "Four implementations ran; their numbers were not checked"
    assert headline(make_result(impls=("numpy", "tf")), []) == "Both implementations agree"


def test_agreement_shows_the_worst_and_its_bound():
    rows = [
        check_row("torch", "gradient: a", 2e-16),
        check_row("torch", "gradient: differences", 5e-9, bound=1e-8),
        check_row("torch", "gradient: b", 3e-16),
        check_row("torch", "logits", 1e-16, dtype="float32"),
        check_row("torch", "gradient: a", 1.0, cell="gru"),
    ]
    tables = agreement(rows)
    assert list(tables) == ["float64", "float32"]
    assert tables["float64"]["columns"] == {"gradient": 1e-10}
    lstm, gru = tables["float64"]["bodies"]["torch"]
    assert lstm["worst"]["gradient"] is rows[1]
    assert (lstm["ok"], gru["ok"]) == (True, False)


def test_failures_outrank_everything_in_a_cell():
    inexact = check_row("jax", "tokens: sampled", 1e-12, bound=0.0)
    near = check_row("jax", "tokens: greedy", 0.9, bound=1.0)
    (line,) = agreement([near, inexact])["float64"]["bodies"]["jax"]
    assert line["worst"]["tokens"] is inexact


def test_times_are_compared_within_a_phase():
    rows = [
        {"impl": "a", "phase": "train", "tokens_per_second": 50.0},
        {"impl": "a", "phase": "sample", "tokens_per_second": 3.0},
        {"impl": "b", "phase": "train", "tokens_per_second": 125.0},
        {"impl": "b", "phase": "sample", "tokens_per_second": 1.0},
    ]
    found = [(row["impl"], row["phase"], row["factor"]) for row in relative(rows)]
    assert found == [("a", "train", 1.0), ("b", "train", 2.5), ("a", "sample", 3.0), ("b", "sample", 1.0)]


def test_samples_are_split_at_the_first_difference():
    kind = {"dtype": "float32", "temperature": 1.0, "prompt": ""}
    texts = {"numpy": "春眠不覺曉", "torch": "春眠不知曉", "jax": "春眠不"}
    (together,) = side_by_side([{"impl": impl, "text": text} | kind for impl, text in texts.items()])
    assert [(row["same"], row["rest"]) for row in together["columns"]] == [
        ("春眠不", "覺曉"),
        ("春眠不", "知曉"),
        ("春眠不", ""),
    ]
