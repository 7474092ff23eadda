"""What a search leaves: a table, the importance of each option, pictures, a page, and the best options as a file that
`train` can begin with. Everything comes from the storage, so that it can be made again at any time."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from runner.cli import Sweep, Train
from runner.console import say, show_table
from runner.progress import duration
from runner.reporting.pages import inline, render
from runner.reporting.pictures import svg
from runner.sweeping.pictures import contour, parallel
from runner.sweeping.plan import point_of
from runner.sweeping.progress import lowest, measured, shown, words
from runner.sweeping.search import Search
from runner.sweeping.space import PARTS, configured
from shared.config import to_json
from shared.files import strict_json, write_atomically

STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "open",
    TrialState.WAITING: "waiting",
}
SHOWN = 10
"""Trials in the table that is printed."""
ENOUGH, GOOD = 12, 4
"""Trials that came to their end, from which on importances mean something; so many, or a tenth, count as good."""
PLACE = ("device", "threads", "tuning")
"""Where a run took place is no part of what it was."""


def finish(search: Search, options: Sweep, folder: Path) -> int:
    """Show and write everything; 1 where every trial failed."""
    result = summary(search)
    write_atomically(folder / "results.json", strict_json(result))
    if options.json:
        write_atomically(options.json, strict_json(result))
    show(result)
    if result["best"] is not None:
        write_atomically(folder / "best.toml", recipe(search, result))
        page = write_page(result, folder)
        say(f"Report: {page}")
        say(f"The best options: {folder / 'best.toml'}; its run: {result['best']['run']}")
    if result["counts"]["open"] or result["counts"]["waiting"]:
        say(f"Not done: {search.closed()}. Go on with: python -m runner sweep --resume {folder}")
    return int(bool(result["rows"]) and all(row["state"] == "failed" for row in result["rows"]))


def summary(search: Search) -> dict[str, Any]:
    """Every trial's options and result, and what they come to."""
    rows = [row_of(search, trial) for trial in search.trials()]
    counts = {name: sum(row["state"] == name for row in rows) for name in STATES.values()}
    first = ranked(rows)
    ended = sum(counts[name] for name in ("done", "pruned", "failed"))
    return {
        "name": search.name,
        "method": search.plan.method,
        "pruner": search.plan.pruner,
        "varied": [each.name for each in search.plan.space],
        "seconds": search.study.user_attrs.get("seconds", 0.0),
        "closed": search.closed(),
        "counts": counts,
        "pruned_share": counts["pruned"] / ended if ended else 0.0,
        "trained_seconds": sum(row["seconds"] or 0.0 for row in rows),
        "saved_seconds": sum(row["saved_seconds"] for row in rows),
        "importance": importance(search, counts["done"]),
        "best": first[0] if first else None,
        "rows": rows,
    }


