"""The READMEs promise commands; each must be one that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from runner import cli

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md")


def commands(page):
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(r"python -m runner([^\n`&#]*)", text)
    return sorted({line.strip() for line in found if "..." not in line and "NAME" not in line})


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_parsed(page):
    lines = commands(page)
    assert lines
    for line in lines:
        if "--help" not in line:
            cli.parse(shlex.split(line))


def test_both_languages_hold_the_same_commands():
    def blocks(page):
        return re.findall(r"```.*?```", (ROOT / page).read_text("utf-8"), re.DOTALL)

    assert blocks("README.md") == blocks("README.zh-CN.md")


def test_every_file_that_is_named_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text("utf-8")):
            assert (ROOT / target).exists(), f"{page} points to {target}"
    text = (ROOT / "README.md").read_text("utf-8")
    for path in re.findall(r"`((?:shared|impl_\w+|runner|tests)/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert "README.md" in script
    lines = [
        line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("python3 -m venv")
    ]
    assert len(lines) == 2
    assert lines[1].endswith("/tox -p")
