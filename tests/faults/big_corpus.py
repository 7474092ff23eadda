"""Train on a corpus of any size, made up on the spot, and measure the most memory that the process held. By hand:

    python tests/faults/big_corpus.py --megabytes 1000 --kinds english chinese --json docs/measurements/big_corpus.json

Exit status 1 where the peak is over 3 times the size of the file, or a training fails. What was measured is kept in the
JSON file by kind and size, so that a run that was cut off goes on with what is missing. Linux only (/proc).
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from shared.files import strict_json, write_atomically  # noqa: E402

BOUND = 3.0
"""Peak memory over the size of the file."""
SIZES = ["--hidden-size", "16", "--embedding-size", "8", "--batch-size", "32", "--seq-length", "64"]
SHORT = ["--held-out", "0.0001", "--max-steps", "20", "--length", "20", "--no-statistics", "--threads", "1"]
MEASURED = """
import re, sys
from pathlib import Path
from runner.__main__ import main
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""
"""The command line, and then the most that was resident, mapped files included (KiB)."""


def english(draw: random.Random, _: np.random.Generator) -> bytes:
    """A megabyte of lines of twelve made-up words."""
    words = draw.choices(WORDS, k=144_000)
    return "\n".join(" ".join(words[place : place + 12]) for place in range(0, len(words), 12)).encode() + b"\n"


def chinese(_: random.Random, numbers: np.random.Generator) -> bytes:
    """A megabyte of lines of 200 characters."""
    return rows(numbers, 1_700, 200, mark=13)


def poems(_: random.Random, numbers: np.random.Generator) -> bytes:
    """A megabyte of poems of eight lines of five characters, one poem a line of the file."""
    return rows(numbers, 7_000, 48, mark=6)


def rows(numbers: np.random.Generator, count: int, length: int, mark: int) -> bytes:
    """Lines of random Han characters, every so many of which are a mark."""
    drawn = (numbers.triangular(0, 0, 4_000, (count, length + 1)) + 0x4E00).astype("<u4")
    drawn[:, mark - 1 :: 2 * mark], drawn[:, 2 * mark - 1 :: 2 * mark] = ord("，"), ord("。")
    drawn[:, -1] = ord("\n")
    return drawn.tobytes().decode("utf-32-le").encode()


LETTERS = random.Random(1)
WORDS = ["".join(LETTERS.choices("aabcdeeefghiiklmnooprsttuvwy", k=LETTERS.randint(2, 9))) for _ in range(4_000)]


class Kind(NamedTuple):
    """A corpus and how it is read."""

    block: Callable[[random.Random, np.random.Generator], bytes]
    options: list[str]


KINDS = {
    "english": Kind(english, ["--reader", "text"]),
    "chinese": Kind(chinese, ["--reader", "text"]),
    "windows": Kind(english, ["--reader", "text", "--stride", "1"]),
    "poems": Kind(poems, ["--reader", "poems"]),
    "rhymes": Kind(english, ["--reader", "poems", "--cut"]),
    "subwords": Kind(english, ["--reader", "text", "--subwords", "500"]),
}


def blocks(kind: Kind, megabytes: int) -> Iterator[bytes]:
    """The same for the same kind and size."""
    draw, numbers, left = random.Random(7), np.random.default_rng(7), megabytes * 10**6
    while left > 0:
        block = kind.block(draw, numbers)[:left]
        yield block[: block.rindex(b"\n") + 1]
        left -= len(block)


def measure(name: str, megabytes: int, folder: Path) -> dict[str, Any]:
    """Write the corpus, train on it in a process of its own, and say what that took."""
    path = folder / f"{name}.txt"
    with path.open("wb") as file:
        file.writelines(blocks(KINDS[name], megabytes))
    size = path.stat().st_size
    words = ["--corpus", str(path), *KINDS[name].options, "--impl", "numpy", *SIZES, *SHORT]
    words += ["--run-dir", str(folder / f"{name}-run")]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder / "peak"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    peak = int((folder / "peak").read_text("utf-8")) * 1024
    path.unlink()
    return {
        "kind": name,
        "file_bytes": size,
        "peak_bytes": peak,
        "ratio": round(peak / size, 3),
        "seconds": round(time.monotonic() - started, 1),
    }


def room(folder: Path, megabytes: int) -> None:
    """SystemExit where the disk cannot hold the file and its tokens."""
    if shutil.disk_usage(folder).free < 3 * megabytes * 10**6:
        raise SystemExit(f"{folder} has less than {3 * megabytes} MB free; set TMPDIR to a folder that has more.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the file (default: 1000)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["english", "chinese"], help="default: two")
    parser.add_argument("--json", type=Path, help="where to keep the figures, and to go on from")
    options = parser.parse_args()
    kept = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    for name in options.kinds:
        key = f"{name}, {options.megabytes} MB"
        if key not in kept:
            with tempfile.TemporaryDirectory() as folder:
                room(Path(folder), options.megabytes)
                kept[key] = measure(name, options.megabytes, Path(folder))
            if options.json:
                write_atomically(options.json, strict_json(kept))
        print(
            f"{key}: peak {kept[key]['peak_bytes'] / 1e6:,.0f} MB, {kept[key]['ratio']:.2f} times the file, "
            f"{kept[key]['seconds']:.0f} s",
            flush=True,
        )
    return int(any(kept[f"{name}, {options.megabytes} MB"]["ratio"] > BOUND for name in options.kinds))


if __name__ == "__main__":
    sys.exit(main())
