"""Faults at every call by which a run touches the files in its folder: the process dies there, or the system refuses.

One run is made. At each such call it is forked; the child gets a copy of everything and suffers the fault, and the run
goes on. Python's own file objects are replaced by those of `_pyio`, which make every system call through the module
`os`, where it can be counted and can fail. A write that fails has written half of its bytes.

`python tests/faults/injection.py FOLDER` makes the runs in a new folder; faults.json there says what came of them.
"""

import _pyio
import argparse
import builtins
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from runner import environment
from shared.config import RuntimeConfig

environment.prepare(RuntimeConfig(device="cpu", threads=1))  # before NumPy loads

from runner import report, rundir  # noqa: E402
from runner.__main__ import main  # noqa: E402
from runner.reporting.records import TIMED  # noqa: E402
from shared.checkpoint import load_checkpoint  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.files import UNFINISHED, strict_json, write_atomically  # noqa: E402

BY_PATH = ("open", "replace", "rename", "unlink", "mkdir", "rmdir", "chmod", "truncate", "link", "symlink")
BY_DESCRIPTOR = ("write", "fsync", "ftruncate", "close")
KILL = 0
"""In place of the number of an error."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
RUN = "run"
SMALL = "--hidden-size 5 --embedding-size 3 --num-layers 2 --dropout 0.1 --batch-size 4 --seq-length 8 --length 3"
TRAIN = f"--corpus text.txt {SMALL} --no-statistics --device cpu --threads 1 --epochs 2 --run-dir {RUN}".split()
RESUME = ["--resume", RUN, "--epochs", "2"]
LOG = "log"
TRACEBACK = 99
"""Exit status of a child that died of an exception."""
RESUMED_EVERY = 19
"""Calls; at these, the run is also resumed to its end."""


class Explorer:
    """Forks at each call that touches the folder `RUN` of the working directory; `rows` says what came of it."""

    def __init__(self, copies: Path, every_error: bool) -> None:
        self.here, self.copies, self.rows = Path.cwd(), copies, list[dict[str, Any]]()
        self.every_error = every_error
        self.forks, self.copy = True, Path()
        self._calls = 0
        self._ours: dict[int, bool] = {}  # descriptors of what lies in the folder: whether they write
        self._real = {name: getattr(os, name) for name in BY_PATH + BY_DESCRIPTOR}

    def __enter__(self) -> "Explorer":
        self._opened = io.open
        for name in BY_PATH:
            setattr(os, name, self._by_path(name))
        for name in BY_DESCRIPTOR:
            setattr(os, name, self._by_descriptor(name))
        builtins.open = io.open = _pyio.open
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)
        builtins.open = io.open = self._opened

    def _by_path(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            path = arguments[0]
            inside = self.forks and not isinstance(path, int) and within(path, self.here / RUN)
            if inside:
                self._reached(name, path)
            result = self._real[name](*map(self._moved, arguments), **options)
            if inside and name == "open":
                self._ours[result] = bool(arguments[1] & (os.O_WRONLY | os.O_RDWR))
            return result

        return call

    def _by_descriptor(self, name: str) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            if not (self.forks and descriptor in self._ours):
                return self._real[name](descriptor, *arguments)
            half = [bytes(each[: len(each) // 2]) for each in arguments] if name == "write" else []
            if name != "close" or self._ours.pop(descriptor):
                self._reached(name, descriptor, *half)
            # Nothing here is about power cuts, and every flush would take milliseconds.
            return None if name == "fsync" else self._real[name](descriptor, *arguments)

        return call

    def _reached(self, name: str, what: Any, *half: Any) -> None:
        """One more call: the faults that it may meet."""
        self.forks = False
        self._calls += 1
        before = contents(self.here)
        for code in (KILL, *(ERRORS if self.every_error else [ERRORS[self._calls % len(ERRORS)]])):
            row = {"number": self._calls, "call": name, "code": code}
            resumes = self._calls % RESUMED_EVERY == 0
            if code == KILL and not half and not resumes:  # a process that dies between two calls leaves what is there
                self.rows.append(row | {"status": -signal.SIGKILL} | outcome(self.here, before))
                continue
            copy = self.copies / f"{self._calls}-{code}"
            shutil.copytree(self.here, copy)
            row["status"] = forked(partial(self._suffer, code, name, what, half, copy))
            self.rows.append(row | outcome(copy, before))
            if resumes:
                self.rows[-1]["resumed"] = forked(partial(go_on, copy)), end(copy)
            shutil.rmtree(copy)
        self.forks = True

    def _suffer(self, code: int, name: str, what: Any, half: Any, copy: Path) -> None:
        """In a child: move into the copy, and fail."""
        self.copy = copy
        for descriptor in self._ours:
            self._move(descriptor, copy)
        enter(copy)
        if half:
            os.write(what, *half)
        if code == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "close":  # whatever it reports, the descriptor is gone
            os.close(what)
        raise OSError(code, os.strerror(code), *([] if isinstance(what, int) else [os.fspath(what)]))

    def _moved(self, argument: Any) -> Any:
        """In a child, a path that it knew before means the same file in the copy."""
        if isinstance(argument, str | Path) and self.copy != Path() and within(argument, self.here):
            return self.copy / os.path.relpath(argument, self.here) if os.path.isabs(argument) else argument
        return argument

    def _move(self, descriptor: int, copy: Path) -> None:
        """Let a descriptor mean the same file in the copy."""
        path = copy / Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(self.here)
        kept = os.O_APPEND | os.O_ACCMODE | os.O_DIRECTORY
        moved = os.open(path, fcntl.fcntl(descriptor, fcntl.F_GETFL) & kept)
        if not path.is_dir():
            os.lseek(moved, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(moved, descriptor)


def within(path: str | Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(folder)


def forked(action: Callable[[], int]) -> int:
    """The exit status of a child of this process, negative for a signal. What the action raises goes its way through
    the child, up to where `explored` ends it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(action())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def enter(folder: Path) -> None:
    """Work there, and print into a file beside."""
    os.chdir(folder)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)


