"""Kill training with SIGKILL at random moments, resume it, and compare with the run that nobody disturbed. By hand:

    python tests/faults/kill_and_resume.py --impl torch --times 50 --json docs/measurements/kill_and_resume.json

Every run is killed up to four times: half the moments are uniform over the time that the undisturbed run takes, from
the first import to the report, three in eight over the lines that it logs, one in eight over the time after them. What
must be the same, bit for bit: every array of both checkpoints (parameters, optimizer, recurrent state), their step and
progress, metrics.jsonl, samples.txt and the result, apart from what is timed. Exit status 1 where anything differs.
With --json the script goes on where an earlier one with the same seed was stopped. POSIX only.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from runner.registry import versions  # noqa: E402
from runner.reporting.records import TIMED  # noqa: E402
from shared.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from shared.files import strict_json, write_atomically  # noqa: E402

SIZES = ["--hidden-size", "12", "--embedding-size", "6", "--num-layers", "2", "--batch-size", "8", "--seq-length", "16"]
TRAINING = ["--dropout", "0.2", "--optimizer", "adam", "--learning-rate", "0.01", "--patience", "0"]
EPOCHS = 8
SCHEDULE = ["--schedule", "cosine", "--restart-period", "20", "--restart-factor", "2", "--schedule-unit", "step"]
PLACE = ["--device", "cpu", "--threads", "1", "--length", "20"]
COMMON = [*SIZES, *TRAINING, *SCHEDULE, "--minimum-rate", "0.0001", *PLACE]
STREAM, POEMS = ["--corpus", "stream.txt", "--reader", "text"], ["--corpus", "poems.txt", "--reader", "poems"]
DESIGNS = {
    "lstm-streams": ["--cell", "lstm", *STREAM],
    "gru-poems": ["--cell", "gru", *POEMS],
    "lstm-poems": ["--cell", "lstm", *POEMS],
    "gru-windows": ["--cell", "gru", *STREAM, "--stride", "16", "--carry-state"],
}
"""Streams, and these windows, carry the recurrent state from batch to batch."""
INTERVALS = ("0", "0.001", "0.1")
"""--checkpoint-seconds: the end of an epoch only, every stack, now and then; the undisturbed run has the first."""
MOST_KILLS = 4
"""Of one run."""
PATIENCE = 600
"""Seconds after which a process that should have ended has not."""

Moment = Callable[[Path], bool]
"""Whether it has come, by the look of the run's folder."""


@dataclass(frozen=True)
class Whole:
    """A design's run that nobody disturbed."""

    impl: str
    design: str
    folder: Path
    epochs: int
    seconds: float
    finishing: float
    """Seconds from the last line of metrics.jsonl to the end."""
    lines: int
    stack: int
    """Steps of its largest stack."""

    @property
    def words(self) -> list[str]:
        return [*words_of(self.impl, self.design, self.epochs), "--run-dir", "run"]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, by what was on the disk then."""

    phase: str
    """starting, training, or finishing: all steps done, samples and report not yet."""
    done_again: int
    """Steps that were logged and not in the checkpoint."""


def made_up_texts(folder: Path, seed: int) -> None:
    """A running text and poems, one a line, of words that mean nothing."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abdeiklmnorstu", k=draw.randint(2, 6))) for _ in range(40)]
    (folder / "stream.txt").write_text(" ".join(draw.choices(words, k=2000)) + "\n", "utf-8")
    poems = [" ".join(draw.choices(words, k=draw.randint(1, 3)))[:15] for _ in range(500)]
    (folder / "poems.txt").write_text("\n".join(poems) + "\n", "utf-8")


