"""No text breaks anything: what is read is the text, whole, once and in order, and what is no text is refused with a
reason. Cases are drawn from the same seeds every time; together they are more than five thousand."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import big_corpus
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.__main__ import main
from runner.experiment import prepare
from shared import batching
from shared.batching import Batches, PoemBatches, StreamBatches, WindowBatches, scattered
from shared.config import CorpusConfig, ModelConfig, Reader, TrainingConfig
from shared.contract import Batch
from shared.corpora import Corpus, load_corpus, split
from shared.corpora import corpus as corpus_module
from shared.corpora import long as long_module
from shared.corpora.long import LongText, Packed, pieces
from shared.corpora.readers import BINARY
from shared.errors import ConfigError, CorpusError, UserError, VocabularyError
from shared.statistics import describe
from shared.subwords import LONGEST
from shared.vocabulary import Vocabulary, add_subwords, build_vocabulary

ROOT = Path(__file__).parents[2]

# Texts

NASTY = [
    *("\n", "\r", "\r\n", "\n\r", "\u2028", "\u2029", "\x85", "\x0c", "\t", " ", "\u3000", "\xa0", "\u200b"),
    *("\ufeff", "\ufffe", "\uffff", "\U0001ffff", "\U0010ffff", "\x7f", "\x9b", "\xad", "\ufffd"),
    *("\u202e", "\u2066", "\u2069", "\u200f", "אב", "ع", "e\u0301\u0323", "\u0301", "가", "ﬁ", "İ", "ß"),
    *("👩\u200d👩\u200d👧", "❤\ufe0f", "🏴\U000e0067\U000e007f", "🇨🇭", "𝔘", "𠀀", "春风，又绿。", "题：", "a:b"),
    *("<pad>", "<unk><eos>", "&lt;script>", "[bold]", "%s", "{0}", "\\n", "'", '"', "the other mother", "0 1 22 333"),
]
CONTROLS = ["\0", "\x1b[31m", "\x07", "\x0b", "\x1c"]


def texts(nasty: list[str] = NASTY, surrogates: bool = False) -> st.SearchStrategy[str]:
    """Any characters that UTF-8 can hold among the nasty ones, or the same again and again; from length 0 on."""
    characters = st.characters() if surrogates else st.characters(codec="utf-8")
    mixed = st.lists(st.sampled_from(nasty) | characters, max_size=40).map("".join)
    repeated = st.builds(str.__mul__, st.sampled_from(nasty) | characters, st.integers(1, 300))
    return mixed | mixed | repeated | st.text(characters, max_size=20)


def cases(count: int) -> Callable[[Any], Any]:
    """So many, the same every time."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


def unified(text: str) -> str:
    """Every line end a line feed."""
    return "\n".join("\n".join(text.split("\r\n")).split("\r"))


def learnable(text: str) -> bool:
    """Two characters, one of which is seen."""
    return len(set(text)) > 1 and bool(text.strip())


# Files


