"""A run in a process that may not have much memory."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib, resource, sys
from pathlib import Path
from runner.__main__ import main
impl, megabytes, *arguments = sys.argv[1:]
for name in ("runner.train", f"impl_{impl}"):
    importlib.import_module(name)
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(megabytes) * 2**20,) * 2)
sys.exit(main(["--impl", impl, *arguments]))
"""
BIG = ["--corpus", "rhyme.txt", "--batch-size", "256", "--seq-length", "200", "--hidden-size", "400", "--device", "cpu"]


def train(folder: Path, impl: str, megabytes: int) -> str:
    """Training that asks for much more than Python, the framework and so many megabytes hold; what it says on stderr,
    after checking that it ends with status 1, without a traceback."""
    (folder / "rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 1500, "utf-8")
    words = [sys.executable, "-c", PROGRAM, impl, str(megabytes), *BIG, "--run-dir", "run"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=settings, timeout=120)
    assert done.returncode == 1, f"status {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr
