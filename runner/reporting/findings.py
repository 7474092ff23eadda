"""What a comparison found, arranged for its page: the verdict, what is wrong, the tables, the texts side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from statistics import mode
from typing import Any

Result = Mapping[str, Any]
Rows = list[dict[str, Any]]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def problems(result: Result) -> Rows:
    """Everything that failed, in words; a result that is not ok has at least one."""
    found = [{"who": row["impl"], "what": row["what"]} for row in result["failures"]]
    found += [{"who": row["impl"], "what": differs(row)} for row in result["check"] if not row["ok"]]
    found += [{"who": row["impl"], "what": drifts(row)} for row in result["growth"] if not row["ok"]]
    spread = result.get("agreement")
    if spread and not spread["ok"]:
        what = f"losses are {spread['held_out_spread']:.2g} apart, at most {spread['held_out_bound']:.2g} expected"
        found.append({"who": "held-out", "what": what})
    if any(column["rest"] for each in side_by_side(exact(result["samples"])) for column in each["columns"]):
        found.append({"who": "samples", "what": "texts drawn in float64 with the same random numbers differ"})
    if not found and not result["ok"]:
        found.append({"who": "compare", "what": "did not succeed, and does not say why"})
    return found


def exact(rows: Rows) -> Rows:
    """The rows in which rounding explains no other character."""
    return [row for row in rows if row["dtype"] == "float64"]


def differs(row: Mapping[str, Any]) -> str:
    """A failed line of the check."""
    what = f"{row['cell']} {row['dtype']}, {row['quantity']}"
    return f"{what} differs by {row['max_relative_error']:.2g}, at most {row['bound']:.2g} expected"


def drifts(row: Mapping[str, Any]) -> str:
    """A failed growth of differences."""
    return f"{row['dtype']} training leads to parameters that differ by more than {row['bound']:.2g}"


def headline(result: Result, wrong: Sequence[Any]) -> str:
    """The verdict in a sentence."""
    count = len(result["participants"])
    some = counted(count, "implementation").capitalize()
    if wrong:
        return f"Not everything agrees: {counted(len(wrong), 'problem')}"
    if count < 2:
        return f"{some} took part, so there is nothing to compare"
    if not result["check"] and not result["growth"]:
        return f"{some} ran; their numbers were not checked"
    return f"Both{some[3:]} agree" if count == 2 else f"All {some[0].lower()}{some[1:]} agree"


def counted(count: int, noun: str) -> str:
    """A number, in letters up to ten, and what it counts."""
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {noun}{'' if count == 1 else 's'}"


def agreement(check: Rows) -> dict[str, dict[str, Any]]:
    """Precision -> table: a line for each implementation and cell, a column for each group of quantities, in its head
    the usual bound, and in it the row nearest to its bound or furthest beyond it.
    """
    return {dtype: table([row for row in check if row["dtype"] == dtype]) for dtype in values_of(check, "dtype")}


def table(rows: Rows) -> dict[str, Any]:
    """The table of one precision."""
    groups = dict.fromkeys(map(group, rows))
    columns = {name: mode(row["bound"] for row in rows if group(row) == name) for name in groups}
    bodies = {impl: lines([row for row in rows if row["impl"] == impl], columns) for impl in values_of(rows, "impl")}
    return {"columns": columns, "bodies": bodies, "count": len(rows)}


def values_of(rows: Rows, name: str) -> list[Any]:
    """The values of an entry, each once, as they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def lines(rows: Rows, columns: Iterable[str]) -> Rows:
    """The lines of one implementation, cell by cell."""
    found = []
    for cell in values_of(rows, "cell"):
        own = [row for row in rows if row["cell"] == cell]
        worst = {name: max((row for row in own if group(row) == name), key=closeness, default=None) for name in columns}
        heats = {name: heat(row) for name, row in worst.items() if row}
        found.append({"cell": cell, "worst": worst, "heat": heats, "ok": all(row["ok"] for row in own)})
    return found


def group(row: Mapping[str, Any]) -> str:
    """The quantity without the name of the tensor: "gradient: decoder.bias" is a gradient."""
    return str(row["quantity"]).partition(":")[0]


def closeness(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Failures first, then by how much of the bound is used up."""
    error = row["max_relative_error"]
    return not row["ok"], error / row["bound"] if row["bound"] else error


def heat(row: Mapping[str, Any]) -> float:
    """How much of its bound an error uses, from 0, a millionth or less, to 1, all of it or more, logarithmic."""
    _, share = closeness(row)
    if not row["ok"] or not math.isfinite(share):
        return 1.0
    return min(1.0, max(0.0, 1 + math.log10(share) / 6)) if share > 0 else 0.0


def relative(timed: Rows) -> Rows:
    """The times, phase by phase, with the factor to the slowest."""
    phases = {phase: [row for row in timed if row["phase"] == phase] for phase in values_of(timed, "phase")}
    slowest = {phase: min(row["tokens_per_second"] for row in rows) for phase, rows in phases.items()}
    return [row | {"factor": row["tokens_per_second"] / slowest[phase]} for phase in phases for row in phases[phase]]


def side_by_side(samples: Rows) -> Rows:
    """Samples drawn alike, together; each text split where the first difference lies."""
    together: dict[tuple[Any, ...], Rows] = {}
    for row in samples:
        together.setdefault((row["dtype"], row["temperature"], row["prompt"]), []).append(row)
    return [
        {"dtype": dtype, "temperature": temperature, "prompt": prompt, "columns": split_texts(rows)}
        for (dtype, temperature, prompt), rows in together.items()
    ]


def split_texts(rows: Rows) -> Rows:
    """Each text as what all have in common and the rest."""
    together = zip(*(row["text"] for row in rows), strict=False)
    same = sum(1 for _ in takewhile(lambda characters: len(set(characters)) == 1, together))
    return [{"copied": None, **row, "same": row["text"][:same], "rest": row["text"][same:]} for row in rows]
