"""What generated text is like, in numbers that need no reader: whether it is made of words, repeats itself, copies.

A word is a run of letters, apostrophes within it included; case does not matter. Chinese sets no spaces: there each Han
character is a word, and since a model knows no characters but those of its text, pairs of neighbours are looked up in
place of words. A verse line ends at a line end or a Chinese mark. A number is None where it does not apply.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from operator import add
from typing import Literal, NamedTuple, TypeVar

from shared.corpora.long import LongText, Text, beginning, lines

Item = TypeVar("Item")
WINDOW = 20
"""Characters in a row that no two texts share by chance."""

HAN = "[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
MARK = "[，。！？；：、]"
WORD = r"[^\W\d_]++(?:['’][^\W\d_]++)*+"
WORDS, CHARACTERS, CLAUSES = re.compile(WORD), re.compile(HAN), re.compile(f"{HAN}+")
VERSES = re.compile("[^，。！？；：、\n]+")
HEADINGS = re.compile(r"(?:\A|\n\n)([^\n:]{1,40}):(?=\n)")
"""Speakers of a play: a short line of its own behind an empty one, with a colon at its end."""
FIVES, SEVENS = (f"(?:(?:{HAN}{{{size}}}{MARK}\\s*){{2}})+" for size in (5, 7))
FORM = re.compile(f"\\s*(?:{FIVES}|{SEVENS})")


@dataclass(frozen=True)
class Statistics:
    """Of some text, beside the training text."""

    characters: int
    word_validity: float | None
    word_entropy: float | None
    repetition: float | None
    copied: float | None
    mean_word_length: float | None
    role_consistency: float | None
    form_validity: float | None


class Measure(NamedTuple):
    """What a number of the statistics says, for people."""

    unit: Literal["count", "share", "bits", "characters"]
    meaning: str


MEASURES = {
    "characters": Measure("count", "how much text was measured; entropy and repetition grow with it"),
    "word_validity": Measure(
        "share", "words that occur in the training text (in Chinese: pairs of neighbouring characters)"
    ),
    "word_entropy": Measure("bits", "bits to say which word (in Chinese: character) comes, by frequency: richness"),
    "repetition": Measure(
        "share", "four words (in Chinese: characters) in a row that stood in this text before: 1 - distinct / all"
    ),
    "copied": Measure(
        "share", f"windows of {WINDOW} characters (of poems: verse lines) that stand in the training text"
    ),
    "mean_word_length": Measure("characters", "letters of a word"),
    "role_consistency": Measure("share", "speaker headings whose speaker is one of the training text"),
    "form_validity": Measure(
        "share", "poems whose lines all have five or all have seven characters, in even number, punctuated"
    ),
}
"""Every field of Statistics, in its order."""


@dataclass(frozen=True)
class Kind:
    """What sort of text it is decides what is counted."""

    chinese: bool
    poems: bool
    play: bool

    def words(self, text: str) -> list[str]:
        """In their order; the word at the very end of a running text may be half a word, and does not count."""
        if self.chinese:
            return CHARACTERS.findall(text)
        words = WORDS.findall(text := text.lower())
        half = not self.poems and bool(words) and text.endswith(words[-1])  # a running text is cut anywhere
        return words[:-1] if half else words

    def parts(self, text: str) -> tuple[Iterable[str], Iterable[str], Iterable[str]]:
        """What is looked up in the training text: words, passages, speakers."""
        words = pairs(text) if self.chinese else self.words(text)
        return words, verses(text) if self.poems else windows(text), HEADINGS.findall(text) if self.play else ()


def kind_of(training: Sequence[Text], poems: bool) -> Kind:
    """By its beginning: Chinese where most letters are, a play where somebody speaks."""
    start = beginnings(training)
    letters = sum(map(str.isalpha, start))
    return Kind(2 * len(CHARACTERS.findall(start)) > letters, poems, HEADINGS.search(start) is not None)


def beginnings(training: Sequence[Text], most: int = 100_000) -> str:
    """So many characters of the first texts, at most a thousand; no more of a long one is read."""
    held, size = [], 0
    for piece in islice(pieces(training), 1000):
        held.append(piece[:most])
        size += len(held[-1])
        if size >= most:
            break
    return "\n".join(held)[:most]


def describe(groups: Sequence[Sequence[str]], training: Sequence[Text], poems: bool) -> list[Statistics]:
    """The statistics of each group of texts. All groups are looked up together, in one pass over the training text that
    holds no more of it than what it finds, however long it is."""
    kind = kind_of(training, poems)
    looked_up = [tuple(map(joined, zip(*map(kind.parts, texts or [""]), strict=True))) for texts in groups]
    known = look_up([set(joined(each)) for each in zip(*looked_up, strict=True)], training, kind)
    return [summary(texts, each, known, kind) for texts, each in zip(groups, looked_up, strict=True)]


def look_up(wanted: Sequence[set[str]], training: Sequence[Text], kind: Kind) -> list[set[str]]:
    """Which of the wanted words, passages and speakers stand in the training text."""
    found: list[set[str]] = [set() for _ in wanted]
    for piece in pieces(training):
        for known, each, parts in zip(found, wanted, kind.parts(piece), strict=True):
            known |= each.intersection(parts)
    return found


def copies(texts: Sequence[str], training: Sequence[Text], poems: bool) -> list[list[tuple[int, int]]]:
    """Of each text, the stretches [start, stop) that stand in the training text word for word: verse lines of poems,
    else whatever windows cover. One pass over the training text."""
    looked_up = [spots(text, poems) for text in texts]
    wanted = {text[slice(*spot)] for text, each in zip(texts, looked_up, strict=True) for spot in each}
    found: set[str] = set()
    for piece in pieces(training):
        found |= wanted.intersection(verses(piece) if poems else windows(piece))
    return [
        merged(spot for spot in each if text[slice(*spot)] in found)
        for text, each in zip(texts, looked_up, strict=True)
    ]


def spots(text: str, poems: bool) -> list[tuple[int, int]]:
    """Where its verse lines, or its windows, stand: [start, stop)."""
    if not poems:
        return [(place, place + WINDOW) for place in range(len(text) - WINDOW + 1)]
    parts = ((match.start(), match[0].rstrip()) for match in VERSES.finditer(text))
    return [(start + len(part) - len(part.lstrip()), start + len(part)) for start, part in parts if part]


def merged(spots: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches that overlap or touch as one; given and returned in their order."""
    found: list[tuple[int, int]] = []
    for start, stop in spots:
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def summary(texts: Sequence[str], looked_up: Sequence[list[str]], known: Sequence[set[str]], kind: Kind) -> Statistics:
    """Count, now that it is known what stands in the training text."""
    valid, copied, roles = (
        mean([part in those for part in parts]) for parts, those in zip(looked_up, known, strict=True)
    )
    words = [kind.words(text) for text in texts]
    formed = [FORM.fullmatch(text) is not None for text in texts] if kind.chinese and kind.poems else []
    return Statistics(
        characters=sum(map(len, texts)),
        word_validity=valid,
        word_entropy=entropy(Counter(joined(words))),
        repetition=repetition(words),
        copied=copied,
        mean_word_length=None if kind.chinese else mean([len(word) for word in joined(words)]),
        role_consistency=roles,
        form_validity=mean(formed),
    )