@contextmanager
def long_from(size: int, chunk: int) -> Iterator[None]:
    """Files of so many bytes are long, and read in so small chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "LONG", size)
        patch.setattr(long_module, "CHUNK", chunk)
        yield


def load(path: Path, content: bytes, chunk: int, **options: Any) -> Corpus | str:
    """The corpus in a file, read whole (chunk 0) or as a long file; or why there is none."""
    path.write_bytes(content)
    with long_from(1 if chunk else 10**9, chunk):
        try:
            corpus = load_corpus(CorpusConfig(str(path), **options), strict=False)
        except CorpusError as error:
            return str(error)
        if isinstance(corpus.texts[0], LongText):
            texts: Any = ("".join(pieces(corpus.texts[0])),)
            assert len(texts[0]) == len(corpus.texts[0])
        else:
            texts = tuple(corpus.texts)
            assert isinstance(corpus.texts, Packed) == (chunk > 0)
        return Corpus(corpus.name, corpus.poems, texts, tuple(corpus.titles), corpus.sha256, "", "", corpus.reader)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "nasty.txt"


@cases(600)
@given(texts(), st.booleans(), st.integers(0, 40), st.sampled_from(["", "\n", "e\u0301", "🇨"]), st.integers(0, 30))
def test_a_running_text_is_read_whole(path: Path, text: str, mark: bool, chunk: int, drop: str, count: int) -> None:
    text = BINARY.sub("", text)
    content = b"\xef\xbb\xbf" * mark + text.encode()
    expected = unified(text if mark else text.removeprefix("\ufeff"))
    expected = "".join(character for character in expected if character not in drop)[: count or None]
    found = load(path, content, chunk, reader="text", drop=drop, first_characters=count)
    if learnable(expected):
        assert isinstance(found, Corpus), found
        assert found.texts == (expected,)
    else:
        assert isinstance(found, str)
        assert "nothing to learn" in found or "one character only" in found


def poems_in(text: str, reader: Reader) -> list[tuple[str, str]]:
    """Titles and texts, read another way than the reader does."""
    lines = [line.strip() for line in text.split("\n")]
    if reader == "blocks":
        parts = "\0".join(lines).replace("\0\0", "\0\0\0").split("\0\0")
        blocks = [[line for line in part.split("\0") if line] for part in parts]
        return [("", ("" if any(map(is_han, "".join(block))) else "\n").join(block)) for block in blocks if block]
    lines = [line for line in lines if line]
    if reader == "poems":
        return [("", line) for line in lines]
    usual, other = (":", "：") if sum(":" in each for each in lines) >= sum("：" in each for each in lines) else "：:"
    found = []
    for line in lines:
        colon = usual if usual in line else other
        title, _, poem = line.partition(colon) if colon in line else ("", "", line)
        found.append((title.strip(), poem.strip()))
    return [each for each in found if each[1]]


def is_han(character: str) -> bool:
    code = ord(character)
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF


@cases(700)
@given(texts(), st.sampled_from(["poems", "blocks", "titled", "json"]), st.integers(0, 40), st.booleans())
def test_poems_are_read_whole(path: Path, text: str, reader: Reader, chunk: int, escaped: bool) -> None:
    text = BINARY.sub("", text).replace("\ufeff", "")
    if reader == "json":
        poems = [(part[:2], part) for part in text.split("e")]
        values = [{"title": title, "paragraphs": [poem[:3], poem[3:]]} for title, poem in poems]
        content = json.dumps(values, ensure_ascii=escaped)
        # a pair of halves of line ends that stand in two paragraphs becomes one, as in a file
        expected = [(title, unified(poem).strip()) for title, poem in poems if poem.strip()]
    else:
        content, expected = text, poems_in(unified(text), reader)
    found = load(path, content.encode(), chunk, reader=reader)
    if learnable("".join(poem for _, poem in expected)):
        assert isinstance(found, Corpus), found
        assert list(found.texts) == [poem for _, poem in expected]
        if reader in ("titled", "json"):
            assert list(found.titles) == [title for title, _ in expected]
    else:
        assert isinstance(found, str)


@cases(600)
@given(
    st.binary(max_size=30) | texts(NASTY + CONTROLS).map(str.encode) | texts().map(lambda text: text.encode("utf-16")),
    st.binary(max_size=3),
    st.integers(0, 60),
    st.sampled_from(["text", "poems", "blocks", "titled", "json", "auto"]),
    st.integers(1, 9),
)
def test_any_bytes_are_a_text_or_refused(
    path: Path, content: bytes, more: bytes, place: int, reader: Reader, chunk: int
) -> None:
    content = content[:place] + more + content[place:]
    short = load(path, content, 0, reader=reader)
    if reader != "auto":  # a long file is judged by its beginning
        long = load(path, content, chunk, reader=reader)
        assert short == long if isinstance(short, Corpus) else isinstance(long, str)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if BINARY.search(text):
        assert isinstance(short, str)
        assert "is not in UTF-8" in short or "is not a text file" in short
        assert "byte offset" in short
    elif reader == "text" and learnable(unified(text)):
        assert isinstance(short, Corpus), short


BAD = {
    "empty": (b"", "empty or blank"),
    "only a mark": (b"\xef\xbb\xbf", "empty or blank"),
    "only line ends": (b"\r\n" * 5000, "empty or blank"),
    "only white space": ("\u3000\u2028 \t".encode() * 500, "empty or blank"),
    "one character": ("🂡".encode() * 9000, "one character only"),
    "broken": ("春风".encode() * 50 + b"\xe6\x98", "not in UTF-8: byte 0xe6 at line 1, byte offset 300"),
    "Latin 1": (("déjà vu\n" * 50).encode("latin-1"), "not in UTF-8: byte 0xe9"),
    "UTF-16": (("a text\n" * 50).encode("utf-16"), "not a text file"),
    "UTF-16 of Chinese": (("春风又绿江南岸" * 50).encode("utf-16"), "not in UTF-8"),
    "UTF-16 without a mark": (("a text\n" * 50).encode("utf-16-be"), "control byte 0x00"),
    "UTF-32": (("春风\n" * 50).encode("utf-32"), "control byte 0x00"),
    "GB18030": (("春风\n" * 50).encode("gb18030"), "not in UTF-8"),
    "compressed": (gzip.compress(b"a text\n" * 5000, mtime=0), "not a text file"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "not a text file"),
    "overlong": (b"abc\xc0\xafdef" * 9, "not in UTF-8: byte 0xc0"),
    "a surrogate": (b"abc\xed\xa0\x80def" * 9, "not in UTF-8: byte 0xed"),
    "beyond Unicode": (b"abc\xf4\x90\x80\x80" * 9, "not in UTF-8: byte 0xf4"),
}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line says to a mistake: status 2, one line of printable text, nothing else."""
    assert main([*words, "--impl", "numpy", "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert no_controls(said.out + said.err)
    return said.err


def no_controls(text: str) -> bool:
    """Whether a terminal would show it all, and obey none of it."""
    return not any(
        (each < " " and each not in "\n\t") or "\x7f" <= each <= "\x9f" or each in "\u202e\u2066" for each in text
    )


@pytest.mark.parametrize("reader", ["auto", "text", "poems"])
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_ends_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reader: str
) -> None:
    content, message = BAD[name]
    (tmp_path / "bad.txt").write_bytes(content)
    said = refused(capsys, "--corpus", str(tmp_path / "bad.txt"), "--reader", reader)
    assert message in said
    assert "bad.txt" in said


def test_what_is_no_file_ends_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")  # opening it would wait for ever
    os.symlink("nowhere", "link")
    os.symlink("loop", "loop")
    os.mkdir("red\x1b[31m")
    Path(os.fsdecode(b"caf\xe9.txt")).write_text("a text\n" * 99, "utf-8")
    for name in ("pipe", ".", "/dev/zero", "red\x1b[31m"):
        assert "is not a file" in refused(capsys, "--corpus", name)
    for name in ("link", "loop", "~nobody-of-this-name/x", "missing\x1b[31m", "\ud800", "a\0b", "x" * 9000, "." * 300):
        assert "neither a corpus nor a file" in refused(capsys, "--corpus", name)
    assert "is not in UTF-8, and no report" in refused(capsys, "--corpus", os.fsdecode(b"caf\xe9.txt"))


@pytest.mark.parametrize("size", [100, 20 * 2**20])
def test_an_unreadable_file_ends_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def forbidden(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with (tmp_path / "mine.txt").open("wb") as file:
        file.truncate(size)
    monkeypatch.setattr(Path, "open", forbidden)  # the superuser may read everything
    assert "mine.txt: Permission denied" in refused(capsys, "--corpus", str(tmp_path / "mine.txt"))


@pytest.mark.parametrize(
    ("text", "words", "advice"),
    [
        ("ab", [], "too few to hold out"),
        ("ab" * 20, [], "Lower --seq-length or --batch-size"),
        ("ab" * 9, [], "Lower --batch-size"),
        ("ab" * 40, ["--stride", "3"], "Lower --batch-size, --seq-length or --stride"),
        ("ab\ncd\nef", ["--reader", "poems"], "Lower --batch-size"),
        ("abcd\n" * 99 + "efgh", ["--reader", "poems", "--seq-length", "3"], "Raise --seq-length"),
        ("the other\n" * 9, ["--subwords", "3"], "--subwords 3 is too small"),
        ("the other\n" * 9, ["--subwords", "999"], "--subwords 999 is too large"),
    ],
)
def test_a_text_that_is_too_short_says_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], advice: str
) -> None:
    (tmp_path / "short.txt").write_text(text, "utf-8")
    assert advice in refused(capsys, "--corpus", str(tmp_path / "short.txt"), *words)


