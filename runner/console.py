"""What the user sees: one console, tables, and text that cannot steer the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from runner.text import visible

console = Console(highlight=False, soft_wrap=True)


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
    """Print a table: numbers (`right`) aligned, long texts (`wrap`) folded; East Asian characters count as two wide."""
    heading = plain(title) if title else None
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        folded = place in wrap
        overflow: OverflowMethod = "fold" if folded else "ellipsis"
        table.add_column(
            plain(column), justify="right" if place in right else "left", no_wrap=not folded, overflow=overflow
        )
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for the documentation: the first column on the left, numbers behind it on the right."""
    rules = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rules, *rows))
