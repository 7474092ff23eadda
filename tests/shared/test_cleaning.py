"""What the options make of a text, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import CorpusConfig
from shared.corpora import Corpus, load_corpus
from shared.corpora.cleaning import clean
from shared.errors import CorpusError

POEMS = ("残雪檐头滴（一），泥炉火渐微。", "阿婆翻历本，窗外燕先归。", "土里谁翻枕。")


def load(folder: Path, text: str, **options: Any) -> Corpus:
    path = folder / "mine.txt"
    path.write_text(text, "utf-8")
    return load_corpus(CorpusConfig(str(path), **options))


def refused(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(CorpusError) as caught:
        load(folder, text, **options)
    return str(caught.value)


def test_letters_are_what_d2l_reads(tmp_path: Path) -> None:
    text = "The Time Machine, by H. G. Wells [1898]\n\n\nI\n\nIt's 4 o'clock\u00e9\u212a."  # the last is no K
    expected = "the time machine by h g wells i it s o clock "
    assert load(tmp_path, text, normalize="letters").texts == (expected,)


def test_poems_are_normalised_one_by_one(tmp_path: Path) -> None:
    corpus = load(tmp_path, "Rose-red, \n123\n 'Tis IT!", normalize="letters", reader="poems")
    assert corpus.texts == ("rose red", "tis it")


@given(
    st.lists(st.text("aB 9,\n红")), st.sampled_from(["none", "letters"]), st.integers(0, 9), st.sampled_from(["", "B9"])
)
def test_where_a_text_is_cut_does_not_matter(parts: list[str], normalize: Any, count: int, drop: str) -> None:
    config = CorpusConfig(normalize=normalize, first_characters=count, drop=drop)
    assert "".join(clean(parts, config)) == "".join(clean(["".join(parts)], config))


def test_marks_are_dropped_before_characters_are_counted(tmp_path: Path) -> None:
    assert load(tmp_path, "a-b.c-d.e", drop=".-", first_characters=3).texts == ("abc",)
    corpus = load(tmp_path, "\n".join(POEMS), drop="（）一", reader="poems", minimum_length=12, maximum_length=12)
    assert corpus.texts == ("残雪檐头滴，泥炉火渐微。", POEMS[1])


def test_only_the_first_characters_of_a_text_are_read(tmp_path: Path) -> None:
    assert load(tmp_path, "abcdefgh", first_characters=5).texts == ("abcde",)
    assert load(tmp_path, "abcdefgh", first_characters=50).texts == ("abcdefgh",)


@pytest.mark.parametrize(("count", "poems"), [(16, 1), (27, 1), (28, 2), (33, 2), (34, 3)])
def test_the_first_characters_of_poems_are_those_of_whole_poems(tmp_path: Path, count: int, poems: int) -> None:
    text = "\n".join(POEMS)
    assert [len(poem) for poem in POEMS] == [15, 12, 6]
    assert len(load(tmp_path, text, reader="poems", first_characters=count - 1).texts) == poems


def test_poems_with_a_mark_that_is_not_wanted_are_left_out(tmp_path: Path) -> None:
    text = "\n".join(POEMS) + "\n"
    assert load(tmp_path, text, reader="poems", leave_out="（《").texts == POEMS[1:]
    assert "once --leave-out took effect" in refused(tmp_path, text, reader="poems", leave_out="。")
    assert load(tmp_path, text, reader="poems", leave_out="（", drop="（一）").texts == POEMS[1:], (
        "read before it is cleaned"
    )


def test_titles_stay_with_their_poems(tmp_path: Path) -> None:
    text = f"甲:{POEMS[0]}\n乙:{POEMS[1]}\n丙:{POEMS[2]}\n"
    corpus = load(tmp_path, text, reader="titled", minimum_length=7, maximum_length=14)
    assert (corpus.titles, corpus.texts) == (("乙",), (POEMS[1],))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"minimum_length": 3}, "--minimum-length"),
        ({"maximum_length": 3}, "--maximum-length"),
        ({"cut": True}, "--cut"),
        ({"leave_out": "（"}, "--leave-out"),
    ],
)
def test_what_is_about_poems_is_refused_for_a_text(tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    message = refused(tmp_path, "a text", **options)
    assert message.startswith(f"{flag} is about poems")
    assert "one running text" in message


def test_marks_that_do_not_occur_are_refused_for_what_is_learned(tmp_path: Path) -> None:
    assert "--drop '#_' would leave" in refused(tmp_path, "a text", drop="#_")
    assert load(tmp_path, "a te#xt", drop="#_").texts == ("a text",)
    path = str(tmp_path / "mine.txt")
    assert load_corpus(CorpusConfig(path, drop="_", minimum_length=3), strict=False).texts == ("a te#xt",)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("红山", {"normalize": "letters"}, "nothing to learn once --normalize took effect"),
        ("aaab", {"drop": "b"}, "one character only once --drop took effect, 'a'"),
        ("aab", {"first_characters": 2}, "one character only once --first-characters took effect"),
        (
            "\n".join(POEMS),
            {"reader": "poems", "minimum_length": 16},
            "nothing to learn once --minimum-length took effect",
        ),
        ("\n".join(POEMS), {"reader": "poems", "first_characters": 9}, "nothing to learn once --first-characters"),
    ],
)
def test_options_that_leave_nothing_are_named(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, text, **options)