# Vocabulary


@cases(400)
@given(st.lists(texts(NASTY + CONTROLS, surrogates=True), min_size=1, max_size=4), st.booleans(), st.randoms())
def test_a_vocabulary_holds_every_symbol(parts: list[str], poems: bool, draw: random.Random) -> None:
    text = "".join(parts)
    if not text:
        with pytest.raises(ConfigError, match="No character occurs"):
            build_vocabulary(parts, 1, poems)
        return
    vocabulary = build_vocabulary(parts, 1, poems)
    assert build_vocabulary(draw.sample(text, len(text)), 1, poems) == vocabulary
    assert sorted(vocabulary.symbols[4 * poems :]) == sorted(set(text))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.lengths[ids].sum() == len(ids) == len(text)
    if not any("\ud800" <= each <= "\udfff" for each in text):  # no file holds them
        assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@cases(300)
@given(texts().filter(bool), texts(NASTY + CONTROLS, surrogates=True), st.booleans())
def test_unknown_symbols_are_replaced_or_refused(known: str, text: str, poems: bool) -> None:
    vocabulary = build_vocabulary([known], 1, poems)
    unseen = [each for each in text if each not in known]
    assert vocabulary.unknown(text) == list(dict.fromkeys(unseen))
    if unseen and not poems:
        with pytest.raises(VocabularyError, match=f"at index {text.index(unseen[0])} "):
            vocabulary.encode(text)
        return
    ids = vocabulary.encode(text)
    assert [each in known for each in text] == [token != vocabulary.unk for token in ids]
    assert vocabulary.decode(ids) == "".join(each if each in known else "\N{REPLACEMENT CHARACTER}" for each in text)


