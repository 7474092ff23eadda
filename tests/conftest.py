"""Which implementations must be here, and an environment that disturbs nobody: one thread, quiet, no GPU."""

import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from runner import environment
from shared.config import RuntimeConfig

# A shell without job control starts what runs in its background with Ctrl-C ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before NumPy loads; `pytest -m gpu` leaves GPUs visible.
environment.prepare(RuntimeConfig(device="auto" if "gpu" in sys.argv else "cpu", threads=1))

from runner.registry import IMPLEMENTATIONS, installed  # noqa: E402

REQUIRED = tuple(name for name in os.environ.get("ROSETTA_IMPLEMENTATIONS", "").split(",") if name) or tuple(
    installed()
)
"""Under tox, what the environment is for; by hand, whatever is installed."""


def pytest_configure(config: pytest.Config) -> None:
    if missing := [name for name in REQUIRED if name not in installed()]:
        raise pytest.UsageError(
            f"This environment must have {', '.join(missing)} and has not: known implementations are "
            f"{', '.join(IMPLEMENTATIONS)}, installed {', '.join(installed())}. Nothing is skipped for that."
        )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """What only one framework needs, test_engine_<impl>.py, is for the environments that must have it."""
    name = collection_path.stem
    return True if name.startswith("test_engine_") and name.removeprefix("test_engine_") not in REQUIRED else None


def pytest_report_header(config: pytest.Config) -> str:
    return f"implementations under test: {', '.join(REQUIRED)}; corpora: {os.environ.get('ROSETTA_DATA_DIR', 'none')}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes `impl` runs once for each implementation."""
    if "impl" in metafunc.fixturenames:
        metafunc.parametrize("impl", REQUIRED)


@cache
def reference(name: str) -> dict[str, Any]:
    """What NumPy computes in float64 in a case of `check`."""
    from runner.examination.cases import CASES, make_case
    from runner.examination.examinee import Examinee

    return Examinee("numpy", "cpu").measure(make_case(name, CASES[name]), "float64")["quantities"]


@pytest.fixture
def data_dir() -> Path:
    """The folder with copies of the named corpora."""
    if not (folder := os.environ.get("ROSETTA_DATA_DIR")):
        pytest.skip("ROSETTA_DATA_DIR is not set: the named corpora are not tested here")
    return Path(folder)
