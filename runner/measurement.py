"""Text statistics of a model: it writes enough text at each temperature, which is measured beside held-out text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from runner.console import console, say, show_table
from shared.config import SamplingConfig
from shared.corpora import Corpus, split
from shared.statistics import MEASURES, describe, excerpt

CHARACTERS = 20_000
"""Measured at each temperature, and of the held-out text if it has so many."""
ROWS = 128
"""Texts written side by side, at most."""
MOST_ROWS = 50 * ROWS
"""Texts written at each temperature, at most, if nearly all of them are empty."""

Write = Callable[[list[str], SamplingConfig, int], list[str]]
"""Prompts, options and the number of the first row -> prompts with what was written after them."""


class Line(NamedTuple):
    """A measure, its value in each text, and what it means."""

    label: str
    values: list[str]
    meaning: str


def measure(
    write: Write,
    corpus: Corpus,
    held_out: float,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    temperatures: Sequence[float],
) -> dict[str, Any]:
    """JSON values: the statistics of the held-out text, None where its share is 0, and for each temperature of what is
    written from the prompts in turn."""
    training, unseen = split(corpus, held_out)
    groups = [excerpt(unseen, CHARACTERS, corpus.poems)] if held_out else []
    for temperature in temperatures:
        with console.status(f"writing {CHARACTERS:,} characters at temperature {temperature:g}"):
            groups.append(write_enough(write, corpus.poems, prompts, replace(sampling, temperature=temperature)))
    found = [asdict(each) for each in describe(groups, training, corpus.poems)]
    real = found.pop(0) if held_out else None
    written = [{"temperature": each, **values} for each, values in zip(temperatures, found, strict=True)]
    return {"held_out": real, "temperatures": written}


def write_enough(write: Write, poems: bool, prompts: Sequence[str], sampling: SamplingConfig) -> list[str]:
    """Texts of at least CHARACTERS together. The prompt is part of a poem, but not of what goes on from it."""
    rows = min(ROWS, -(-CHARACTERS // sampling.length))
    texts: list[str] = []
    while sum(map(len, texts)) < CHARACTERS and len(texts) < MOST_ROWS:
        asked = [prompts[row % len(prompts)] for row in range(len(texts), len(texts) + rows)]
        written = write(asked, sampling, len(texts))
        texts += written if poems else [text[len(start) :] for text, start in zip(written, asked, strict=True)]
    return texts


def of_poems(sampling: SamplingConfig, seq_length: int) -> SamplingConfig:
    """Poems longer than any that was learned are not waited for."""
    return replace(sampling, length=min(sampling.length, seq_length))


def table(found: Mapping[str, Any]) -> tuple[list[str], list[Line]]:
    """Headings of the columns after the first, and the measures that apply to any of the texts."""
    columns = {str(each["temperature"]): each for each in found["temperatures"]}
    if found["held_out"]:
        columns = {"held-out": found["held_out"], **columns}
    lines = [
        Line(label(name), [shown(each[name], unit) for each in columns.values()], meaning)
        for name, (unit, meaning) in MEASURES.items()
        if any(each[name] is not None for each in columns.values())
    ]
    return list(columns), lines


def label(name: str) -> str:
    """A measure with its unit, where the value does not show it."""
    return name.replace("_", " ") + (", bits" if MEASURES[name].unit == "bits" else "")


def shown(value: float | None, unit: str) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:,}" if unit == "count" else f"{value:.2f}"


def show(found: Mapping[str, Any]) -> None:
    """The table."""
    headings, lines = table(found)
    rows = [(line.label, *line.values) for line in lines]
    show_table("Text statistics at each temperature", ("", *headings), rows, range(1, 1 + len(headings)))


def explain(found: Mapping[str, Any]) -> None:
    """What the lines of the table mean."""
    for line in table(found)[1]:
        say(f"{line.label}: {line.meaning}", "dim")
