"""`differences`: where the frameworks differ, with the size of each difference measured on this machine, before and
after the option that settles it. docs/differences.md holds the same tables.

What no framework is needed for, the formula of either side, is measured in NumPy, in float64; what is a property of a
library's own layer, in a worker with that library. All data are made up, from fixed seeds. `runner.effects` holds the
catalogue of the differences, and what measures each.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from runner.cli import Differences
from runner.console import console, say, show_table
from runner.effects.catalogue import DIFFERENCES, SECTIONS
from runner.effects.fixtures import ROUNDING, Effect
from runner.registry import IMPLEMENTATIONS, chosen
from runner.workers import FAILURES, Worker
from shared.errors import ConfigError
from shared.files import strict_json, write_atomically


class Surveyor:
    """Measures differences in a process of its own."""

    def measure(self, name: str) -> Effect:
        """Before and after the option."""
        before, after = DIFFERENCES[name].measure()
        return float(before), None if after is None else float(after)


def run(options: Differences) -> int:
    """Measure, show, write; 1 where a measurement broke down."""
    names, impls = asked_for(options.names), chosen(options.impl)
    rows, told = [], set[str]()
    for impl in IMPLEMENTATIONS:
        wanted = [name for name in names if DIFFERENCES[name].impl == impl]
        if impl in impls:
            rows += list(measured(impl, wanted))
        elif wanted:
            told.add(
                f"Left out, since {IMPLEMENTATIONS[impl].title} is not among the implementations: {', '.join(wanted)}."
            )
    rows.sort(key=lambda row: names.index(row["name"]))
    if options.markdown:
        print(markdown(rows))
    else:
        show(rows)
        for sentence in sorted(told):
            say(sentence, "dim")
    if options.json:
        write_atomically(options.json, strict_json({"rows": rows}))
    return 1 if any("error" in row for row in rows) else 0


def asked_for(names: tuple[str, ...]) -> list[str]:
    """The names, in the table's order; a section stands for all in it. ConfigError for one that there is not."""
    if unknown := [name for name in names if name not in DIFFERENCES and name not in SECTIONS]:
        known = f"sections: {', '.join(SECTIONS)}; names: {', '.join(DIFFERENCES)}"
        raise ConfigError(f"differences: no {', '.join(unknown)}; there are {known}.")
    return [name for name, each in DIFFERENCES.items() if not names or name in names or each.section in names]


def measured(impl: str, names: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each, measured in one worker."""
    if not names:
        return
    with Worker(impl, Surveyor) as worker:
        for name in names:
            each = DIFFERENCES[name]
            row = {"name": name, "section": each.section, "what": each.what, "formulas": [each.left, each.right]}
            row |= {"unit": each.unit, "option": each.option, "proof": each.proof, "impl": impl}
            with console.status(name):
                try:
                    before, after = worker.call("measure", name)
                except FAILURES as error:
                    row["error"] = str(error)
                    worker.renew()
                else:
                    row |= {"before": before, "after": after}
            yield row


def effect(row: Mapping[str, Any]) -> str:
    """0.031 -> < 1e-12: before and after."""
    if "error" in row:
        return f"failed: {row['error']}"
    after = "" if row["after"] is None else f" -> {number(row['after'])}"
    return number(row["before"]) + after


def number(value: float) -> str:
    """Two digits; rounding errors have none that would be the same elsewhere."""
    return "< 1e-12" if 0 < value < ROUNDING else f"{value:.2g}"


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each difference."""
    lines = [(row["name"], row["what"], effect(row), row["unit"], row["option"]) for row in rows]
    show_table("", ("name", "what differs", "effect", "unit", "settled by"), lines, wrap=(1, 4))
    say("Without and -> with what settles it. Of logits, parameters, outputs: the relative L2 distance.", "dim")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The tables of docs/differences.md, each between the markers of its section."""
    parts = []
    for section in dict.fromkeys(row["section"] for row in rows):
        lines = [line(row) for row in rows if row["section"] == section]
        heading = ["| name | formulas | effect | settled by | shown by |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"<!-- differences:{section} -->", *heading, *lines, "<!-- /differences -->"]))
    return "\n\n".join(parts)


def line(row: Mapping[str, Any]) -> str:
    """One row of Markdown."""
    left, right = (each.replace("|", "\\|") for each in row["formulas"])
    title = f"`{row['name']}`: {row['what']}".replace("|", "\\|")
    found = f"**{effect(row)}** {row['unit']}".replace("|", "\\|")
    option = f"`{row['option']}`" if row["option"] else "as in the second formula"
    return f"| {title} | {left}<br>{right} | {found} | {option} | `{row['proof']}` |"
