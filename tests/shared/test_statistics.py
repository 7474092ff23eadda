"""The text statistics against values found by hand or by slower, plainer ways."""

import math
import random
from dataclasses import fields

import pytest

from shared.config import CorpusConfig
from shared.corpora import load_corpus, long, split
from shared.statistics import MEASURES, Statistics, copies, describe, excerpt

ENGLISH = ("The cat sat on the mat. It's a cat's mat, and the cat knew.\n",)
PLAY = ("ANNA:\nWho goes there?\n\nBELLA RUE:\nOnly me.\n\nANNA:\nCome in.\n",)
POEMS = ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。")


def one(texts, training, poems=False):
    return describe([texts], training, poems)[0]


def test_every_number_has_a_meaning():
    assert [field.name for field in fields(Statistics)] == list(MEASURES)


def test_words_are_valid_where_the_training_text_has_them():
    """THE, cat, it's, mat known; dogs, catch not; the last one may have been cut."""
    found = one(["THE cat; it's mat dogs catch ma"], ENGLISH)
    assert found.word_validity == pytest.approx(4 / 6)
    assert found.mean_word_length == pytest.approx((3 + 3 + 4 + 3 + 4 + 5) / 6)
    assert found.characters == 31


def test_a_word_at_the_end_of_a_poem_is_whole():
    lines = ("a rose is red", "the sky is blue")
    assert one(["a sky is rosy"], lines, poems=True).word_validity == pytest.approx(3 / 4)
    assert one(["a rose is blue"], lines, poems=True).word_validity == 1


def test_entropy_counts_bits():
    assert one(["a b c d a b c d "], ENGLISH).word_entropy == pytest.approx(2)
    assert one(["a a a a a a b "], ENGLISH).word_entropy == pytest.approx(
        -(6 / 7 * math.log2(6 / 7) + 1 / 7 * math.log2(1 / 7))
    )
    assert one(["same same same "], ENGLISH).word_entropy == 0


def test_repetition_counts_fours_of_words():
    """Seven fours, of which abcd and bcde come twice."""
    assert one(["a b c d e a b c d e."], ENGLISH).repetition == pytest.approx(2 / 7)
    assert one(["a b c d .", "a b c d ."], ENGLISH).repetition == 0.5
    assert one(["a b c d .", "e f g h ."], ENGLISH).repetition == 0
    assert one(["a b c ."], ENGLISH).repetition is None


def test_repetition_by_the_definition():
    rng = random.Random(3)
    words = [rng.choice("abc") for _ in range(200)]
    fours = [tuple(words[place : place + 4]) for place in range(197)]
    assert one([" ".join(words) + " "], ENGLISH).repetition == pytest.approx(1 - len(set(fours)) / 197)


def test_copied_windows_by_the_definition():
    rng = random.Random(5)
    training = "".join(rng.choice("abcd \n") for _ in range(3000))
    texts = [training[100:150] + "X" + training[7:27], "".join(rng.choice("abcd ") for _ in range(80)), "short"]
    windows = [text[place : place + 20] for text in texts for place in range(len(text) - 19)]
    assert one(texts, (training,)).copied == pytest.approx(sum(each in training for each in windows) / len(windows))
    assert one(texts, (training,)).copied == pytest.approx(32 / (52 + 61))
    assert one(["short"], (training,)).copied is None
    assert one([training], (training,)).copied == 1


def test_copied_verses():
    """Two of three lines stand in the training poems, whatever mark ends them; a part of a line does not count."""
    assert one(["春眠不觉晓。白日依山尽！春眠不觉，"], POEMS, poems=True).copied == pytest.approx(2 / 3)
    assert one([POEMS[1]], POEMS, poems=True).copied == 1
    assert one(["line one\nline two"], ("line one\nand more", "line"), poems=True).copied == 0.5


def test_speakers():
    found = one(["ANNA:\nYes.\n\nCARL:\nNo: not\nso:\n\nBELLA RUE:\nOh", "BELLA RUE:\nOnly"], PLAY)
    assert found.role_consistency == pytest.approx(3 / 4)
    assert one(["nobody speaks here "], PLAY).role_consistency is None
    assert one(["ANNA:\nYes.\n"], ENGLISH).role_consistency is None


@pytest.mark.parametrize(
    ("poem", "valid"),
    [
        (POEMS[0], True),
        ("白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。\n", True),
        ("两个黄鹂鸣翠柳，一行白鹭上青天。", True),
        ("两个黄鹂鸣翠柳，一行白鹭上青天", False),
        ("白日依山尽，黄河入海流。欲穷千里目。", False),
        ("白日依山尽，一行白鹭上青天。", False),
        ("白日依山尽黄河入海流。", False),
        ("白日依山尽，黄河入海�。", False),
        ("白日依山尽，abcde。", False),
        ("白日依山，黄河入海。", False),
        ("白日依山尽，，黄河入海流。", False),
        ("白日依山尽，黄河入海流。两个黄鹂鸣翠柳，一行白鹭上青天。", False),
        ("", False),
    ],
)
def test_form(poem, valid):
    assert one([poem], POEMS, poems=True).form_validity == valid
    assert one([poem, POEMS[0], POEMS[1]], POEMS, poems=True).form_validity == pytest.approx((valid + 2) / 3)