def row_of(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """One trial."""
    result: Mapping[str, Any] = trial.user_attrs.get("result", {})
    steps, whole, seconds = result.get("steps", 0), result.get("of_steps", 0), result.get("seconds")
    pruned = trial.state == TrialState.PRUNED and steps > 0
    return {
        "trial": trial.number,
        "state": STATES[trial.state],
        "loss": lowest(trial) if measured(trial) else None,
        "steps": steps,
        "of_steps": whole,
        "seconds": seconds,
        "saved_seconds": seconds * (whole / steps - 1) if pruned and seconds else 0.0,
        "reason": result.get("reason", ""),
        "run": str(search.run_directory(trial.number)),
        "options": point_of(search.plan.space, trial.params),
    }


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that have a loss, the best first."""
    return sorted((row for row in rows if row["loss"] is not None), key=lambda row: (row["loss"], row["trial"]))


def importance(search: Search, done: int) -> dict[str, float]:
    """How much of the difference between good trials and all each option explains (PED-ANOVA), largest first."""
    if done < ENOUGH or len(search.plan.space) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, GOOD / done))
    return dict(optuna.importance.get_param_importances(search.study, evaluator=evaluator))


def show(result: Mapping[str, Any]) -> None:
    """The table, the importances, what pruning saved."""
    names = result["varied"]
    heads = [name.rpartition(".")[2].replace("_", " ") for name in names]
    lines = [
        [
            str(row["trial"]),
            *(shown(row["options"][name]) for name in names),
            f"{row['loss']:.4f}",
            steps(row),
            row["state"],
        ]
        for row in ranked(result["rows"])[:SHOWN]
    ]
    columns = ["trial", *heads, "held-out loss", "steps", ""]
    show_table("The best trials", columns, lines, right=range(len(columns) - 1))
    if result["importance"]:
        say(
            "Importance: "
            + ", ".join(f"{words({name: ''}).strip()} {share:.0%}" for name, share in result["importance"].items())
        )
    counts = ", ".join(f"{count} {name}" for name, count in result["counts"].items() if count)
    share, saved = result["pruned_share"], duration(result["saved_seconds"])
    pruned = f"{share:.0%} pruned, which saved about {saved} of training; " if share else ""
    trained, whole = duration(result["trained_seconds"]), duration(result["seconds"])
    say(f"{counts}; {pruned}{trained} were trained in {whole}.")
    for reason, count in failures(result).items():
        say(f"{count} failed: {reason}", "yellow")


def failures(result: Mapping[str, Any]) -> dict[str, int]:
    """Reason -> how many trials failed by it."""
    reasons = [row["reason"] for row in result["rows"] if row["state"] == "failed"]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def steps(row: Mapping[str, Any]) -> str:
    """Of how many."""
    return f"{row['steps']}/{row['of_steps']}" if row["of_steps"] else "–"


def write_page(result: Mapping[str, Any], folder: Path) -> Path:
    """sweep.html with its pictures, which also stand beside it."""
    drawn = pictures(result)
    for name, picture in drawn.items():
        write_atomically(folder / f"{name}.svg", picture)
    values = {
        "result": result,
        "ranked": ranked(result["rows"])[:100],
        "failures": failures(result),
        "saved": duration(result["saved_seconds"]),
        "trained": duration(result["trained_seconds"]),
        "spent": duration(result["seconds"]),
        "pictures": {name: inline(each) for name, each in drawn.items()},
    }
    write_atomically(folder / "sweep.html", render("sweep", values))
    return folder / "sweep.html"


def pictures(result: Mapping[str, Any]) -> dict[str, str]:
    """Those there are enough trials for."""
    rows = [row for row in result["rows"] if row["loss"] is not None and math.isfinite(row["loss"])]
    if len(rows) < 2:
        return {}
    points = [{name: label(value) for name, value in row["options"].items()} for row in rows]
    losses = [row["loss"] for row in rows]
    drawn = {"parallel": svg(parallel, points, losses, [row["state"] == "pruned" for row in rows])}
    if len(pair := [*result["importance"], *result["varied"]][:2]) == 2 and len(result["varied"]) > 1:
        across, up = ([point[name] for point in points] for name in pair)
        drawn["contour"] = svg(contour, across, up, losses, pair)
    return drawn


def label(value: Any) -> Any:
    """What several values at once are called on an axis."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def recipe(search: Search, result: Mapping[str, Any]) -> str:
    """The best trial's options as TOML: those that are not the defaults, and those that were varied."""
    best = result["best"]
    options, usual = configured(search.plan.base, best["options"]), Train()
    kept: dict[str, Any] = {"impl": options.impl}
    for part in PARTS:
        given, default = to_json(getattr(options, part)), to_json(getattr(usual, part))
        varied = {name.rpartition(".")[2] for name in best["options"] if name.startswith(f"{part}.")}
        names = [name for name, value in given.items() if value != default[name] or name in varied]
        kept |= {name: given[name] for name in names if name not in PLACE}
    title = f"Trial {best['trial']}, the best of {len(result['rows'])}: {best['loss']:.4f} nats per held-out token"
    lines = [f"title = {toml(title)}", "", "[options]", *(f"{name} = {toml(value)}" for name, value in kept.items())]
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """A value as TOML writes it; JSON strings are TOML strings."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
