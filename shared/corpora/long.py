"""Texts too long to be held in memory as they are. A running text is read in chunks each time it is needed, and kept
as tokens on a map of a temporary file: everything else sees a text with a length, as if it were a string. Poems are
packed: everything else sees a sequence of strings."""

import codecs
import io
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import overload

import numpy as np

from shared.config import CorpusConfig
from shared.corpora.cleaning import clean
from shared.corpora.readers import BINARY, CONVERT
from shared.errors import CorpusError
from shared.vocabulary import Vocabulary

LONG = 16 * 2**20
"""Bytes from which on a text is not held in memory as strings."""
CHUNK = 2**20
"""Bytes read at a time."""


@dataclass(frozen=True)
class LongText:
    """The characters start..stop of a file, once they are cleaned."""

    path: Path
    config: CorpusConfig
    start: int
    stop: int

    def __len__(self) -> int:
        """Characters."""
        return self.stop - self.start

    def part(self, start: int, stop: int) -> "LongText":
        """The text between two of its own places."""
        return replace(self, start=self.start + start, stop=self.start + stop)

    def chunks(self) -> Iterator[str]:
        """The text, cut anywhere."""
        place = 0
        for chunk in clean(decoded(self.path), self.config):
            inside = chunk[max(self.start - place, 0) : max(self.stop - place, 0)]
            if inside:
                yield inside
            place += len(chunk)
            if place >= self.stop:
                return


Text = str | LongText


@dataclass(frozen=True, eq=False)
class Packed(Sequence[str]):
    """Many short texts in one run of UTF-8, since a string of its own takes some 50 bytes more than its characters."""

    content: bytearray
    starts: np.ndarray
    stops: np.ndarray
    """[n], between which bytes of the content each text lies."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Packed":
        """The texts, in order."""
        content, edges = bytearray(), array("q", [0])
        for text in texts:
            content += text.encode()
            edges.append(len(content))
        places = np.array(edges, np.min_scalar_type(len(content)))
        return cls(content, places[:-1], places[1:])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "Packed": ...
    def __getitem__(self, place: int | slice) -> "str | Packed":
        if isinstance(place, slice):
            return Packed(self.content, self.starts[place], self.stops[place])
        return self.content[self.starts[place] : self.stops[place]].decode()

    def __iter__(self) -> Iterator[str]:
        edges = zip(memoryview(self.starts), memoryview(self.stops), strict=True)  # integers made one at a time
        return (self.content[start:stop].decode() for start, stop in edges)

    def chosen(self, which: np.ndarray) -> "Packed":
        """Those for which bool [n] is True."""
        return Packed(self.content, self.starts[which], self.stops[which])


def pieces(text: Text) -> Iterator[str]:
    """The text, cut anywhere."""
    return text.chunks() if isinstance(text, LongText) else iter((text,))


def beginning(text: Text, count: int) -> str:
    """Its first characters."""
    return text[:count] if isinstance(text, str) else "".join(text.part(0, min(count, len(text))).chunks())


def survey(path: Path, config: CorpusConfig) -> tuple[LongText, str]:
    """The whole of a file's text, and the sha256 of its bytes; CorpusError where the file is no text."""
    return LongText(path, config, 0, sum(map(len, clean(decoded(path), config)))), digest_of(path)


def digest_of(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def decoded(path: Path) -> Iterator[str]:
    """Text whose lines end in a line feed, chunk by chunk."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    with path.open("rb") as file:
        block = b"any"
        while block:
            block = file.read(CHUNK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = file.tell() - len(error.object) + error.start
                byte = error.object[error.start]
                raise CorpusError(
                    f"{path} is not in UTF-8: byte {byte:#04x} at byte offset {offset}. {CONVERT}"
                ) from None
            if found := BINARY.search(text):
                before = file.tell() - len(text[found.start() :].encode(errors="surrogatepass"))
                raise CorpusError(
                    f"{path} is not a text file: it holds the control byte {ord(found[0]):#04x} near byte offset "
                    f"{before}. {CONVERT}"
                )
            if text:
                yield text


def encode(vocabulary: Vocabulary, text: Text) -> np.ndarray:
    """The tokens of a text: int32 [n], or in the smallest unsigned type on a map of a temporary file, which the system
    removes with the last array that looks at it."""
    if isinstance(text, str):
        return vocabulary.encode(text)
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    seen = count = 0
    try:
        with tempfile.TemporaryFile(prefix="rosetta-rnn-") as file:
            for chunk in lines(text.chunks()):
                seen += len(chunk)
                count += file.write(vocabulary.encode(chunk).astype(dtype).tobytes())
            file.flush()
            mapped = np.memmap(file, dtype, "r") if count else np.zeros(0, dtype)
    except OSError as error:
        raise CorpusError(
            f"Cannot copy {text.path} as tokens into a temporary file in {tempfile.gettempdir()}: "
            f"{error.strerror or error}. Make room there, or set TMPDIR to a folder that has some."
        ) from None
    if seen != len(text):
        raise CorpusError(f"{text.path} was changed while it was read; start again.")
    return np.asarray(mapped)


def lines(chunks: Iterator[str]) -> Iterator[str]:
    """The same text, cut behind line ends where it has any, since no subword goes beyond a line."""
    rest = ""
    for chunk in chunks:
        whole, end, last = (rest + chunk).rpartition("\n")
        if end:
            yield whole + end
        rest = last
        if len(rest) > CHUNK:
            yield rest
            rest = ""
    if rest:
        yield rest