def test_chinese_is_measured_by_characters():
    """Pairs within a line: 春眠 眠不 known, 不日 日依 the second known; 晓处 never neighbours in the training text."""
    found = one(["春眠不日依，晓处"], POEMS, poems=True)
    assert found.word_validity == pytest.approx(3 / 5)
    assert found.word_entropy == pytest.approx(math.log2(7))
    assert found.repetition == 0
    assert found.mean_word_length is None
    assert found.role_consistency is None


def test_chinese_prose_has_windows_and_no_form():
    found = one(["".join(POEMS)[:30]], ("".join(POEMS),))
    assert found.copied == 1
    assert found.form_validity is None
    assert found.word_validity == 1


def test_groups_do_not_mix():
    groups = [["the cat "], ["on a mat zebra "], ["春"], [""], []]
    together = describe(groups, ENGLISH, poems=False)
    assert together == [one(group, ENGLISH) for group in groups]
    assert together[0].word_validity == 1
    assert together[1].word_validity == 0.75
    nothing = Statistics(0, *[None] * 7)
    assert together[3] == together[4] == nothing


def test_excerpt():
    assert excerpt(["abcdefgh"], 3, poems=False) == ["abc"]
    assert excerpt(["abc"], 30, poems=False) == ["abc"]
    poems = [str(place) * 10 for place in range(9)]
    assert excerpt(poems, 30, poems=True) == [poems[0], poems[3], poems[6]]
    assert excerpt(poems, 25, poems=True) == [poems[0], poems[3], poems[6]]
    assert excerpt(poems, 1000, poems=True) == poems


def test_a_long_text_is_measured_as_a_short_one(tmp_path, monkeypatch):
    """Read in pieces from its file, with the same result, windows across pieces apart."""
    rng = random.Random(2)
    words = ["".join(rng.choice("abcde") for _ in range(rng.randint(1, 6))) for _ in range(500)]
    text = "".join(" ".join(rng.choice(words) for _ in range(9)) + "\n" for _ in range(400))
    (tmp_path / "text.txt").write_text(text, "utf-8")
    whole = load_corpus(CorpusConfig(str(tmp_path / "text.txt")))
    monkeypatch.setattr("shared.corpora.corpus.LONG", 1000)
    monkeypatch.setattr(long, "CHUNK", 5000)
    mapped = load_corpus(CorpusConfig(str(tmp_path / "text.txt")))
    assert isinstance(mapped.texts[0], long.LongText)
    results = []
    for corpus in (whole, mapped):
        training, held_out = split(corpus)
        groups = [excerpt(held_out, 700, poems=False), [text[9000:9400], "unheard of "]]
        results.append(describe(groups, training, poems=False))
    assert results[0] == results[1]
    assert results[0][1].copied > 0.9


def test_our_own_texts():
    """Held-out quatrains keep the form; a play's characters are the same to its end."""
    for name, poems in (("starter-play", False), ("starter-quatrains", True)):
        corpus = load_corpus(CorpusConfig(name))
        training, held_out = split(corpus)
        real, learned = describe([excerpt(part, 5000, poems) for part in (held_out, training)], training, poems)
        assert learned.copied == learned.word_validity == 1
        assert real.copied < 0.05
        assert (real.form_validity if poems else real.role_consistency) == 1


def test_copied_windows_are_joined():
    training = "It was the best of times, it was the worst of times, it was the age of wisdom."
    written = "Well: the best of times, it was the worst of them, it was the age of wisdom. Yes."
    (found,) = copies([written], [training], poems=False)
    assert [written[start:stop] for start, stop in found] == [
        " the best of times, it was the worst of t",
        ", it was the age of wisdom.",
    ]
    starts = [place for place in range(len(written) - 19) if written[place : place + 20] in training]
    slow = sorted({place for start in starts for place in range(start, start + 20)})
    assert slow == [place for start, stop in found for place in range(start, stop)]


def test_copied_verses_stand_where_they_stand():
    written = "白日依山尽， 春眠不觉晓。\n　黄河入海流 ？黄河入海"
    found, none = copies([written, "黄河入海流水。"], POEMS, poems=True)
    assert [written[start:stop] for start, stop in found] == ["白日依山尽", "春眠不觉晓", "黄河入海流"]
    assert none == []
