"""Characters <-> token ids. A vocabulary is its symbols in order: the special ones first, then the characters, the
most frequent first, ties by code point."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shared.errors import CheckpointError, ConfigError, VocabularyError

Array = np.ndarray
PAD, UNK, BOS, EOS = SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
"""Padding, unknown character, beginning and end of a poem; no character can be one, since each is several."""
CODE_POINTS = 0x110000
UNKNOWN = -1


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
        """int32 [n], one id for each character. An unknown character becomes UNK; without UNK, VocabularyError."""
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

    def to_json(self) -> list[str]:
        """A JSON value."""
        return list(self.symbols)

    @staticmethod
    def from_json(value: Any) -> "Vocabulary":
        """The vocabulary again; CheckpointError where the value is none."""
        if not (isinstance(value, list) and value and all(map(is_symbol, value))):
            raise CheckpointError("A vocabulary must be a JSON list of single characters and special symbols.")
        if len(set(value)) != len(value):
            raise CheckpointError("A vocabulary must hold each symbol once; this one repeats some.")
        return Vocabulary(tuple(value))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: token for token, symbol in enumerate(self.symbols)}

    @cached_property
    def _table(self) -> Array:
        """int32, code point -> id."""
        table = np.full(CODE_POINTS, UNKNOWN, np.int32)
        for symbol, token in self._ids.items():
            if symbol not in SPECIALS:
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
    a minimum makes it necessary."""
    counts = np.bincount(code_points("".join(texts)), minlength=1)
    kept = np.flatnonzero(counts >= max(minimum_count, 1))
    if not len(kept):
        raise ConfigError(f"No character occurs {minimum_count} times (--minimum-count); at most {counts.max()} times.")
    specials = SPECIALS if poems else (UNK,) * (minimum_count > 1)
    ordered = kept[np.argsort(-counts[kept], kind="stable")]
    return Vocabulary(specials + tuple(map(chr, ordered)))


def code_points(text: str) -> Array:
    """uint32 [n]; lone surrogates, which a shell can hand over, are code points like any other."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def is_symbol(value: Any) -> bool:
    """Whether a JSON value is a special symbol or one character that a file can hold."""
    return value in SPECIALS or (isinstance(value, str) and len(value) == 1 and not "\ud800" <= value <= "\udfff")
