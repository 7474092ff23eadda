"""What the options make of a text before anything else sees it, piece by piece, so that a text of any length can pass:
marks are dropped, then letters are normalised, then the text ends."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from shared.config import CorpusConfig
from shared.corpora.readers import Poem
from shared.errors import CorpusError

Pieces = Iterable[str]
"""A text, cut anywhere."""


def clean(pieces: Pieces, config: CorpusConfig) -> Iterator[str]:
    """The text that is learned."""
    if config.drop:
        table = str.maketrans("", "", config.drop)
        pieces = (piece.translate(table) for piece in pieces)
    if config.normalize == "letters":
        pieces = letters(pieces)
    return beginning(pieces, config.first_characters) if config.first_characters else iter(pieces)


def letters(pieces: Pieces) -> Iterator[str]:
    """Lower case, and one space for every run of anything but a-z, as d2l reads The Time Machine."""
    after_space = False
    for piece in pieces:
        plain = re.sub("[^A-Za-z]+", " ", piece).lower()
        yield plain[1:] if after_space and plain.startswith(" ") else plain
        after_space = plain.endswith(" ") if plain else after_space


def beginning(pieces: Pieces, count: int) -> Iterator[str]:
    """The first characters; no more is read than they need."""
    for piece in pieces:
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def clean_poems(poems: Iterable[Poem], config: CorpusConfig) -> Iterator[Poem]:
    """Each poem cleaned, those of another length or with marks that are not wanted left out, and as many of the first
    as have the characters asked for; none is cut for that."""
    each, unwanted = replace(config, first_characters=0), frozenset(config.leave_out)
    plain = (poem for poem in poems if unwanted.isdisjoint(poem.text))
    cleaned = (poem._replace(text="".join(clean([poem.text], each)).strip()) for poem in plain)
    least, most = max(config.minimum_length, 1), config.maximum_length or float("inf")
    fitting = (poem for poem in cleaned if least <= len(poem.text) <= most)
    return first_poems(fitting, config.first_characters) if config.first_characters else fitting


def first_poems(poems: Iterable[Poem], count: int) -> Iterator[Poem]:
    for poem in poems:
        count -= len(poem.text)
        if count < 0:
            return
        yield poem


def check_options(config: CorpusConfig, reader: str, place: str, pieces: Pieces) -> None:
    """Raise CorpusError where an option could change nothing in this corpus."""
    if reader == "text":
        given = {
            "--minimum-length": config.minimum_length > 0,
            "--maximum-length": config.maximum_length > 0,
            "--cut": config.cut,
            "--leave-out": config.leave_out != "",
        }
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise CorpusError(f"{flag} is about poems, and {place} is read as one running text. Leave it out.")
    if config.drop and not any(mark in piece for piece in pieces for mark in config.drop):
        raise CorpusError(
            f"--drop {config.drop!r} would leave {place} as it is: none of these characters occurs in it."
        )


def check_learnable(config: CorpusConfig, reader: str, place: str, pieces: Pieces) -> None:
    """Raise CorpusError where there is nothing to learn."""
    seen: set[str] = set()
    for piece in pieces:
        seen.update(piece)
        if len(seen) > 1 and any(map(str.strip, seen)):
            return
    options = ("drop", "normalize", "leave_out", "first_characters", "minimum_length", "maximum_length")
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(config, name) not in ("", "none", 0)]
    left = f" once {', '.join(given)} took effect" if given else ""
    if not any(map(str.strip, seen)):
        raise CorpusError(f"{place} holds nothing to learn{left}: it is empty or blank (read as {reader}).")
    raise CorpusError(
        f"{place} holds one character only{left}, {seen.pop()!r}, again and again; a text needs two at least."
    )
