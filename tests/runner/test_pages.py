"""Texts on pages: cut where their looks change, whole all the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import NASTY

from runner.reporting.pages import ENVIRONMENT, stretches
from runner.text import visible


def test_copied_and_differing_parts_are_told_apart():
    found = stretches("abcdefgh", [[1, 4], (6, 8)], same=3)
    assert [tuple(part) for part in found] == [
        ("a", False, False),
        ("bc", True, False),
        ("d", True, True),
        ("ef", False, True),
        ("gh", True, True),
    ]


def test_a_poem_has_a_line_for_each_verse():
    text = "白日依山尽，黄河入海流。「欲穷？」\n更上"
    found = stretches(text, [[0, 5]], poem=True)
    assert "".join(part.text for part in found) == "白日依山尽，\n黄河入海流。\n「欲穷？」\n更上"
    assert [part.text for part in found if part.copied] == ["白日依山尽"]


@pytest.mark.parametrize(
    "spans", [None, 7, "ab", [7], [[1]], [[2, 1]], [[-1, 2]], [[0, 99]], [[0.0, 1.0]], [["0", "1"]], [[True, 2]], {}]
)
def test_what_is_no_span_marks_nothing(spans):
    assert [tuple(part) for part in stretches("abcd", spans)] == [("abcd", False, False)]


@given(st.text(), st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9))), st.integers(0, 9))
def test_nothing_is_lost(text, spans, same):
    found = stretches(text, spans, same=min(same, len(text)))
    assert "".join(part.text for part in found) == text
    covered = {place for start, stop in spans if 0 <= start < stop <= len(text) for place in range(start, stop)}
    marks = [part.copied for part in found for _ in part.text]
    assert {place for place, copied in enumerate(marks) if copied} == covered


def test_marks_within_hostile_text_stay_text():
    part = ENVIRONMENT.from_string(
        "{% from 'parts.html.j2' import passage %}{{ passage(text, [[0, 11], [30, 44]], true) }}"
    )
    page = part.render(text=NASTY)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert '<mark class="copied">&lt;script&gt;ale</mark>' in page
    assert visible("\u202e") in page