@cases(300)
@given(texts().filter(bool), texts(NASTY + CONTROLS, surrogates=True), st.integers(1, 30), st.booleans())
def test_subwords_lose_nothing(training: str, other: str, more: int, poems: bool) -> None:
    characters = build_vocabulary([training, "the"], 1, poems)  # a part of the text that teaches no subword
    with suppress(ConfigError):  # fewer are to be learned
        vocabulary = add_subwords(characters, [training], len(characters) + more)
        assert vocabulary.symbols[: len(characters)] == characters.symbols
        assert add_subwords(characters, [training], len(characters) + more) == vocabulary
        for text in (training, "the" + training[::-1], training * 3):
            ids = vocabulary.encode(text)
            assert vocabulary.decode(ids) == text
            assert vocabulary.lengths[ids].sum() == len(text)
        if poems:
            known = "".join(each if each in training + "the" else "\N{REPLACEMENT CHARACTER}" for each in other)
            assert vocabulary.decode(vocabulary.encode(other)) == known
        elif vocabulary.unknown(other):
            with pytest.raises(VocabularyError):
                vocabulary.encode(other)


# Split


@cases(300)
@given(st.lists(texts(), min_size=1, max_size=12), st.sampled_from([0.5, 0.1, 0.3, 0.0001, 1e-9, 0.0]), st.booleans())
def test_a_split_is_the_text(parts: list[str], share: float, packed: bool) -> None:
    def made(texts: Any, poems: bool) -> Corpus:
        return Corpus("made", poems, texts, (), "", "", "", "poems" if poems else "text")

    whole = "".join(parts)
    with suppress(CorpusError):  # too short
        (training,), (held_out,) = split(made((whole,), poems=False), share)
        assert (training, held_out) == (whole, whole) if not share else training + held_out == whole  # type: ignore[operator]
        assert not share or len(held_out) >= max(2, share * len(whole))
    if len(set(parts)) > 1 and share:
        seen, unseen = split(made(Packed.of(parts) if packed else tuple(parts), poems=True), share)
        left, right = list(seen), list(unseen)
        assert Counter(left) + Counter(right) == Counter(parts)
        assert not set(left) & set(right)
        assert left == [part for part in parts if part in set(left)]
        assert right == [part for part in parts if part in set(right)]
        assert 0 < len(set(right)) - share * len(set(parts)) + 1 <= 2


