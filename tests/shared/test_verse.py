"""Verse forms: every line whole, whatever a model would rather write."""

import re
from itertools import product

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.verse import AFTER, FORMS, LAST, WITHIN, chosen_form, forced, permitted, verses
from shared.vocabulary import SPECIALS, Vocabulary

POEMS = Vocabulary((*SPECIALS, *"日月山川风花\n，。？A春眠", "日月"))


def draw(name, vocabulary=POEMS, openings=("",), acrostic="", seed=0):
    """What a model without any idea writes: each place one of the tokens that may stand there."""
    form, rng = FORMS[name], np.random.default_rng(seed)
    allowed, given = permitted(form, vocabulary), forced(form, vocabulary, openings, acrostic)
    assert allowed.shape == (form.length, len(vocabulary))
    drawn = np.array([rng.choice(np.flatnonzero(row), len(openings)) for row in allowed]).T
    return [vocabulary.decode(row) for row in np.where(given >= 0, given, drawn)]


@pytest.mark.parametrize(("name", "seed"), list(product(FORMS, range(3))))
def test_every_line_is_whole(name, seed):
    size, lines = (int(part) for part in name.split("x"))
    (poem,) = draw(name, seed=seed)
    couplet = f"[日月山川风花春眠]{{{size}}}[{WITHIN}][日月山川风花春眠]{{{size}}}[{AFTER}]"
    assert re.fullmatch(f"({couplet}){{{lines // 2}}}", poem)
    assert poem[-1] in LAST
    assert [len(line) for line in verses(poem)] == [size + 1] * lines


def test_each_poem_has_its_opening():
    poems = draw("7x4", openings=("春眠", "日月山川风花日", ""))
    assert [poem[:2] for poem in poems[:2]] == ["春眠", "日月"]
    assert poems[1].startswith("日月山川风花日")
    assert all([len(line) for line in verses(poem)] == [8] * 4 for poem in poems)


def test_an_acrostic_begins_its_lines():
    (poem,) = draw("5x8", acrostic="春日山花日月川风")
    assert "".join(line[0] for line in verses(poem)) == "春日山花日月川风"


@pytest.mark.parametrize(
    ("name", "acrostic", "expected"),
    [(None, "春江花月", "5x4"), ("7x4", "春江花月", "7x4"), (None, "春江花月夜夜夜夜", "5x8"), ("7x8", "", "7x8")],
)
def test_the_form_of_an_acrostic(name, acrostic, expected):
    assert chosen_form(name, acrostic) == FORMS[expected]


@pytest.mark.parametrize(
    ("name", "acrostic", "message"),
    [
        (None, "春江花", "has 3 characters.*4 or 8 lines"),
        (None, "春", "has 1 character, "),
        ("5x8", "春江花月", "--form 5x8 has 8 lines; 5x4 and 7x4 have so many"),
        ("7x4", "春江花月夜", "--form 7x4 has 4 lines"),
    ],
)
def test_an_acrostic_that_fits_no_form(name, acrostic, message):
    with pytest.raises(ConfigError, match=message):
        chosen_form(name, acrostic)


@pytest.mark.parametrize("opening", ["日月山川风花", "日，月", "A", "日 "])
def test_an_opening_that_is_no_part_of_a_line(opening):
    with pytest.raises(ConfigError, match="at most one line, 5 Chinese characters"):
        forced(FORMS["5x4"], POEMS, [opening])


@pytest.mark.parametrize(
    ("symbols", "lacking"), [("abc，。", "Chinese characters"), ("日月。", "，、；：？！"), ("日月，", "。；？！")]
)
def test_a_model_without_verse_has_no_form(symbols, lacking):
    with pytest.raises(ConfigError, match=f"none (of the marks )?{lacking}"):
        permitted(FORMS["5x4"], Vocabulary(tuple(symbols)))


def test_verses_keep_their_marks():
    assert verses("春眠不觉晓，处处闻啼鸟。夜来「风雨？」花落\n知多少！！") == [
        "春眠不觉晓，",
        "处处闻啼鸟。",
        "夜来「风雨？」",
        "花落",
        "知多少！！",
    ]
    assert verses("") == verses("\n \n") == []
