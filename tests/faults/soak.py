"""Train for a long time and watch the process: memory, file descriptors, threads, speed. By hand:

    python tests/faults/soak.py --impl torch --minutes 60 --json docs/measurements/soak.json

Exit status 1 where memory after the warm-up grows by 1% or more, descriptors or threads pile up, or speed falls. Speed
is tokens per second of processor time, which a busy machine disturbs less than the clock's. Linux only (/proc).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from shared.files import strict_json, write_atomically  # noqa: E402

SIZES = ["--hidden-size", "64", "--num-layers", "2", "--dropout", "0.1", "--batch-size", "16", "--seq-length", "32"]
TOKENS = 16 * 32
"""Of a step with these sizes."""
EVERY = 5.0
"""Seconds between two looks."""
WARM_UP = 0.2
"""Share of the time until caches, pools and allocators have their size."""
MEMORY_BOUND, SPEED_BOUND = 0.01, 0.05


class Look(NamedTuple):
    """What is seen of the process at a moment."""

    seconds: float
    resident: int
    """Bytes of anonymous memory: without the pages of libraries, which the system may drop and read again."""
    descriptors: int
    threads: int
    processor: float
    """Seconds of processor time so far."""
    steps: int


def looks(impl: str, minutes: float, folder: Path) -> Iterator[Look]:
    """Train in a process of its own; what is seen every few seconds. The run is ended by SIGTERM, which saves it."""
    words = [sys.executable, "-m", "runner", "--impl", impl, *SIZES, "--epochs", "1000000", "--device", "cpu"]
    words += [
        "--threads",
        "1",
        "--patience",
        "0",
        "--run-dir",
        str(folder / "run"),
        "--no-statistics",
        "--length",
        "20",
    ]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (folder / "log").open("wb")
    process = subprocess.Popen(words, env=settings, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    metrics, steps, started = folder / "run" / "metrics.jsonl", 0, time.monotonic()
    try:
        place = 0
        while time.monotonic() < started + 60 * minutes:
            time.sleep(EVERY)
            if process.poll() is not None:
                raise SystemExit(f"{impl}: the run ended with status {process.returncode}; {folder / 'log'} says why")
            if metrics.exists():
                with metrics.open("rb") as file:
                    file.seek(place)
                    new = file.read()
                place += len(new)
                steps += new.count(b'"split": "train"')
            yield look(process.pid, time.monotonic() - started, steps)
        process.send_signal(signal.SIGTERM)
        if (status := process.wait(120)) != 143:
            raise SystemExit(f"{impl}: SIGTERM gave status {status}, expected 143; {folder / 'log'} says why")
    finally:
        process.kill()
        process.wait()
        log.close()


def look(pid: int, seconds: float, steps: int) -> Look:
    """At /proc, now."""
    about = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (about / "status").read_text("utf-8").splitlines())
    resident = int(status["RssAnon"].split()[0]) * 1024
    times = (about / "stat").read_text("utf-8").rpartition(")")[2].split()
    processor = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return Look(seconds, resident, len(list((about / "fd").iterdir())), int(status["Threads"]), processor, steps)


def verdict(seen: list[Look]) -> dict[str, Any]:
    """The thirds of the time after the warm-up, first and last; whether anything grew or fell."""
    warm = [each for each in seen if each.seconds >= WARM_UP * seen[-1].seconds]
    third = max(2, len(warm) // 3)
    first, last = warm[:third], warm[-third:]
    growth = median(each.resident for each in last) / median(each.resident for each in first) - 1
    before, after = speed(first), speed(last)
    result = {
        "minutes": round(seen[-1].seconds / 60, 1),
        "steps": seen[-1].steps,
        "tokens": TOKENS * seen[-1].steps,
        "memory_bytes": median(each.resident for each in last),
        "memory_growth": growth,
        "descriptors": [max(each.descriptors for each in part) for part in (first, last)],
        "threads": [max(each.threads for each in part) for part in (first, last)],
        "tokens_per_processor_second": [round(before), round(after)],
        "speed_change": after / before - 1,
    }
    same = all(values[1] <= values[0] for values in (result["descriptors"], result["threads"]))
    return result | {"ok": bool(growth < MEMORY_BOUND and same and after > (1 - SPEED_BOUND) * before)}


def speed(part: list[Look]) -> float:
    """Tokens per second of processor time."""
    return TOKENS * (part[-1].steps - part[0].steps) / (part[-1].processor - part[0].processor)


def soak(impl: str, minutes: float, show: bool = True) -> dict[str, Any]:
    """One implementation -> its verdict."""
    seen: list[Look] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for each in looks(impl, minutes, Path(folder)):
            seen.append(each)
            if show and len(seen) % 24 == 0:
                print(
                    f"{impl}: {each.seconds / 60:.0f} min, {each.steps} steps, {each.resident / 1e6:.1f} MB", flush=True
                )
    return verdict(seen)


def keep(path: Path, impl: str, result: dict[str, Any]) -> None:
    """Add to the file, which other implementations share."""
    whole = json.loads(path.read_text("utf-8")) if path.exists() else {}
    write_atomically(path, strict_json({**whole, impl: result}))


def main() -> int:
    """0 if nothing grew or fell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", choices=("numpy", "torch", "jax", "tf"), default="numpy")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", type=Path, help="file that keeps the figures of all implementations")
    options = parser.parse_args()
    result = soak(options.impl, options.minutes)
    print(json.dumps(result, indent=1))
    if options.json:
        keep(options.json, options.impl, result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
