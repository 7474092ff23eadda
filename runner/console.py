"""What the user sees: one console, tables, and text that cannot steer the terminal."""

from collections.abc import Iterable, Sequence
from textwrap import fill

from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from runner.text import visible

console = Console(highlight=False, soft_wrap=True)
HEADING = 12
"""Columns of the terminal that a heading may take in a table that is too wide."""
ANY = 10_000
"""As wide as a table likes to be."""


def plain(text: str, style: str = "") -> Text:
    """Text in which nothing is markup, and nothing is obeyed."""
    return Text(visible(text), style=style)


def say(text: str, style: str = "") -> None:
    """Print plain text."""
    console.print(plain(text, style))


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[int] = (),
    wrap: Sequence[int] = (),
) -> None:
    """Print a table: numbers (`right`) aligned, long texts (`wrap`) folded, and headings where it would be too wide;
    East Asian characters count as two wide."""
    heading, lines = plain(title) if title else None, [[plain(cell) for cell in row] for row in rows]
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        folded = place in wrap
        overflow: OverflowMethod = "fold" if folded else "ellipsis"
        table.add_column(
            plain(column), justify="right" if place in right else "left", no_wrap=not folded, overflow=overflow
        )
    for line in lines:
        table.add_row(*line)
    if console.measure(table, options=console.options.update(width=ANY)).maximum > console.width:
        for place, column in enumerate(columns):
            widest = max([HEADING, *(line[place].cell_len for line in lines)])
            table.columns[place].header = plain(fill(column, widest, break_long_words=False))
    console.print(table)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for the documentation: the first column on the left, numbers behind it on the right."""
    rules = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rules, *rows))
