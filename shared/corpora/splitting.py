"""Which part of a corpus is held out, by a rule that no seed changes: the last share of a running text; of poems, the
share with the lowest hashes, so that a poem that occurs twice never stands on both sides."""

import math
from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256
from itertools import compress

import numpy as np

from shared.corpora.corpus import Corpus, Texts
from shared.corpora.long import LongText, Packed, Text
from shared.errors import CorpusError


def split(corpus: Corpus, share: float = 0.1) -> tuple[Texts, Texts]:
    """Training and held-out texts; with a share of 0, both are the whole corpus."""
    if share == 0:
        return corpus.texts, corpus.texts
    return split_poems(corpus, share) if corpus.poems else split_stream(corpus, share)


def split_stream(corpus: Corpus, share: float) -> tuple[Texts, Texts]:
    text = corpus.texts[0]
    count = part_of(len(text), share)
    if count < 2:
        raise CorpusError(
            f"{corpus.name} has {len(text)} characters: too few to hold out {share:g} of them. Take a longer text."
        )
    border = len(text) - count
    return (cut(text, 0, border),), (cut(text, border, len(text)),)


def split_poems(corpus: Corpus, share: float) -> tuple[Texts, Texts]:
    texts = corpus.poem_texts
    digests = np.fromiter((sha256(text.encode()).digest() for text in texts), "S32", len(texts))
    distinct = np.unique(digests)
    count = part_of(len(distinct), share)
    if count >= len(distinct):
        raise CorpusError(f"{corpus.name} has one poem only (read as {corpus.reader}): none is left to be held out.")
    held_out = digests < distinct[count]
    return chosen(texts, ~held_out), chosen(texts, held_out)


def chosen(texts: Sequence[str], which: np.ndarray) -> Sequence[str]:
    """Those texts for which bool [n] is True."""
    return texts.chosen(which) if isinstance(texts, Packed) else tuple(compress(texts, which))


def part_of(count: int, share: float) -> int:
    """So many, rounded up, of the share as it is written: 0.1 is a tenth."""
    return math.ceil(count * Fraction(repr(share)))


def cut(text: Text, start: int, stop: int) -> Text:
    return text.part(start, stop) if isinstance(text, LongText) else text[start:stop]
