"""Characters to ids and back."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CheckpointError, ConfigError, VocabularyError
from shared.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, build_vocabulary

TEXT = "the cat\nsat 红🂡"


def test_symbols_fall_by_count_and_ties_by_code_point() -> None:
    vocabulary = build_vocabulary(["caab", "zb", "éa"], 1, poems=False)
    assert vocabulary.symbols == ("a", "b", "c", "z", "é")


def test_the_order_of_texts_does_not_matter() -> None:
    assert build_vocabulary(["xyy", "红"], 1, poems=True) == build_vocabulary(["红", "xyy"], 1, poems=True)


def test_poems_have_four_special_symbols_and_streams_none() -> None:
    poems, stream = build_vocabulary(["ab"], 1, poems=True), build_vocabulary(["ab"], 1, poems=False)
    assert poems.symbols == (PAD, UNK, BOS, EOS, "a", "b")
    assert (poems.pad, poems.unk, poems.bos, poems.eos) == (0, 1, 2, 3)
    assert stream.symbols == ("a", "b")
    assert (stream.pad, stream.unk, stream.bos, stream.eos) == (None, None, None, None)


def test_a_minimum_gives_a_stream_the_unknown_symbol() -> None:
    vocabulary = build_vocabulary(["aabbc"], 2, poems=False)
    assert vocabulary.symbols == (UNK, "a", "b")
    assert vocabulary.encode("cab?").tolist() == [0, 1, 2, 0]
    assert vocabulary.decode([0, 2]) == "\N{REPLACEMENT CHARACTER}b"


def test_a_minimum_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--minimum-count.*at most 2 times"):
        build_vocabulary(["aab"], 3, poems=True)


def test_encode_gives_int32() -> None:
    ids = build_vocabulary([TEXT], 1, poems=False).encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.shape == (len(TEXT),)
    assert build_vocabulary([TEXT], 1, poems=True).encode("").shape == (0,)


def test_unknown_characters_are_named_with_the_place_of_the_first() -> None:
    vocabulary = build_vocabulary(["abc\n"], 1, poems=False)
    with pytest.raises(VocabularyError) as caught:
        vocabulary.encode("ab\ncxa鬼x")
    message = str(caught.value)
    assert "2 distinct characters" in message
    assert "'x' (U+0078), '鬼' (U+9B3C)" in message
    assert "index 4 (line 2)" in message
    assert "--minimum-count" in message


def test_at_most_ten_unknown_characters_are_named() -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary(("a",)).encode("abcdefghijklm")
    assert "12 distinct" in str(caught.value)
    assert "(U+006B), ...;" in str(caught.value)
    assert "U+006C" not in str(caught.value)


def test_a_lone_surrogate_is_an_unknown_character() -> None:
    vocabulary = build_vocabulary(["ab"], 1, poems=False)
    assert vocabulary.unknown("a\udcff") == ["\udcff"]
    with pytest.raises(VocabularyError, match=r"U\+DCFF"):
        vocabulary.encode("a\udcff")
    assert build_vocabulary(["ab"], 1, poems=True).encode("\udcffa").tolist() == [1, 4]


def test_unknown_lists_each_character_once_in_order() -> None:
    assert build_vocabulary(["ab"], 1, poems=True).unknown("zazybx") == ["z", "y", "x"]


def test_special_symbols_never_collide_with_text() -> None:
    text = "<pad><unk><bos><eos>"
    vocabulary = build_vocabulary([text], 1, poems=True)
    ids = vocabulary.encode(text)
    assert ids.min() == 4
    assert vocabulary.decode(ids) == text


def test_special_symbols_are_not_written() -> None:
    vocabulary = build_vocabulary(["ab"], 1, poems=True)
    assert vocabulary.decode(np.array([2, 4, 1, 5, 3, 0])) == "a\N{REPLACEMENT CHARACTER}b"


@given(st.text(min_size=1), st.booleans())
def test_decode_undoes_encode(text: str, poems: bool) -> None:
    vocabulary = build_vocabulary([text], 1, poems)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.unknown(text) == []


@given(st.lists(st.text(), min_size=1).filter(any), st.integers(1, 3))
def test_what_is_kept_is_what_occurs_often_enough(texts: list[str], minimum: int) -> None:
    counts = Counter("".join(texts))
    kept = {character for character, count in counts.items() if count >= minimum}
    if kept:
        vocabulary = build_vocabulary(texts, minimum, poems=True)
        assert set(vocabulary.symbols[4:]) == kept
        assert list(vocabulary.symbols[4:]) == sorted(kept, key=lambda symbol: (-counts[symbol], symbol))


@given(st.text(min_size=1), st.booleans())
def test_json_gives_the_same_vocabulary(text: str, poems: bool) -> None:
    vocabulary = build_vocabulary([text], 1, poems)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize(
    "value",
    [None, {}, "ab", [], ["a", 1], ["a", "a"], ["ab"], [""], ["<start>"], [["a"]], ["\ud800"], [PAD, PAD]],
)
def test_json_that_is_no_vocabulary_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="vocabulary"):
        Vocabulary.from_json(value)


def test_ten_megabytes_are_encoded_in_seconds() -> None:
    text = "The weigh house at Ossel, before sunrise.\n" * 250_000
    started = time.perf_counter()
    ids = build_vocabulary([text], 1, poems=False).encode(text)
    assert time.perf_counter() - started < 5
    assert len(ids) == len(text)
