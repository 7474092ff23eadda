"""`bench`: the honest stop-watch. Every implementation and engine, and every peer, in a process of its own; rounds
interleaved; no time without the proof that the same work was done."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from runner.cli import Bench
from runner.console import console, markdown_table, say, show_table
from runner.environment import machine, not_tuned, settings
from runner.memory import amount
from runner.registry import chosen, versions
from runner.timing.field import OpenWorker, calls, compared, entries, measure
from runner.timing.workloads import WORKLOADS, Workload
from runner.workers import Worker
from shared.config import Engine, RuntimeConfig
from shared.errors import ConfigError
from shared.files import require_writable, strict_json, write_atomically

SPEED = ("", "tokens/s", "low..high", "of best", "x peer", "x tuned", "work")
START = ("", "import", "build", "compile", "first", "step", "move", "memory")


def run(options: Bench, open_worker: OpenWorker = Worker) -> int:
    """Time, show, write; 1 where work differs or a worker fails."""
    names, engines = chosen(options.impl), chosen_engines(options.engine)
    if options.picture:
        require_picture(options.picture)
    if options.scaling:
        from runner.timing.scaling import run as run_scaling

        return run_scaling(options, names, engines, open_worker)
    workloads = [workload for name in options.workloads for workload in WORKLOADS[name]]
    if options.profile:
        from runner.timing.profile import run as run_profile

        return run_profile(options, names, engines, workloads, open_worker)
    about = describe(options, names)
    if not options.markdown:
        introduce(about)
    fields = [(each, entries(names, engines, options, each)) for each in workloads]
    rows: list[dict[str, Any]] = []
    with ticking(sum(calls(workload, found, options) for workload, found in fields)) as tick:
        for workload, found in fields:
            rows += measure(workload, found, options, open_worker, tick)
            compared(rows)
            about["best_product"] = max((row["product"] for row in rows if row.get("product")), default=None)
            show(workload, [row for row in rows if row["workload"] == workload.name], options.markdown)
            if options.json:
                # Without the texts of W5, a megabyte: they have been compared.
                kept = [{name: value for name, value in row.items() if name != "tokens"} for row in rows]
                write_atomically(options.json, strict_json({"machine": about, "rows": kept}))
    conclude(about, rows, options)
    return 0 if all(row["same_work"] or row["refused"] for row in rows) else 1


def chosen_engines(names: str) -> list[str]:
    """The engines that `--engine scratch,fused` names, or all: auto is one of them. Whether an implementation has one,
    it says itself."""
    known = list(get_args(Engine))
    given = known[1:] if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    if not given or (unknown := sorted(set(given) - set(known))):
        wrong = f"unknown {', '.join(unknown)}" if given else "none given"
        raise ConfigError(f"--engine: {wrong}; choose among {', '.join(known)} (comma between), or all.")
    return [name for name in known if name in given]


def require_picture(path: Path) -> None:
    """ConfigError unless the picture can be written, said before hours of measuring."""
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"--picture {path} must end with .svg or .png.")
    require_writable(path)


@contextmanager
def ticking(total: int) -> Iterator[Callable[[str], None]]:
    """A bar with what is being done and the time left; on a pipe, nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, begun = bar.add_task("starting", total=total), False

        def tick(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, advance=1 if begun else 0)
            begun = True

        yield tick


