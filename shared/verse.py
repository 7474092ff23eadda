"""Chinese verse: a form as a constraint on what may be drawn at each place, and a poem taken apart into its verses.

A form is so many lines of five or of seven characters, each with a mark at its end. `permitted` and `forced` are what
`LanguageModel.generate` takes: with them no line is ever too long, too short or broken, whatever the model has learned.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shared.config import FormName
from shared.errors import ConfigError
from shared.statistics import CHARACTERS
from shared.vocabulary import Vocabulary

Array = np.ndarray
WITHIN, AFTER, LAST = "，、；：？！", "。；？！", "。？！"
"""Marks behind the first line of a couplet, behind its second, and behind the poem."""
VERSE = re.compile("[^，。！？；\n]*[，。！？；]+[」』”’》）]*|[^，。！？；\n]+")
"""A line of a poem with its mark; closing brackets belong to it."""


class Form(NamedTuple):
    """Lines of so many characters."""

    size: int
    lines: int

    @property
    def length(self) -> int:
        """N, the tokens of a poem: the marks count."""
        return self.lines * (self.size + 1)

    @property
    def heads(self) -> range:
        """Where the lines begin."""
        return range(0, self.length, self.size + 1)


FORMS: dict[FormName, Form] = {"5x4": Form(5, 4), "7x4": Form(7, 4), "5x8": Form(5, 8), "7x8": Form(7, 8)}
"""Characters x lines: quatrains and eight-line poems."""


def chosen_form(name: FormName | None, acrostic: str) -> Form:
    """The form that is asked for, or the one of five characters a line that has a line for each character of the
    acrostic. ConfigError where the acrostic has too few or too many."""
    fitting = [each for each, form in FORMS.items() if form.lines == len(acrostic)]
    if acrostic and (name or next(iter(fitting), None)) not in fitting:
        wanted = f"--form {name} has {FORMS[name].lines} lines" if name else "forms have 4 or 8 lines"
        fits = f"; {' and '.join(fitting)} have so many" if fitting else ""
        raise ConfigError(
            f"--acrostic {acrostic} has {len(acrostic)} character{'s' * (len(acrostic) != 1)}, each of which begins a "
            f"line, but {wanted}{fits}."
        )
    return FORMS[name or fitting[0]]


def permitted(form: Form, vocabulary: Vocabulary) -> Array:
    """bool [N, V]: Chinese characters inside the lines, a mark at the end of each. ConfigError where the vocabulary has
    none of the one or the other."""
    inside = np.array([is_character(symbol) for symbol in vocabulary.symbols])
    ends = [np.array([symbol in tuple(marks) for symbol in vocabulary.symbols]) for marks in (WITHIN, AFTER, LAST)]
    for allowed, what in zip((inside, *ends), ("Chinese characters", WITHIN, AFTER, LAST), strict=True):
        if not allowed.any():
            lacking = what if what == "Chinese characters" else f"of the marks {what}"
            raise ConfigError(f"A form needs a model of Chinese verse with its marks; this one knows none {lacking}.")
    line, couplets = [inside] * form.size, form.lines // 2
    poem = [*line, ends[0], *line, ends[1]] * couplets
    return np.stack([*poem[:-1], ends[2]])


def forced(form: Form, vocabulary: Vocabulary, openings: Sequence[str], acrostic: str = "") -> Array:
    """int32 [B, N], -1 where the model chooses: each poem begins with its opening, part of a line, or its lines with
    the characters of the acrostic. ConfigError where that is more than a line, or no Chinese characters."""
    found = np.full((len(openings), form.length), -1, np.int32)
    for row, opening in enumerate(openings):
        if not all(map(is_character, opening + acrostic)) or len(opening) > form.size:
            raise ConfigError(
                f"A poem in a form begins with at most one line, {form.size} Chinese characters without marks, "
                f"got {opening or acrostic!r}."
            )
        found[row, : len(opening)] = ids(opening, vocabulary)
    if acrostic:
        found[:, form.heads] = ids(acrostic, vocabulary)
    return found


def ids(characters: str, vocabulary: Vocabulary) -> list[int]:
    """A token for each, subwords or not."""
    return [int(vocabulary.encode(character)[0]) for character in characters]


def is_character(symbol: str) -> bool:
    """Whether it is one Chinese character."""
    return CHARACTERS.fullmatch(symbol) is not None


def verses(poem: str) -> list[str]:
    """The lines of a poem with their marks, each of which ends one."""
    return [line for found in VERSE.findall(poem) if (line := found.strip())]
