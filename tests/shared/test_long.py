"""Texts that are not held in memory read like those that are."""

import json
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from shared.batching import StreamBatches
from shared.config import CorpusConfig, Reader
from shared.corpora import Corpus, LongText, load_corpus, split
from shared.corpora import corpus as corpus_module
from shared.corpora import long as long_module
from shared.corpora.long import Packed, beginning, encode, pieces
from shared.errors import CorpusError
from shared.vocabulary import Vocabulary, add_subwords, build_vocabulary


def made_up() -> str:
    """Lines of one to four bytes a character, some longer than a chunk."""
    draw = random.Random(7)
    lines = ("".join(draw.choices("abcdef é红山🂡", k=draw.choice([0, 3, 40, 400]))) for _ in range(60))
    return "\n".join(lines)


TEXT = made_up()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every chunk ends within a character, a line or a line end, somewhere."""
    monkeypatch.setattr(long_module, "CHUNK", 37)
    monkeypatch.setattr(corpus_module, "LONG", 100)


def load(folder: Path, content: bytes | str, **options: object) -> Corpus:
    path = folder / "long.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_corpus(CorpusConfig(str(path), **options))  # type: ignore[arg-type]


def whole(text: object) -> str:
    assert isinstance(text, LongText)
    return "".join(pieces(text))


def test_a_long_text_reads_like_a_short_one(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()
    corpus = load(tmp_path, content)
    assert whole(corpus.texts[0]) == TEXT
    assert len(corpus.texts[0]) == len(TEXT)
    assert (corpus.reader, corpus.sha256) == ("text", sha256(content).hexdigest())
    assert beginning(corpus.texts[0], 50) == TEXT[:50]
    assert beginning(corpus.texts[0], 10**9) == TEXT


@pytest.mark.parametrize(
    "options",
    [{"normalize": "letters"}, {"drop": "a🂡"}, {"first_characters": 777}, {"normalize": "letters", "drop": "b"}],
)
def test_options_do_the_same_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    long = load(tmp_path, TEXT, **options)
    monkeypatch.setattr(corpus_module, "LONG", 10**9)
    assert (whole(long.texts[0]),) == load(tmp_path, TEXT, **options).texts


def test_it_is_split_and_encoded_alike(tmp_path: Path) -> None:
    corpus = load(tmp_path, TEXT)
    (training,), (held_out,) = split(corpus, 0.2)
    border = len(TEXT) - -(-len(TEXT) // 5)
    assert (whole(training), whole(held_out)) == (TEXT[:border], TEXT[border:])
    vocabulary = build_vocabulary(pieces(corpus.texts[0]), 1, poems=False)
    assert vocabulary == build_vocabulary([TEXT], 1, poems=False)
    tokens = encode(vocabulary, held_out)
    assert tokens.dtype == np.uint8
    assert tokens.tolist() == vocabulary.encode(TEXT[border:]).tolist()
    expected = StreamBatches(vocabulary.encode(TEXT[border:]), 3, 4)
    for field, like in zip(StreamBatches(tokens, 3, 4).batch(0, 1), expected.batch(0, 1), strict=True):
        np.testing.assert_array_equal(field, like)
        assert type(field) is np.ndarray


def test_subwords_of_a_long_text_are_those_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_module, "CHUNK", 1000)  # no line is longer
    text = load(tmp_path, TEXT).texts[0]
    vocabulary = add_subwords(build_vocabulary([TEXT], 1, poems=False), [TEXT], 60)
    assert encode(vocabulary, text).tolist() == vocabulary.encode(TEXT).tolist()


def test_large_ids_take_two_bytes(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    tokens = encode(build_vocabulary([text], 1, poems=False), load(tmp_path, text).texts[0])
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == list(range(300))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a" * 200 + b"\xe7\xba", "not in UTF-8: byte 0xe7 at byte offset 200"),
        (b"\xef\xbb\xbf" + "红".encode() * 50 + b"\xff" + b"a" * 99, "byte 0xff at byte offset 153"),
        (b"ab" * 100 + b"\0" + b"a" * 300, "control byte 0x00 near byte offset 200"),
        (b" \n" * 100, "empty or blank"),
        (b"a" * 200, "one character only, 'a'"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load(tmp_path, content)


VERSES = ("残雪檐头滴，泥炉火渐微。", "one line, 🂡", "残雪檐头滴，泥炉火渐微。", "é", "阿婆翻历本，窗外燕先归。")
FORMS = {
    "poems": "\n \n".join(VERSES) + "\n",
    "blocks": "\n \t\n\n".join(VERSES).replace(", ", "\n "),
    "titled": "\r\n".join(f"{place}: a：{verse}" for place, verse in enumerate(VERSES)),
    "json": json.dumps([{"title": str(place), "paragraphs": verse} for place, verse in enumerate(VERSES)]),
}


@pytest.mark.parametrize("reader", FORMS)
def test_long_files_of_poems_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader) -> None:
    long = load(tmp_path, FORMS[reader], reader=reader)
    monkeypatch.setattr(corpus_module, "LONG", 10**9)
    short = load(tmp_path, FORMS[reader], reader=reader)
    assert isinstance(long.texts, Packed)
    assert (tuple(long.texts), tuple(long.titles)) == (short.texts, short.titles)
    assert (long.sha256, long.reader, long.poems) == (short.sha256, reader, True)
    for mine, theirs in zip(split(long, 0.4), split(short, 0.4), strict=True):
        assert tuple(mine) == theirs
    assert (len(long.texts), long.texts[1], tuple(long.texts[3:0:-2])) == (5, short.texts[1], short.texts[3:0:-2])


def test_the_beginning_of_a_long_file_decides_how_it_is_read(tmp_path: Path) -> None:
    verse = "残雪檐头滴，泥炉火渐微。"
    assert load(tmp_path, "\n".join([verse] * 20), reader="text").reader == "text"
    assert load(tmp_path, "\n".join([verse] * 20)).reader == "text"  # a chunk of 37 bytes is one line


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    corpus = load(tmp_path, TEXT)
    (tmp_path / "long.txt").write_text(TEXT[:-100], "utf-8")
    with pytest.raises(CorpusError, match="was changed while it was read"):
        encode(build_vocabulary([TEXT], 1, poems=False), corpus.texts[0])


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    text = load(tmp_path, TEXT).texts[0]
    monkeypatch.setattr(long_module.tempfile, "TemporaryFile", full)
    with pytest.raises(CorpusError, match=r"No space left on device.*set TMPDIR"):
        encode(build_vocabulary([TEXT], 1, poems=False), text)


def test_characters_unknown_to_the_vocabulary_are_named(tmp_path: Path) -> None:
    text = load(tmp_path, TEXT).texts[0]
    with pytest.raises(Exception, match="'红'"):
        encode(Vocabulary(tuple("abcdef é🂡\n")), text)


MEASURE = """
import resource, sys
from shared.config import CorpusConfig
from shared.corpora import load_corpus, split
from shared.corpora.long import encode, pieces
from shared.vocabulary import build_vocabulary
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = load_corpus(CorpusConfig(sys.argv[1]))
vocabulary = build_vocabulary(pieces(corpus.texts[0]), 1, poems=False)
tokens = [encode(vocabulary, text) for text, in split(corpus)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(map(len, tokens)))
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    line = "The weigh house at Ossel, before sunrise.\n"
    path = tmp_path / "long.txt"
    path.write_text(line * (2**26 // len(line)), "ascii")
    command = [sys.executable, "-c", MEASURE, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    grown, tokens = map(int, said.split())
    assert tokens == path.stat().st_size
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < path.stat().st_size
