"""`doctor`: what is installed, what it can use, what is missing and how to get it."""

import platform
from contextlib import closing

from runner import VERSION
from runner.cli import Doctor
from runner.console import say, show_table
from runner.environment import available_cores, in_force, not_tuned
from runner.registry import IMPLEMENTATIONS, create_model, installed, versions
from runner.workers import Worker, WorkerError
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.errors import UserError


class Patient:
    """An implementation in its own process, asked for its device and kernel."""

    def __init__(self, impl: str) -> None:
        self._impl = impl

    def describe(self) -> tuple[str, str]:
        model = create_model(self._impl, ModelConfig(hidden_size=2), OptimizerConfig(), 3, RuntimeConfig())
        return model.device, model.kernel


def run(options: Doctor) -> int:
    """Print the findings; 1 where an installed implementation does not run."""
    python = platform.python_version()
    say(f"rosetta-rnn {VERSION}, Python {python}, {platform.platform(terse=True)}", "bold")
    chosen = (f"{name}={value}" for name, value in in_force().items())
    say(f"{available_cores()} cores; {', '.join(chosen)}")
    if left_out := not_tuned():
        say(f"not tuned here: {', '.join(left_out)}")
    present = installed()
    rows = [examine(name) if name in present else missing(name) for name in IMPLEMENTATIONS]
    show_table("", ("implementation", "versions", "device", "kernel"), rows, wrap=(1, 3))
    say(fonts())
    return 1 if any(row[2] == "broken" for row in rows) else 0


def examine(name: str) -> tuple[str, str, str, str]:
    """A row for an implementation that is installed."""
    found = ", ".join(f"{distribution} {number}" for distribution, number in versions(name).items())
    with closing(Worker(name, Patient, name)) as worker:
        try:
            return IMPLEMENTATIONS[name].title, found, *worker.call("describe")
        except (WorkerError, UserError) as error:
            return IMPLEMENTATIONS[name].title, found, "broken", str(error)


def missing(name: str) -> tuple[str, str, str, str]:
    """A row for one that is not."""
    entry = IMPLEMENTATIONS[name]
    return entry.title, "not installed", "", f"pip install -c constraints.txt -e '.[{entry.extra}]'"


def fonts() -> str:
    """Whether pictures can show Chinese."""
    from runner.reporting.pictures import cjk_fonts

    found = cjk_fonts()
    if found:
        return f"Chinese in pictures: {found[0]}"
    return "Chinese in pictures: no CJK font found; PNG files will show boxes (SVG and HTML use the reader's fonts). \
Install e.g. Noto Sans CJK (Debian: fonts-noto-cjk)."