# Batches


def check_refusal(error: CorpusError, right: bool, advice: str) -> None:
    """A text was refused for a reason, and the message says what to do."""
    assert right, error
    assert advice in str(error)


def epoch_of(batches: Batches, epoch: int) -> list[Batch]:
    found = [batches.batch(epoch, index) for index in range(len(batches))]
    for batch in found:
        assert batch.tokens.shape == batch.targets.shape == batch.mask.shape
        assert not (~batch.mask[:, :-1] & batch.mask[:, 1:]).any()  # padding stands at the end
    return found


def row_of(epoch: list[Batch], row: int, field: str) -> list[int]:
    """What a row holds, batch after batch, without padding."""
    return [int(each) for batch in epoch for each in getattr(batch, field)[row][batch.mask[row]]]


@cases(500)
@given(texts().filter(bool), st.integers(1, 9), st.integers(1, 20), st.integers(1, 5))
def test_a_stream_is_predicted_once_and_in_order(text: str, B: int, T: int, times: int) -> None:
    text = text * times
    vocabulary = build_vocabulary([text], 1, poems=False)
    tokens = vocabulary.encode(text)
    try:
        batches = StreamBatches(tokens, B, T)
    except CorpusError as error:
        check_refusal(error, len(text) - 1 < B * T, "Lower --")
        return
    epoch = epoch_of(batches, 0)
    rows = [row_of(epoch, row, "targets") for row in range(B)]
    assert vocabulary.decode(token for row in rows for token in row) == text[1:]
    read = [row_of(epoch, row, "tokens") for row in range(B)]
    assert vocabulary.decode(token for row in read for token in row) == text[:-1]
    for row, targets in zip(read, rows, strict=True):
        assert row[1:] == targets[:-1]
    for before, after in pairwise(rows):
        assert abs(len(before) - len(after)) <= 1
    assert [batch.reset.tolist() for batch in epoch] == [[index == 0] * B for index in range(len(epoch))]
    assert all(batch.mask.all() for batch in epoch[:-1])
    assert batches.counts(len(vocabulary)).tolist() == np.bincount(tokens[1:], minlength=len(vocabulary)).tolist()