def entropy(counts: Counter[str]) -> float | None:
    """Bits a word, -sum p log2 p over the words' shares; None without words."""
    shares = [count / counts.total() for count in counts.values()]
    return -sum(share * math.log2(share) for share in shares) if shares else None


def repetition(words: Iterable[Sequence[str]]) -> float | None:
    """1 - distinct / all fours of words in a row (seq-rep-4 of Welleck et al. 2020), none across two texts."""
    fours = joined(zip(each, each[1:], each[2:], each[3:], strict=False) for each in words)
    return 1 - len(set(fours)) / len(fours) if fours else None


def pairs(text: str) -> Iterator[str]:
    """Neighbouring Han characters; a mark parts them."""
    return chain.from_iterable(map(add, clause, clause[1:]) for clause in CLAUSES.findall(text))


def windows(text: str) -> Iterator[str]:
    return (text[place : place + WINDOW] for place in range(len(text) - WINDOW + 1))


def verses(text: str) -> list[str]:
    """The lines of a poem, without marks."""
    return [line for part in VERSES.findall(text) if (line := part.strip())]


def pieces(texts: Iterable[Text]) -> Iterator[str]:
    """The texts, long ones cut at line ends."""
    return chain.from_iterable(lines(text.chunks()) if isinstance(text, LongText) else (text,) for text in texts)


def joined(parts: Iterable[Iterable[Item]]) -> list[Item]:
    """One list of all items."""
    return list(chain.from_iterable(parts))


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def excerpt(texts: Sequence[Text], characters: int, poems: bool) -> list[str]:
    """About so many characters: of a running text its beginning, of poems whole ones, evenly chosen."""
    if not poems:
        return [beginning(text, characters) for text in texts]
    every = max(1, sum(map(len, texts)) // characters)
    chosen = [text for text in texts[::every] if isinstance(text, str)]
    totals = accumulate(map(len, chosen))
    return [text for text, total in zip(chosen, totals, strict=True) if total - len(text) < characters]