def start(words: Iterable[str], folder: Path) -> subprocess.Popen[bytes]:
    """`python -m runner ...` in a process group of its own; what it says goes to the file log."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "runner", *words]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end, which must be a good one."""
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    if status:
        raise RuntimeError(f"exit status {status}:\n{(folder / 'log').read_text('utf-8', 'replace')[-4000:]}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the whole group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def words_of(impl: str, design: str, epochs: int) -> list[str]:
    """The options of a design's run."""
    return ["--impl", impl, *COMMON, *DESIGNS[design], "--epochs", str(epochs)]


def undisturbed(impl: str, design: str, folder: Path, epochs: int = EPOCHS) -> Whole:
    """The run to compare with."""
    started = time.monotonic()
    words = [*words_of(impl, design, epochs), "--run-dir", "run", "--checkpoint-seconds", INTERVALS[0]]
    finish(start(words, folder), folder)
    seconds, finishing = time.monotonic() - started, time.time() - (folder / "run/metrics.jsonl").stat().st_mtime
    lines = logged(folder / "run")
    together = Counter((line["epoch"], line["tokens_per_second"]) for line in lines if line["split"] == "train")
    return Whole(impl, design, folder, epochs, seconds, finishing, len(lines), max(together.values()))


def disturbed(whole: Whole, folder: Path, interval: str, moments: Iterable[Moment]) -> list[Kill]:
    """The same run, killed at each moment that comes before its end, resumed each time, and run to its end."""
    run, kills = folder / "run", []
    for moment in [*moments, None]:
        begun = (run / "config.json").exists()
        words = [*(["--resume", "run"] if begun else whole.words), "--checkpoint-seconds", interval]
        process = start(words, folder)
        while moment and process.poll() is None and not moment(run):
            time.sleep(0.001)
        if moment is None or process.poll() is not None:
            finish(process, folder)
            return kills
        kill(process)
        kills.append(look(run))
    raise AssertionError("unreachable: the last process runs to its end")


def after_seconds(seconds: float) -> Moment:
    """So long after it was first asked for."""
    began: list[float] = []

    def moment(_: Path) -> bool:
        began[:] = began or [time.monotonic()]
        return time.monotonic() >= began[0] + seconds

    return moment


def at_line(number: int, seconds: float = 0.0) -> Moment:
    """When metrics.jsonl grows to that many lines, or so long after that. What a resumed run takes back counts anew."""
    before: list[int] = []
    delay = after_seconds(seconds)

    def moment(run: Path) -> bool:
        if not before or before[-1] < number:
            path = run / "metrics.jsonl"
            lines = path.read_bytes().count(b"\n") if path.exists() else 0
            grown = before and lines > before[-1]
            before[:] = [lines if grown else min(lines, number - 1)]
        return before[-1] >= number and delay(run)

    return moment


def moments(whole: Whole, draw: random.Random) -> Iterator[Moment]:
    """Where a run is to be killed."""
    for _ in range(draw.randint(1, MOST_KILLS)):
        by_clock = after_seconds(draw.uniform(0, whole.seconds))
        by_line = at_line(draw.randint(1, whole.lines))
        at_the_end = at_line(whole.lines, draw.uniform(0, whole.finishing))
        yield draw.choices((by_clock, by_line, at_the_end), (4, 3, 1))[0]


def look(run: Path) -> Kill:
    """What a kill has left."""
    if not (run / "last.safetensors").exists():
        return Kill("starting", 0)
    progress = load_checkpoint(run / "last.safetensors").progress
    steps = [line["step"] for line in logged(run)]
    return Kill("finishing" if progress["reason"] else "training", max(steps, default=0) - progress["step"])


def logged(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def differences(whole: Path, parts: Path) -> list[str]:
    """What is not the same in two run directories."""
    left, right = (contents(folder / "run") for folder in (whole, parts))
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def contents(run: Path) -> dict[str, Any]:
    """All that must be the same, by name."""
    config = json.loads((run / "config.json").read_text("utf-8"))
    found: dict[str, Any] = {"result": untimed(config["result"]), "samples.txt": (run / "samples.txt").read_bytes()}
    found["metrics.jsonl"] = [untimed(line) for line in logged(run)]
    for name in ("last", "best"):
        found |= {f"{name}: {entry}": value for entry, value in entries(load_checkpoint(run / f"{name}.safetensors"))}
    return found


def entries(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Arrays as type, shape and bytes; the rest as it is."""
    for group in ("parameters", "slots", "state"):
        for name, array in getattr(checkpoint, group).items():
            yield f"{group} {name}", (array.dtype.str, array.shape, array.tobytes())
    yield "step", checkpoint.step
    yield "config", checkpoint.config
    yield "vocabulary", checkpoint.vocabulary.to_json()
    yield "progress", untimed(checkpoint.progress)


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """Without what the clock decides."""
    return {name: value for name, value in values.items() if name not in TIMED}


def one(whole: Whole, folder: Path, seed: int, number: int) -> dict[str, Any]:
    """Kill, resume, compare: what came of it."""
    draw = random.Random(f"{seed} {number}")
    interval = draw.choice(INTERVALS)
    kills = disturbed(whole, folder, interval, moments(whole, draw))
    wrong = differences(whole.folder, folder)
    bound = whole.stack if interval == INTERVALS[1] else whole.lines // whole.epochs
    wrong += [f"{each.done_again} steps done again, more than {bound}" for each in kills if each.done_again > bound]
    record = {"number": number, "design": whole.design, "checkpoint_seconds": float(interval)}
    return record | {"kills": [asdict(each) for each in kills], "differences": wrong}


def campaign(impl: str, times: int, seed: int, found: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """All runs so far, after each new one, until there were enough kills."""
    with tempfile.TemporaryDirectory() as temporary:
        wholes: dict[str, Whole] = {}
        while sum(len(run["kills"]) for run in found) < times:
            number = len(found)
            design = list(DESIGNS)[number % len(DESIGNS)]
            if design not in wholes:
                wholes[design] = undisturbed(impl, design, folder_with_texts(Path(temporary), design, seed))
            folder = folder_with_texts(Path(temporary), f"run-{number}", seed)
            found.append(one(wholes[design], folder, seed, number))
            shutil.rmtree(folder)
            yield found


def folder_with_texts(parent: Path, name: str, seed: int) -> Path:
    """A new folder to train in."""
    folder = parent / name
    folder.mkdir()
    made_up_texts(folder, seed)
    return folder


def summary(impl: str, seed: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the file keeps of an implementation."""
    kills = [each for run in runs for each in run["kills"]]
    phases = Counter(each["phase"] for each in kills)
    return {
        "kills": len(kills),
        "kills_while": dict(sorted(phases.items())),
        "runs": len(runs),
        "runs_that_differ": sum(bool(run["differences"]) for run in runs),
        "most_steps_done_again": max((each["done_again"] for each in kills), default=0),
        "seed": seed,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(impl),
        "each_run": runs,
    }


def stored(path: Path | None) -> dict[str, Any]:
    """What an earlier run of this script wrote."""
    return json.loads(path.read_text("utf-8")) if path and path.exists() else {}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", required=True, choices=("numpy", "torch", "jax", "tf"), help="implementation")
    parser.add_argument("--times", type=int, default=50, help="kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of texts and moments (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures, which holds other implementations', too")
    options = parser.parse_args()
    before = stored(options.json).get(options.impl, {})
    same = before.get("seed") == options.seed and before.get("versions") == versions(options.impl)
    runs: list[dict[str, Any]] = before["each_run"] if same else []
    for runs in campaign(options.impl, options.times, options.seed, runs):  # noqa: B020 - the same list, grown
        last = runs[-1]
        print(f"{options.impl} {last['number']:3} {last['design']:12} {told(last)}", flush=True)
        if options.json:
            result = stored(options.json) | {options.impl: summary(options.impl, options.seed, runs)}
            write_atomically(options.json, strict_json(result))
    total = summary(options.impl, options.seed, runs)
    print(
        f"{options.impl}: {total['kills']} kills {total['kills_while']} in {total['runs']} runs, "
        f"{total['runs_that_differ']} of which differ; at most {total['most_steps_done_again']} steps done again"
    )
    return int(total["runs_that_differ"] > 0)


def told(run: dict[str, Any]) -> str:
    """A run in a line."""
    kills = ", ".join(f"{each['phase']} (-{each['done_again']})" for each in run["kills"]) or "never"
    return f"killed: {kills}; " + ("differs: " + "; ".join(run["differences"]) if run["differences"] else "the same")


if __name__ == "__main__":
    sys.exit(main())