@cases(450)
@given(
    texts().filter(bool),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 2**63 - 1),
    st.booleans(),
    st.booleans(),
)
def test_every_window_is_read_once(
    text: str, B: int, T: int, stride: int, seed: int, shuffle: bool, many: bool
) -> None:
    tokens = build_vocabulary([text], 1, poems=False).encode(text)
    wanted = [tuple(tokens[start : start + T + 1].tolist()) for start in range(0, len(tokens) - T, stride)]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "ORDERED", 0 if many else 10**9)
            batches = WindowBatches(tokens, B, T, stride, seed, shuffle)
            epoch = epoch_of(batches, 3)
    except CorpusError as error:
        check_refusal(error, len(wanted) < B, "Lower --batch-size, --seq-length or --stride")
        return
    rows = [
        (*row.tolist(), int(targets[-1]))
        for batch in epoch
        for row, targets, mask in zip(batch.tokens, batch.targets, batch.mask, strict=True)
        if mask.all()
    ]
    for batch in epoch:
        assert batch.reset.all()
        assert (batch.mask.all(axis=1) | ~batch.mask.any(axis=1)).all()
        np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    if shuffle:
        assert not Counter(rows) - Counter(wanted)
        assert len(rows) == len(wanted) // B * B
    else:
        assert rows == wanted