def describe(options: Bench, names: Sequence[str]) -> dict[str, Any]:
    """The machine and what was set on it."""
    runtime = RuntimeConfig(device=options.device, threads=options.threads, tuning=options.tuning)
    return {
        **machine(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {name: versions(name) for name in names},
        "settings": settings(runtime),
        "not_set": not_tuned() if options.tuning else [],
        "rounds": options.rounds,
    }


def introduce(about: dict[str, Any]) -> None:
    """What a reader of the tables must know."""
    say(f"{about['processor']}, {about['cores']} cores; {about['system']}, Python {about['python']}", "bold")
    made = " ".join(f"{name}={value}" for name, value in about["settings"].items())
    say(f"our settings: {made or 'none (--no-tuning)'}", "dim")
    if about["not_set"]:
        say(f"not set here: {', '.join(about['not_set'])}", "dim")
    busy = about["load"]
    if busy is not None and busy > 0.3 * about["cores"]:
        say(f"the machine is busy (load {busy:.1f}): believe ratios more than times, and neither much", "yellow")


def show(workload: Workload, rows: list[dict[str, Any]], markdown: bool) -> None:
    """A table for each phase, one of what goes before, and what ran, or why not."""
    table = print_markdown if markdown else print_plain
    for phase in dict.fromkeys(row["phase"] for row in rows):
        title = workload.describe() + (f", {phase.split()[1]} side by side" if workload.sampled else "")
        table(title, SPEED, [speeds(row) for row in rows if row["phase"] == phase and ran(row)])
    if not workload.sampled:
        table(
            f"{workload.name}: what comes before, and memory", START, [starts(row) for row in rows if row["same_work"]]
        )
    for row in {row["name"]: row for row in rows}.values():
        what = row["failed"] or (
            f"refused: {row['refused']}" if row["refused"] else f"{row['kernel']}, {row['device']}"
        )
        text = f"{row['name']}: {what}"
        print(f"- {text}") if markdown else say(text, "red" if row["failed"] else "dim")


def ran(row: dict[str, Any]) -> bool:
    """Whether there is something to show, a proof at least."""
    return not row["refused"] and not row["failed"]


def speeds(row: dict[str, Any]) -> list[str]:
    """A row as it is read: no time without the proof."""
    if row["different_texts"] is None:
        told = f"{row['loss_distance']:.0e}"
    else:
        told = f"{row['different_texts']} differ" if row["different_texts"] else "same"
    if not row["same_work"]:
        return [row["name"], "-", "WORK DIFFERS", *"---", told]
    share = f"{row['flops_utilization']:.0%}" if row["flops_utilization"] else "-"
    ratios = [f"{row[key]:.2f}" if row[key] else "-" for key in ("peer_ratio", "peer_ratio_same_settings")]
    spread = f"{number(row['low'])}..{number(row['high'])}"
    return [row["name"], number(row["tokens_per_second"]), spread, share, *ratios, told]


def starts(row: dict[str, Any]) -> list[str]:
    """What comes before the first steady step, in seconds; peak memory."""
    names = ("import", "build", "compile", "first_step", "step", "transfer")
    memory = amount(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else "-"
    return [row["name"], *(duration(row[f"{name}_seconds"]) for name in names), memory]


def duration(seconds: float | None) -> str:
    """As "4.5 s", "27 ms", "8.6 us"."""
    if seconds is None:
        return "-"
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2g} {unit}" if seconds * factor < 10 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds * 1e6:.2g} us" if seconds < 1e-5 else f"{seconds * 1e6:.0f} us"


def number(value: float | None) -> str:
    """A speed as "86.2k"."""
    if value is None:
        return "-"
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def print_plain(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table for the terminal."""
    show_table(title, columns, lines, range(1, len(columns)))


def print_markdown(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table for docs/performance.md."""
    print(f"\n**{title}**\n")
    print(markdown_table(columns, lines))


def conclude(about: dict[str, Any], rows: list[dict[str, Any]], options: Bench) -> None:
    """What the tables leave out, and the picture."""
    if about["best_product"] and not options.markdown:
        best = max((row for row in rows if row.get("product")), key=lambda row: row["product"])
        say(f"best matrix product of the run: {best['product'] / 1e9:.0f} GFLOP/s ({best['name']}); the column "
            f"`of best` is a step's share of it")  # fmt: skip
    if options.picture:
        draw(rows, options.picture)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars with low and high, a panel for each workload and phase."""
    from runner.reporting.pictures import png, race, svg

    shown = [row for row in rows if row["tokens_per_second"]]
    write_atomically(path, png(race, shown) if path.suffix == ".png" else svg(race, shown))
