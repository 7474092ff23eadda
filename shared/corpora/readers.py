"""From bytes to texts. Files are UTF-8, with or without a byte order mark, with any line ends.

text    one running text
poems   one poem a line
blocks  poems between blank lines; Chinese is wrapped and its lines are joined, other poems keep their line ends
titled  `title:poem` a line, the colon ASCII or full-width: the first of the kind that most lines have divides
json    a list of poems: strings, or objects with `paragraphs` (a string, or strings that are joined as they are) and,
        if they like, a `title`
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from shared.config import Reader
from shared.errors import CorpusError

BINARY = re.compile("[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff]")
"""No text holds these: controls other than tab, line ends and form feed; halves of characters (from JSON escapes)."""
COLON = re.compile("[:：]")
HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TITLED_LINE = re.compile(rf"[^:：]{{1,40}}[:：](?=(?:[^{HAN}]*[{HAN}]){{5}}).*[。！？]")
VERSE_LINE = re.compile(r"(?=.{2,300}$)(?=.*[，。])[^:：]*[。！？]")
ENOUGH = 0.95
"""Share of lines that must look like poems."""


class Poem(NamedTuple):
    """What a reader finds; a running text is one without a title."""

    title: str
    text: str


Source = Callable[[], Iterator[str]]
"""The text of a file, cut anywhere, as often as it is asked for: no reader but json's needs all of it at once."""


def decode(content: bytes, place: str) -> str:
    """Text whose lines end in a line feed; CorpusError where the bytes are no text, or not in UTF-8."""
    body = content.removeprefix(codecs.BOM_UTF8)
    if found := re.search(rb"[\x00-\x08\x0b\x0e-\x1f]", body):
        where = locate(content, found.start() + len(content) - len(body))
        raise CorpusError(
            f"{place} is not a text file: it holds the control byte {found[0][0]:#04x} at {where}. {CONVERT}"
        )
    try:
        return unify_line_ends(body.decode())
    except UnicodeDecodeError as error:
        where = locate(content, error.start + len(content) - len(body))
        raise CorpusError(f"{place} is not in UTF-8: byte {body[error.start]:#04x} at {where}. {CONVERT}") from None


CONVERT = (
    "Save it as UTF-8 in an editor, or convert it: iconv -f GB18030 -t UTF-8 OLD > NEW (the encoding may be another)."
)


def locate(content: bytes, offset: int) -> str:
    """Where a byte stands, for people and for machines."""
    before = unify_line_ends(content[:offset].decode(errors="replace"))
    return f"line {before.count(chr(10)) + 1}, byte offset {offset}"


def unify_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def choose_reader(text: str, path: Path) -> Reader:
    """The reader that suits a file of unknown form: by its suffix, else by what nearly all of its lines look like."""
    if path.suffix.lower() == ".json":
        return "json"
    lines = list(lines_of(lambda: iter((text,))))
    if mostly(TITLED_LINE, lines) and mostly_distinct(lines):
        return "titled"
    return "poems" if mostly(VERSE_LINE, lines) else "text"


def mostly(pattern: re.Pattern[str], lines: list[str]) -> bool:
    """Whether nearly all of at least two lines match."""
    return len(lines) >= 2 and sum(bool(pattern.fullmatch(line)) for line in lines) >= ENOUGH * len(lines)


def mostly_distinct(lines: list[str]) -> bool:
    """Whether what stands before the colon is a title: the few speakers of a play return all the time."""
    return 2 * len({COLON.split(line, maxsplit=1)[0] for line in lines}) >= len(lines)


def read(source: Source, reader: Reader, place: str) -> Iterator[Poem]:
    """What a file holds, blank poems left out."""
    return (poem for poem in READERS[reader](source, place) if poem.text.strip())


def read_text(source: Source, _place: str) -> Iterator[Poem]:
    yield Poem("", "".join(source()))


def read_poems(source: Source, _place: str) -> Iterator[Poem]:
    return (Poem("", line) for line in lines_of(source))


def read_blocks(source: Source, _place: str) -> Iterator[Poem]:
    stripped = (line.strip() for line in all_lines(source))
    return (Poem("", join_lines(list(block))) for filled, block in groupby(stripped, bool) if filled)


def join_lines(lines: list[str]) -> str:
    return ("" if re.search(f"[{HAN}]", "".join(lines)) else "\n").join(lines)


def read_titled(source: Source, _place: str) -> Iterator[Poem]:
    """A line without a colon is a poem without a title."""
    usual, other = sorted(":：", key=lambda colon: -sum(colon in line for line in lines_of(source)))
    for line in lines_of(source):
        *title, text = line.split(usual if usual in line else other, maxsplit=1)
        yield Poem("".join(title).strip(), text.strip())


def read_json(source: Source, place: str) -> Iterator[Poem]:
    try:
        items = json.loads("".join(source()))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{place} is not JSON: {error}. Another form of file is read with --reader.") from None
    if not isinstance(items, list):
        raise CorpusError(f"{place} must hold a JSON list of poems, but holds {type(items).__name__}.")
    return (json_poem(item, f"{place}, poem {index} (counted from 0),") for index, item in enumerate(items))


def json_poem(item: Any, place: str) -> Poem:
    """A string, or an object with paragraphs."""
    fields = item if isinstance(item, dict) else {"paragraphs": item}
    title, paragraphs = fields.get("title") or "", fields.get("paragraphs")
    parts = [paragraphs] if isinstance(paragraphs, str) else paragraphs
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in [title, *parts])):
        raise CorpusError(f"{place} must be a string or an object with `paragraphs` (a string or a list of strings).")
    poem = Poem(title, unify_line_ends("".join(parts)).strip())
    if found := BINARY.search(title + poem.text):
        raise CorpusError(f"{place} holds {found[0]!r}, which no text does.")
    return poem


def lines_of(source: Source) -> Iterator[str]:
    """The lines that are not blank, without space around them."""
    return (stripped for line in all_lines(source) if (stripped := line.strip()))


def all_lines(source: Source) -> Iterator[str]:
    """The lines, without their ends."""
    parts: list[str] = []  # of a line that is longer than a piece
    for piece in source():
        first, *others = piece.split("\n")
        parts.append(first)
        if others:
            yield "".join(parts)
            yield from others[:-1]
            parts = others[-1:]
    yield "".join(parts)


READERS = {"text": read_text, "poems": read_poems, "blocks": read_blocks, "titled": read_titled, "json": read_json}
