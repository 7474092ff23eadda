"""Text <-> token ids. A vocabulary is its symbols in order: the special ones first, then the characters, the most
frequent first, ties by code point, then the subwords, if there are any, in the order in which they were learned."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shared.errors import CheckpointError, ConfigError, VocabularyError
from shared.subwords import HALVES, LONGEST, Encoder, learn, splits

Array = np.ndarray
PAD, UNK, BOS, EOS = SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
"""Padding, unknown character, beginning and end of a poem. No character can be one, since each is several; no subword
may."""
CODE_POINTS = 0x110000
UNKNOWN = -1
GATHERED = 2**20
"""Characters counted at a time."""


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a model; the index of a symbol is its token id."""

    symbols: tuple[str, ...]

    def __len__(self) -> int:
        """V."""
        return len(self.symbols)

    @property
    def pad(self) -> int | None:
        return self._ids.get(PAD)

    @property
    def unk(self) -> int | None:
        return self._ids.get(UNK)

    @property
    def bos(self) -> int | None:
        return self._ids.get(BOS)

    @property
    def eos(self) -> int | None:
        return self._ids.get(EOS)

    def encode(self, text: str) -> Array:
        """int32 [n], one id for each character, or fewer with subwords. An unknown character becomes UNK; without UNK,
        VocabularyError."""
        if self._encoder:
            if self.unk is None and (unseen := self.unknown(text)):
                raise VocabularyError(self._complaint(text, text.index(unseen[0])))
            return self._encoder(text)
        ids: Array = self._table[code_points(text)]
        if self.unk is None and (ids == UNKNOWN).any():
            raise VocabularyError(self._complaint(text, int(np.argmax(ids == UNKNOWN))))
        return ids if self.unk is None else np.where(ids == UNKNOWN, np.int32(self.unk), ids)

    def unknown(self, text: str) -> list[str]:
        """The distinct characters that the vocabulary does not hold, in the order of the text."""
        return [character for character in dict.fromkeys(text) if character not in self._ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text again: UNK as the replacement character, the other special symbols as nothing."""
        return "".join([self._written[token] for token in ids])

    @cached_property
    def lengths(self) -> Array:
        """int64 [V], the characters that each token stands for: none for what is not written, one for UNK."""
        return np.array([len(symbol) for symbol in self._written])

    def to_json(self) -> list[str]:
        """A JSON value."""
        return list(self.symbols)

    @staticmethod
    def from_json(value: Any) -> "Vocabulary":
        """The vocabulary again; CheckpointError where the value is none."""
        if not (isinstance(value, list) and value and all(map(is_symbol, value))):
            raise CheckpointError("A vocabulary must be a JSON list of characters, subwords and special symbols.")
        if len(set(value)) != len(value):
            raise CheckpointError("A vocabulary must hold each symbol once; this one repeats some.")
        text = {symbol for symbol in value if symbol not in SPECIALS}
        if not text:
            raise CheckpointError("A vocabulary must hold a character; this one has special symbols only.")
        if len(longest := max(text, key=len)) > LONGEST:
            raise CheckpointError(f"A subword has at most {LONGEST} characters; one has {len(longest)}.")
        if lone := [symbol for symbol in text if len(symbol) > 1 and not any(splits(symbol, text))]:
            raise CheckpointError(f"The vocabulary's {min(lone)!r} is not made of two other symbols: it is no subword.")
        return Vocabulary(tuple(value))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: token for token, symbol in enumerate(self.symbols)}

    @cached_property
    def _encoder(self) -> Encoder | None:
        """None where every symbol is a character."""
        if all(len(symbol) == 1 or symbol in SPECIALS for symbol in self.symbols):
            return None
        return Encoder(self.symbols, None if self.unk is None else UNK, SPECIALS)

    @cached_property
    def _table(self) -> Array:
        """int32, code point -> id."""
        table = np.full(CODE_POINTS, UNKNOWN, np.int32)
        for symbol, token in self._ids.items():
            if symbol not in SPECIALS:  # nothing else is longer here: subwords have their own encoder
                table[ord(symbol)] = token
        return table

    @cached_property
    def _written(self) -> list[str]:
        written = dict.fromkeys(SPECIALS, "") | {UNK: "\N{REPLACEMENT CHARACTER}"}
        return [written.get(symbol, symbol) for symbol in self.symbols]

    def _complaint(self, text: str, first: int) -> str:
        unseen = self.unknown(text)
        named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unseen[:10])
        return (
            f"The text holds {len(unseen)} distinct characters that are not among the {len(self)} symbols of the "
            f"vocabulary: {named}{', ...' if len(unseen) > 10 else ''}; the first stands at index {first} "
            f"(line {text.count(chr(10), 0, first) + 1}). Leave them out, or train a model whose corpus holds them; "
            "--minimum-count 2 at training time gives it a symbol for the unknown."
        )


def build_vocabulary(texts: Iterable[str], minimum_count: int, poems: bool) -> Vocabulary:
    """The characters that occur at least so often. Poems have all four special symbols; a running text has UNK where
    a minimum makes it necessary. Texts may be pieces of one."""
    counts = count_characters(texts)
    kept = np.flatnonzero(counts >= max(minimum_count, 1))
    if not len(kept):
        raise ConfigError(f"No character occurs {minimum_count} times (--minimum-count); at most {counts.max()} times.")
    specials = SPECIALS if poems else (UNK,) * (minimum_count > 1)
    ordered = kept[np.argsort(-counts[kept], kind="stable")]
    return Vocabulary(specials + tuple(map(chr, ordered)))


def add_subwords(characters: Vocabulary, training: Iterable[str], size: int) -> Vocabulary:
    """`size` symbols: those of the vocabulary, and subwords learned from the training text."""
    known = [symbol for symbol in characters.symbols if symbol not in SPECIALS]
    if size <= len(characters):
        raise ConfigError(
            f"--subwords {size} is too small: the characters of this corpus and the special symbols are "
            f"{len(characters)} already, and subwords come on top."
        )
    learned = learn(training, known, size - len(characters), SPECIALS)
    if len(characters) + len(learned) < size:
        raise ConfigError(
            f"--subwords {size} is too large: with every subword that the training text holds, the vocabulary has "
            f"{len(characters) + len(learned)} symbols."
        )
    return Vocabulary(characters.symbols + tuple(learned))


def count_characters(texts: Iterable[str]) -> Array:
    """int64 [CODE_POINTS], how often each occurs."""
    counts = np.zeros(CODE_POINTS, np.int64)
    for part in gathered(texts):
        found = np.bincount(code_points(part))
        counts[: len(found)] += found
    return counts


def gathered(texts: Iterable[str]) -> Iterator[str]:
    """The texts in pieces of some size, since an operation on each poem alone would take its time."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= GATHERED:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def code_points(text: str) -> Array:
    """uint32 [n]; lone surrogates, which a shell can hand over, are code points like any other."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def is_symbol(value: Any) -> bool:
    """Whether a JSON value is a string of characters that a file can hold."""
    return isinstance(value, str) and value != "" and not HALVES.search(value)
