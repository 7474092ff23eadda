"""Characters to ids and back."""

import json
import sys
import time
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import subwords
from shared.errors import CheckpointError, ConfigError, ImplementationError, VocabularyError
from shared.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, Vocabulary, add_subwords, build_vocabulary

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
    [
        *(None, {}, "ab", [], ["a", 1], ["a", "a"], ["ab"], [""], ["<start>"], [["a"]], ["\ud800"], [PAD, PAD]),
        *(["a", "b", "abc"], ["a", "a\ud800"], [PAD, "a", PAD + "a"], ["a", "aa", "aaa", "aaab"], ["a", None]),
    ],
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


# Subwords

ENGLISH = "the other mother, the other brother; they gather there.\nThe weather: rather 1898, 1899!\n"
CHINESE = "春风又绿江南岸，明月何时照我还？春风不度玉门关。明月几时有，春风明月。"


def learned(text: str, more: int, poems: bool = False) -> Vocabulary:
    characters = build_vocabulary([text], 1, poems)
    return add_subwords(characters, [text], len(characters) + more)


@pytest.mark.parametrize("poems", [False, True])
def test_subwords_come_after_the_characters(poems: bool) -> None:
    vocabulary = learned(ENGLISH, 12, poems)
    characters = build_vocabulary([ENGLISH], 1, poems)
    assert vocabulary.symbols[: len(characters)] == characters.symbols
    assert len(vocabulary) == len(characters) + 12
    assert {"the", "ther", " the"} & set(vocabulary.symbols)
    assert (vocabulary.pad, vocabulary.unk, vocabulary.bos, vocabulary.eos) == (
        (0, 1, 2, 3) if poems else (None, None, None, None)
    )
    assert vocabulary.lengths.tolist() == [
        0 if each in (PAD, BOS, EOS) else 1 if each == UNK else len(each) for each in vocabulary.symbols
    ]


def test_subwords_by_hand() -> None:
    vocabulary = add_subwords(build_vocabulary(["abababc"], 1, poems=False), ["abababc"], 5)
    assert vocabulary.symbols == ("a", "b", "c", "ab", "abab")
    assert vocabulary.encode("ababab\ncb".replace("\n", "")).tolist() == [4, 3, 2, 1]
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.encode("ab").dtype == np.int32


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_subwords_shorten_a_text_and_lose_nothing(text: str) -> None:
    vocabulary = learned(text, 10)
    tokens = vocabulary.encode(text)
    assert len(tokens) < len(text)
    assert vocabulary.decode(tokens) == text
    assert vocabulary.lengths[tokens].sum() == len(text)


@given(st.text("the or,1\n\r\u2028\x0c春风明月。é\u0301🂡<pad>", max_size=60), st.booleans())
def test_decode_undoes_encode_with_subwords(text: str, poems: bool) -> None:
    vocabulary = KNOWN_POEMS if poems else KNOWN_TEXT
    assert vocabulary.decode(vocabulary.encode(text)) == text


EVERYTHING = ENGLISH + CHINESE + "\r\u2028\x0cé\u0301🂡<pad><pad><pad><eos><eos><unk><unk>"
KNOWN_TEXT, KNOWN_POEMS = learned(EVERYTHING, 50), learned(EVERYTHING, 50, poems=True)


@settings(deadline=None)
@given(st.text(min_size=1), st.booleans())
def test_any_text_survives_its_own_subwords(text: str, poems: bool) -> None:
    characters = build_vocabulary([text], 1, poems)
    with suppress(ConfigError):  # nothing occurs together
        vocabulary = add_subwords(characters, [text], len(characters) + 1)
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_no_subword_is_a_special_symbol() -> None:
    for vocabulary in (KNOWN_TEXT, KNOWN_POEMS):
        assert sum(symbol in SPECIALS for symbol in vocabulary.symbols) == (4 if vocabulary is KNOWN_POEMS else 0)
        tokens = vocabulary.encode("<pad><eos>")
        assert not {vocabulary.pad, vocabulary.eos} & set(tokens.tolist())
        assert vocabulary.decode(tokens) == "<pad><eos>"


def test_subwords_are_the_same_for_the_same_text() -> None:
    assert len({learned(ENGLISH + CHINESE, 45) for _ in range(3)}) == 1


def test_subwords_stay_within_lines_and_words() -> None:
    vocabulary = learned((ENGLISH + CHINESE) * 9, 45)
    for symbol in vocabulary.symbols:
        assert symbol == "\n" or "\n" not in symbol
        assert " " not in symbol[1:]
        assert symbol.strip(" ").isalpha() or not any(map(str.isalpha, symbol))


def test_subwords_are_learned_from_the_training_text_alone() -> None:
    characters = build_vocabulary(["abc", "cacaca"], 1, poems=True)
    vocabulary = add_subwords(characters, ["abc"], len(characters) + 2)
    assert vocabulary.symbols[-2:] == ("ab", "abc")
    assert vocabulary.decode(vocabulary.encode("cacaca")) == "cacaca"


@pytest.mark.parametrize("poems", [False, True])
def test_characters_unknown_to_subwords_are_named_or_replaced(poems: bool) -> None:
    vocabulary = learned("the other", 3, poems)
    text = "the鬼鬼 other\udcff"
    assert vocabulary.unknown(text) == ["鬼", "\udcff"]
    if poems:
        assert vocabulary.encode(text).tolist().count(vocabulary.unk) == 3
        assert vocabulary.decode(vocabulary.encode(text)) == "the\ufffd\ufffd other\ufffd"
    else:
        with pytest.raises(VocabularyError, match=r"2 distinct.*'鬼' \(U\+9B3C\).*index 3"):
            vocabulary.encode(text)


@pytest.mark.parametrize("poems", [False, True])
def test_json_gives_the_same_subwords(poems: bool) -> None:
    vocabulary = learned(ENGLISH + CHINESE, 40, poems)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    assert again.encode(ENGLISH + CHINESE).tolist() == vocabulary.encode(ENGLISH + CHINESE).tolist()


def test_sizes_that_cannot_be_are_refused() -> None:
    characters = build_vocabulary(["abc"], 1, poems=True)
    with pytest.raises(ConfigError, match=r"--subwords 7 is too small.*are 7 already"):
        add_subwords(characters, ["abc"], 7)
    with pytest.raises(ConfigError, match=r"--subwords 20 is too large.*has 9 symbols"):
        add_subwords(characters, ["abc"], 20)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(("a", "b", "ab"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImplementationError, match=r"needs the library tokenizers.*rosetta-rnn\[subwords\]"):
        subwords.learn(["ab"], ["a", "b"], 1, [])
    with pytest.raises(ImplementationError, match="tokenizers"):
        vocabulary.encode("ab")
    assert vocabulary.decode([2, 0]) == "aba"