@cases(450)
@given(
    st.lists(texts(), min_size=1, max_size=20),
    st.integers(1, 5),
    st.sampled_from([1, 2, 5, 12, 40, 254, 255, 256, 257, 1000]),
    st.integers(0, 2**63 - 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_poem_is_read_once(
    poems: list[str], B: int, T: int, seed: int, shuffle: bool, cut: bool, many: bool
) -> None:
    vocabulary = build_vocabulary([*poems, "\n"], 1, poems=True)
    marks = {"<": vocabulary.bos, ">": vocabulary.eos}
    wanted = [f"<{poem}>"[: T + 1] for poem in poems if cut or len(poem) < T]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "ORDERED", 0 if many else 10**9)
            batches = PoemBatches(map(vocabulary.encode, poems), B, T, vocabulary, seed, shuffle, cut)
            epoch = epoch_of(batches, 5)
    except CorpusError as error:
        check_refusal(error, len(wanted) < B, "--seq-length")
        return
    longer = sum(len(poem) >= T for poem in poems)
    assert (batches.left_out, batches.cut) == ((0, longer) if cut else (longer, 0))
    found = []
    for batch in epoch:
        assert batch.reset.all()
        np.testing.assert_array_equal(batch.tokens[~batch.mask], vocabulary.pad)
        np.testing.assert_array_equal(batch.targets[~batch.mask], vocabulary.pad)
        for tokens, targets, mask in zip(batch.tokens, batch.targets, batch.mask, strict=True):
            if mask.any():
                assert tokens[0] == marks["<"]
                assert tokens[mask][1:].tolist() == targets[mask][:-1].tolist()
                ended = targets[mask][-1] == marks[">"]
                assert vocabulary.bos not in targets
                assert (targets[mask] == marks[">"]).sum() == ended
                found.append("<" + vocabulary.decode(targets[mask]) + ">" * bool(ended))
    # Of each batch the longest first, and of equal ones the first.
    in_order = [each for k in range(0, len(wanted), B) for each in sorted(wanted[k : k + B], key=len, reverse=True)]
    assert Counter(found) == Counter(wanted) if shuffle else found == in_order
    predicted = np.concatenate([batch.targets[batch.mask] for batch in epoch])
    assert batches.counts(len(vocabulary)).tolist() == np.bincount(predicted, minlength=len(vocabulary)).tolist()


@cases(300)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_an_order_that_is_not_held_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    places = np.arange(count)
    order = scattered(seed, f"epoch.{epoch}", count, places)
    assert sorted(order.tolist()) == places.tolist()
    assert scattered(seed, f"epoch.{epoch}", count, places[::-3]).tolist() == order[::-3].tolist()
    if count > 20:
        assert order.tolist() != places.tolist()
        assert order.tolist() != scattered(seed, f"epoch.{epoch + 1}", count, places).tolist()


def test_an_order_that_is_not_held_is_well_mixed() -> None:
    """Neighbours in a shuffled epoch of 10,000 rows stand anywhere in the text."""
    order = scattered(1, "epoch.0", 10_000, np.arange(10_000))
    both = np.histogram2d(order[:-1], order[1:], bins=10)[0]  # 100 expected in each
    assert ((both - 100) ** 2 / 100).sum() < 170  # chi squared with 99 degrees of freedom: p > 0.00001
    large = scattered(1, "epoch.0", 10**9, np.arange(1000))
    assert len(set(large.tolist())) == 1000
    assert 0.45e9 < large.mean() < 0.55e9
    assert large.max() > 2**29


@cases(300)
@given(texts(), st.integers(1, 5), st.integers(1, 8), st.sampled_from([0, 7]), st.sampled_from(["text", "poems"]))
def test_from_file_to_batches_nothing_is_lost(
    path: Path, text: str, B: int, T: int, chunk: int, reader: Reader
) -> None:
    text = unified(BINARY.sub("", text).replace("\ufeff", "") * 3)
    path.write_bytes(text.encode())
    try:
        with long_from(1 if chunk else 10**9, chunk or 1):
            options = CorpusConfig(str(path), reader, cut=reader == "poems", held_out=0.3)
            found = prepare(options, TrainingConfig(batch_size=B, seq_length=T), ModelConfig())
    except UserError:
        return
    parts = [epoch_of(batches, 0) for batches in (found.training, found.held_out)]
    if reader == "text":
        rows = [
            [token for row in range(len(part[0].tokens)) for token in row_of(part, row, "targets")] for part in parts
        ]
        border = len(rows[0]) + 1
        assert [found.vocabulary.decode(row) for row in rows] == [text[1:border], text[border + 1 :]]
    else:
        rows = [row[mask] for part in parts for b in part for row, mask in zip(b.targets, b.mask, strict=True)]
        lines = [line.strip()[:T] for line in text.split("\n") if line.strip()]
        assert Counter(found.vocabulary.decode(row) for row in rows if len(row)) == Counter(lines)


# Long lines


HAN = "".join(random.Random(3).choices([chr(code) for code in range(0x4E00, 0x4E00 + 900)], k=3_400_000))
LINES = {"letters": "a" * 10_000_000 + "b", "Chinese": HAN}


@pytest.mark.parametrize("reader", ["auto", "text", "poems", "blocks", "titled", "json"])
@pytest.mark.parametrize("kind", LINES)
def test_a_line_of_ten_megabytes_is_read_in_seconds(tmp_path: Path, kind: str, reader: Reader) -> None:
    line = LINES[kind]
    text = f"first:one\n\n{line}\n\nlast：two\n"
    path = tmp_path / "line.txt"
    path.write_text(json.dumps(text.split("\n")) if reader == "json" else text, "utf-8")
    options = CorpusConfig(str(path), reader, cut=reader not in ("auto", "text"))
    started = time.process_time()
    found = prepare(options, TrainingConfig(batch_size=1, seq_length=9), ModelConfig())
    batch = found.training.batch(0, 0)
    assert time.process_time() - started < 8
    assert batch.mask.any()
    assert sum(map(len, found.corpus.texts)) >= len(line.strip())


@pytest.mark.parametrize("line", [*LINES.values(), ":：。，" * 900_000, "12" * 300_000])
def test_subwords_are_learned_from_a_long_line_in_seconds(line: str) -> None:
    line = line[-300_000:]
    started = time.process_time()
    characters = build_vocabulary([line], 1, poems=False)
    vocabulary = add_subwords(characters, [line], len(characters) + 2)
    assert vocabulary.decode(vocabulary.encode(line)) == line
    assert time.process_time() - started < 8


def test_a_long_run_is_cut_where_subwords_are_learned() -> None:
    text = "ab" * LONGEST
    vocabulary = add_subwords(build_vocabulary([text], 1, poems=False), [text], 9)
    assert max(map(len, vocabulary.symbols)) <= LONGEST
    assert LONGEST in np.cumsum(vocabulary.lengths[vocabulary.encode("abab" + text)])


def test_statistics_of_long_lines_take_seconds() -> None:
    started = time.process_time()
    for line in LINES.values():
        for poems in (False, True):
            describe([[line[:20_000]]], [line[:500_000]], poems)
    assert time.process_time() - started < 10


# End to end


FILES = {
    "nasty": "\n".join(NASTY) * 3,
    "one line": "e\u0301🂡\x9b31m\u202e" * 200,
    "line ends": "\r\n\r\u2028\x85\n" * 200 + "x",
}


@pytest.mark.parametrize("reader", ["text", "poems"])
@pytest.mark.parametrize("name", FILES)
def test_a_nasty_text_is_learned_sampled_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, reader: str
) -> None:
    if reader == "poems" and name != "nasty":
        pytest.skip("a single poem cannot be split")
    monkeypatch.chdir(tmp_path)
    Path("\u202e[b]ad\x1b.txt").write_bytes(FILES[name].encode())
    words = ["--corpus", "\u202e[b]ad\x1b.txt", "--reader", reader, "--impl", "numpy", "--device", "cpu"]
    words += ["--max-steps", "3", "--batch-size", "2", "--seq-length", "12", "--hidden-size", "8", "--length", "60"]
    prompt = {"nasty": "👩\u200d👩\u200d👧\u202e\x9b", "one line": "\x9b31m\u202e", "line ends": "\u2028\x85\n"}[name]
    words += ["--cut"] * (reader == "poems") + ["--prompt", prompt, "--run-dir", "run"]
    assert main(words) == 0
    assert main(["sample", "--checkpoint", "run", "--impl", "numpy", "--prompt", prompt, "--temperature", "2"]) == 0
    assert main(["evaluate", "--checkpoint", "run", "--impl", "numpy", "--json", "score.json"]) == 0
    said = capsys.readouterr()
    assert no_controls(said.out + said.err)
    assert no_controls(Path("run/report.html").read_text("utf-8"))
    assert np.isfinite(json.loads(Path("score.json").read_text("utf-8"))["loss"])
    assert "never showed" in refused(capsys, "sample", "--checkpoint", "run", "--prompt", "\x1b]0;\udcff")


