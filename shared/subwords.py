"""Byte pair encoding over characters (Sennrich et al. 2016), by the library `tokenizers`, which is loaded where it is
needed: to learn subwords and to encode with them; decoding needs none.

A vocabulary of subwords is its symbols and nothing else: two neighbours are merged if what they make together is a
symbol, the one with the lowest id first. A subword stays within a line and within a run of letters, of digits, or of
other marks, with the space before it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import ImplementationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST = 256
"""Characters of a subword: the ways to split longer ones would take long to try. A longer run is cut, since learning
takes time with the square of its length."""
RUN = f"{{1,{LONGEST}}}"
PIECES = r" ?[\p{L}\p{M}]" + RUN + r"| ?\p{N}" + RUN + r"| ?[^\s\p{L}\p{M}\p{N}]" + RUN + r"|\s"

HALVES = re.compile("[\ud800-\udfff]")


def learn(pieces: Iterable[str], characters: Sequence[str], count: int, reserved: Sequence[str]) -> list[str]:
    """At most `count` subwords of two characters or more, in the order in which they were learned; `reserved` are
    never among them. The same for the same text."""
    library = tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = splitter()
    trainer = library.trainers.BpeTrainer(
        vocab_size=len(characters) + count + len(reserved),
        initial_alphabet=list(characters),
        max_token_length=LONGEST,
        show_progress=False,
    )
    lines = (line for piece in pieces for line in piece.splitlines(keepends=True))  # the library holds 256 at a time
    tokenizer.train_from_iterator(lines, trainer)
    learned = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    known = set(characters)
    for symbol, _ in learned:
        if symbol not in reserved and any(splits(symbol, known)):
            known.add(symbol)
    return [symbol for symbol, _ in learned if symbol in known and len(symbol) > 1][:count]


def splits(symbol: str, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The pairs of known symbols that make up this one."""
    pairs = ((symbol[:place], symbol[place:]) for place in range(1, len(symbol)))
    return (pair for pair in pairs if pair[0] in known and pair[1] in known)


class Encoder:
    """Text to ids."""

    def __init__(self, symbols: Sequence[str], unknown: str | None, reserved: Sequence[str]) -> None:
        ids = {symbol: token for token, symbol in enumerate(symbols)}
        text = ids.keys() - set(reserved)
        merges = [pair for symbol in symbols if symbol in text for pair in splits(symbol, text)]
        library = tokenizers()
        self._absent = next(mark for mark in map(chr, range(0xFFFF, 0, -1)) if mark not in ids)
        self._tokenizer: Tokenizer = library.Tokenizer(library.models.BPE(ids, merges, unk_token=unknown))
        self._tokenizer.pre_tokenizer = splitter()

    def __call__(self, text: str) -> np.ndarray:
        """int32 [n]; line by line, since that is what the library is fast at."""
        whole = HALVES.sub(self._absent, text)  # Rust has no halves of characters
        found = self._tokenizer.encode_batch_fast(whole.splitlines(keepends=True))
        return np.fromiter((token for line in found for token in line.ids), np.int32)


def splitter() -> Any:
    """What cuts a text before subwords are looked for."""
    library = tokenizers()
    return library.pre_tokenizers.Split(library.Regex(PIECES), "isolated")


def tokenizers() -> Any:
    """The library; ImplementationError where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise ImplementationError(
            "--subwords needs the library tokenizers, not installed here. Install with: pip install "
            "'rosetta-rnn[subwords]' (in a checkout: pip install -c constraints.txt -e '.[subwords]')."
        ) from None
    return tokenizers
