"""Kill a search with SIGKILL at random moments, a worker alone or everything, and compare with the search that nobody
disturbed. By hand, on Linux:

    python tests/faults/kill_sweep.py --times 10 --json docs/measurements/kill_sweep.json

Every other kill is of one worker, which the search has to replace; the others are of the whole search, which is then
started again with --resume. What must be the same: the numbers, options, states, steps and losses of all trials, bit
for bit; every trial is told exactly once in the journal. Exit status 1 where anything differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kill_and_resume import ROOT, finish, kill, made_up_texts, start

sys.path.insert(0, str(ROOT))

from shared.files import strict_json, write_atomically

SPACE = ["--vary", "hidden_size", "6,9,12", "--vary", "learning_rate", "0.003,0.01,0.03,0.1"]
SEARCH = ["--method", "grid", "--pruner", "none", "--workers", "2", "--run-dir", "search", "--keep-checkpoints"]
SIZES = ["--embedding-size", "5", "--batch-size", "8", "--seq-length", "16", "--epochs", "5", "--patience", "0"]
WORDS = ["sweep", *SPACE, *SEARCH, *SIZES, "--corpus", "stream.txt", "--reader", "text", "--threads", "1"]
MOST_KILLS = 4
"""Of one search."""
STATE, FINISHED = 6, (1, 2, 3)
"""Optuna's numbers in a journal: the operation that sets a trial's state, and the states of finished trials."""


def undisturbed(folder: Path) -> float:
    """The search to compare with; its seconds."""
    began = time.monotonic()
    finish(start(WORDS, folder), folder)
    return time.monotonic() - began


def disturbed(folder: Path, times: int, seconds: float, draw: random.Random, before: int) -> list[dict[str, Any]]:
    """The same search, killed so often, and then run to its end; what each kill met. `before` it there were others."""
    kills: list[dict[str, Any]] = []
    process = start(WORDS, folder)
    for number in range(before, before + times):
        alone = number % 2 == 0
        moment = time.monotonic() + draw.uniform(0, seconds / 2)
        while process.poll() is None and (time.monotonic() < moment or (alone and not workers(process.pid))):
            time.sleep(0.005)
        if process.poll() is None:
            victims = workers(process.pid) if alone else []
            kills.append({"of": "worker" if alone else "everything", "told": told(folder)})
            if victims:
                kill_one(draw.choice(victims))
            else:
                kill(process)
        if process.poll() is not None:
            begun = (folder / "search/sweep.json").exists()
            process = start(["sweep", "--resume", "search"] if begun else WORDS, folder)
    finish(process, folder)
    return kills


def kill_one(process: int) -> None:
    """SIGKILL, if it still lives."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def workers(process: int) -> list[int]:
    """The worker processes that it has started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children if b"spawn_main" in command_line(child)]


def command_line(process: str) -> bytes:
    """Nothing for one that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def told(folder: Path) -> int:
    """Trials that are finished, by the journal."""
    return sum(ends(folder).values())


def ends(folder: Path) -> Counter[int]:
    """Trial -> how often the journal says that it has ended."""
    journal = folder / "search/journal.log"
    lines = journal.read_bytes().splitlines() if journal.exists() else []
    found: Counter[int] = Counter()
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # torn, and the last: whoever writes next mends it
            continue
        if entry["op_code"] == STATE and entry["state"] in FINISHED:
            found[entry["trial_id"]] += 1
    return found


def rows(folder: Path) -> dict[int, Any]:
    """What must be the same, by trial."""
    result = json.loads((folder / "search/results.json").read_text("utf-8"))
    return {
        row["trial"]: [row[name] for name in ("options", "state", "loss", "steps", "reason")] for row in result["rows"]
    }


def differences(whole: Path, parts: Path) -> list[str]:
    """What is not the same in two searches, and what was counted wrongly."""
    left, right = rows(whole), rows(parts)
    wrong = [
        f"trial {n}: {left.get(n)} and {right.get(n)}"
        for n in sorted(left.keys() | right.keys())
        if left.get(n) != right.get(n)
    ]
    wrong += [f"trial {number} was told {count} times" for number, count in ends(parts).items() if count != 1]
    wrong += [f"trial {number} was never told" for number in left if number not in ends(parts)]
    for line in (parts / "search/journal.log").read_bytes().splitlines():
        json.loads(line)
    return wrong


def campaign(times: int, seed: int) -> dict[str, Any]:
    """What came of so many kills, a few in each of as many searches as that takes."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole = folder_with_text(Path(temporary) / "whole", seed)
        seconds = undisturbed(whole)
        kills: list[dict[str, Any]] = []
        wrong: list[str] = []
        searches = 0
        while len(kills) < times:
            parts = folder_with_text(Path(temporary) / f"parts-{searches}", seed)
            kills += disturbed(parts, min(MOST_KILLS, times - len(kills)), seconds, draw, len(kills))
            wrong += differences(whole, parts)
            searches += 1
        return {"searches": searches, "trials": len(rows(whole)), "kills": kills, "seed": seed, "differences": wrong}


def folder_with_text(folder: Path, seed: int) -> Path:
    """A new one to search in."""
    folder.mkdir()
    made_up_texts(folder, seed)
    return folder


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of texts and moments (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    result = campaign(options.times, options.seed)
    if options.json:
        write_atomically(options.json, strict_json(result))
    what = Counter(each["of"] for each in result["kills"])
    what, wrong = Counter(each["of"] for each in result["kills"]), "; ".join(result["differences"]) or "none"
    searches = f"{result['searches']} searches of {result['trials']} trials"
    print(f"{len(result['kills'])} kills ({dict(what)}) in {searches}; differences: {wrong}")
    return int(bool(result["differences"]))


if __name__ == "__main__":
    sys.exit(main())