def explored(here: Path, arguments: list[str], every_error: bool) -> list[dict[str, Any]]:
    """What came of each fault in `python -m runner ARGUMENTS`, made in the folder."""
    parent = os.getpid()
    copies = here.with_name(f"{here.name}-copies")
    try:
        enter(here)
        explorer = Explorer(copies, every_error)
        with explorer:
            status = main(arguments)
        if os.getpid() == parent:
            return explorer.rows
    except BaseException:
        traceback.print_exc()
        status = TRACEBACK
    sys.stdout.flush()
    os._exit(status)


def outcome(copy: Path, before: dict[str, bytes]) -> dict[str, Any]:
    """What a fault left behind; `output` is what the run says at its end."""
    after = contents(copy)
    finals = [name for name in before | after if not (is_log(name) or is_unfinished(name) or name.endswith(".lock"))]
    return {
        "output": (copy / LOG).read_text("utf-8")[-2000:],
        "changed": sorted(name for name in finals if before.get(name) != after.get(name)),
        "lost": [name for name in before if is_log(name) and not after.get(name, b"").startswith(before[name])],
        "unfinished": [name for name in after if is_unfinished(name)],
        "broken": [each for name in after for each in whole(copy, name, after[name])],
        "saved": f"{RUN}/last.safetensors" in after,
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / RUN).rglob("*") if path.is_file()}


def is_log(name: str) -> bool:
    """Whether a file grows."""
    return name.endswith("metrics.jsonl") or "/tensorboard/" in name


def is_unfinished(name: str) -> bool:
    return Path(name).name.startswith(".") and name.endswith(UNFINISHED)


def whole(folder: Path, name: str, content: bytes) -> list[str]:
    """What is wrong with a file of a run that has its final name."""
    if content not in KNOWN:
        try:
            if name.endswith(".safetensors"):
                load_checkpoint(folder / name)
            elif name.endswith(".json"):
                json.loads(content)
            elif name.endswith(".html"):
                assert content.rstrip().endswith(b"</html>")
        except (UserError, ValueError, AssertionError) as error:
            return [f"{name}: {error}"]
        KNOWN.add(content)
    return []


KNOWN: set[bytes] = set()
"""Contents that are whole."""


def go_on(folder: Path) -> int:
    """Resume the run, in a child."""
    enter(folder)
    return main(RESUME)


def end(folder: Path) -> str:
    """A hash of all that must be the same however often a run was stopped."""
    digest = sha256()
    for name in ("last", "best"):
        try:
            checkpoint = load_checkpoint(folder / RUN / f"{name}.safetensors")
        except UserError:
            return ""
        for arrays in (checkpoint.parameters, checkpoint.slots, checkpoint.state):
            for key in sorted(arrays):
                digest.update(key.encode() + arrays[key].tobytes())
    for line in (folder / RUN / "metrics.jsonl").read_text("utf-8").splitlines():
        values = json.loads(line)
        values = {name: values[name] for name in values if name not in TIMED}
        digest.update(json.dumps(values).encode())
    digest.update((folder / RUN / "samples.txt").read_bytes())
    return digest.hexdigest() + "".join(map(str, (folder / RUN).glob(f".*{UNFINISHED}")))


class Unlocked:
    """A lock in name only: a real one knows that it was inherited by a fork, and refuses."""

    is_locked = True

    def __init__(self, path: Path, **_: Any) -> None:
        self.path = path

    def acquire(self) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT))

    def release(self) -> None:
        pass


def explore(folder: Path, every_error: bool) -> dict[str, Any]:
    """Every fault of a run from its beginning, and of one that goes on after a kill."""
    rundir.FileLock = Unlocked
    report.svg = lambda *_: "<svg/>"  # a third of a second each time
    clean, new, torn = (folder / name for name in ("clean", "new", "torn"))
    train = TRAIN + ["--tensorboard"] * (find_spec("tensorboardX") is not None)
    for each in (clean, new, torn):
        each.mkdir(parents=True)
        (each / "text.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 3, "utf-8")
    enter(clean)
    main(train)
    enter(torn)
    main([*train, "--epochs", "1"])
    with (torn / RUN / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "epoch": 2, "spl')
    (torn / RUN / f".last.safetensors.k3j2h1ab{UNFINISHED}").write_bytes(b"\0" * 9)
    rows = [{"run": "new"} | row for row in explored(new, train, every_error)]
    rows += [{"run": "torn"} | row for row in explored(torn, RESUME, every_error)]
    return {"end": end(clean), "ends": [end(new), end(torn)], "rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder; faults.json there is the result")
    parser.add_argument("--every-error", action="store_true", help="each error at each call, not one of four in turn")
    given = parser.parse_args()
    result = explore(given.folder.resolve(), given.every_error)
    write_atomically(given.folder.resolve() / "faults.json", strict_json(result))