# Memory


GROWN = """
import re, sys
from pathlib import Path
from runner.experiment import prepare
from shared import batching
from shared.config import CorpusConfig, ModelConfig, TrainingConfig
from shared.corpora import corpus, long
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
path, reader, stride = sys.argv[1:]
long.CHUNK, corpus.LONG, batching.COUNTED = 2**18, 1, 2**18
options = TrainingConfig(stride=int(stride)), ModelConfig()
prepare(CorpusConfig(path[1:], reader), *options).facts()
before = peak()
found = prepare(CorpusConfig(path, reader, held_out=0.01), *options)
found.training.batch(0, 1)
found.facts()
print(1024 * (peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOT TESTED: memory is read from /proc")
@pytest.mark.parametrize(("kind", "bound"), [("english", 1.3), ("windows", 1.4), ("poems", 2.8)])
def test_memory_stays_within_bounds(tmp_path: Path, kind: str, bound: float) -> None:
    """What 20 MB take more than 2 MB, so that tables and buffers of fixed sizes do not count."""
    content = b"".join(big_corpus.blocks(big_corpus.KINDS[kind], 20))
    (tmp_path / "+big.txt").write_bytes(content)
    (tmp_path / "big.txt").write_bytes(content[: content.index(b"\n", 2_000_000) + 1])
    reader, stride = ("text", "1" if kind == "windows" else "0") if kind != "poems" else ("poems", "0")
    words = [sys.executable, "-c", GROWN, "+big.txt", reader, stride]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    grown = int(subprocess.check_output(words, cwd=tmp_path, env=settings, timeout=120))
    assert grown < bound * len(content), f"{grown / len(content):.2f}"
