"""One implementation a process: frameworks disturb each other (threads, memory, signals). A worker holds one object and
runs its methods; NumPy arrays and plain values travel over a pipe between our own processes. Whatever happens to a
worker is a WorkerError here; whatever happens here, no worker lives on.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple

from shared.errors import NotFiniteError, OutOfMemoryError, UserError

TIMEOUT = 600.0
"""Seconds that one call may take before its worker counts as hung."""
RENEWAL = 15
"""Tasks after which a worker that shares them gets a new process: what a framework compiled, it never forgets."""


class WorkerError(UserError):
    """A worker failed, died or hung; the message says which and how."""

    exit_status = 1


FAILURES = (WorkerError, NotFiniteError, OutOfMemoryError)
"""What befalls one worker alone: the others go on without it."""


class Worker:
    """A process with one object in it: `Worker("jax", Participant, ...).call("train", 5)`. It is to be made in the main
    thread: Linux ends the process with the thread that started it.
    """

    def __init__(self, name: str, factory: Callable[..., Any], *arguments: Any) -> None:
        self.name, self._factory, self._arguments = name, factory, arguments
        self._open()

    def _open(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = theirs, self._factory, self._arguments
        self._process = context.Process(target=serve, args=arguments, name=self.name, daemon=True)
        try:
            with interrupts_held_back():
                self._process.start()
        except OSError as error:
            raise WorkerError(f"{self.name}: cannot start a process: {error.strerror or error}") from None
        finally:
            theirs.close()
        self._waiting, self._started = True, time.monotonic()  # for the object to be made

    def start(self, method: str, *arguments: Any) -> None:
        """Begin a call; `result` collects it, so that workers run side by side."""
        if self._waiting:
            self.result()
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._lost() from None
        self._waiting, self._started = True, time.monotonic()

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; its UserError, or WorkerError where it failed, died or hung: gave no answer within
        `timeout` seconds, TIMEOUT if none are given."""
        timeout = TIMEOUT if timeout is None else timeout
        try:
            if not self._connection.poll(max(0.0, self._started + timeout - time.monotonic())):
                self.close()
                raise WorkerError(f"{self.name}: no answer within {timeout:g} s; the worker was ended")
            status, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        except WorkerError:
            raise
        except Exception as error:  # whatever unpickling may raise
            self.close()
            raise WorkerError(f"{self.name}: an answer that cannot be read: {error}; the worker was ended") from None
        self._waiting = False
        if status == "user error":
            raise value
        if status == "error":
            raise WorkerError(f"{self.name}: {value}")
        return value

    def call(self, method: str, *arguments: Any) -> Any:
        """start and result in one."""
        self.start(method, *arguments)
        return self.result()

    @property
    def process_id(self) -> int:
        """The system's number of the process."""
        return self._process.pid or 0

    def fileno(self) -> int:
        """What `multiprocessing.connection.wait` watches."""
        return self._connection.fileno()

    def interrupt(self) -> None:
        """Ask for an end, as SIGTERM does; the answer still comes if the call heeds it."""
        self._process.terminate()

    def renew(self) -> None:
        """The same object in a new process."""
        self.close()
        self._open()

    def close(self) -> None:
        """End the process; no orphan stays."""
        self._connection.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _lost(self) -> WorkerError:
        self._process.join(5)
        code = self._process.exitcode
        self.close()
        if code is None:
            return WorkerError(f"{self.name}: the worker closed its pipe and was ended")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        hint = "; so the system ends processes when memory runs out" if code == -getattr(signal, "SIGKILL", 0) else ""
        return WorkerError(f"{self.name}: the worker died ({how}{hint})")


class Task(NamedTuple):
    """A call that any worker of a team may make; `subject` is for whoever collects the answers."""

    subject: Any
    method: str
    arguments: tuple[Any, ...]


def share(
    teams: Mapping[str, Sequence[Any]], tasks: Mapping[str, Iterable[Task]], renewal: int = RENEWAL
) -> Iterator[tuple[str, Any, Any]]:
    """Every worker of a team takes the team's next task as soon as it is free -> the team's name, the task's subject,
    and the answer, in order of arrival; an error in place of the answer of a worker that fails, which gets no other.
    A UserError that is none of FAILURES is the user's mistake in all of them alike, and raised.
    """
    waiting = {team: iter(each) for team, each in tasks.items()}
    free = [(team, worker, 0) for team, workers in teams.items() for worker in workers]
    busy: dict[Any, tuple[str, Task, int]] = {}
    while True:
        for team, worker, done in free:
            if task := next(waiting[team], None):
                busy[worker] = team, task, done
                try:
                    begin(worker, task, renew=done > 0 and done % renewal == 0)
                except FAILURES as error:
                    yield team, busy.pop(worker)[1].subject, error
        if not busy:
            return
        free = []
        # Where nobody answers in time, every one of them is asked, and says that it hangs.
        answering: list[Any] = wait(list(busy), TIMEOUT) or list(busy)
        for worker in answering:
            team, task, done = busy.pop(worker)
            try:
                answer = worker.result()
            except FAILURES as error:
                yield team, task.subject, error
            else:
                free.append((team, worker, done + 1))
                yield team, task.subject, answer


def begin(worker: Any, task: Task, renew: bool) -> None:
    """Start a task, in a new process if asked for."""
    if renew:
        worker.renew()
    worker.start(task.method, *task.arguments)


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """A process that is started here never sees Ctrl-C, not even before its first line; here, it comes afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which otherwise is started with the worker, and lets all signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The worker's loop; ends when the pipe closes, or with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    die_with_parent()
    os.dup2(2, 1)  # what a framework prints must not mix with the parent's tables
    status, target = attempt(factory, arguments)
    answer = (status, None if status == "ok" else target)
    try:
        while True:
            try:
                connection.send(answer)
            except OSError:
                raise
            except Exception as error:  # whatever pickling raises, before anything is sent
                connection.send(("error", f"an answer that cannot be sent: {error}"))
            if status != "ok":  # there is no object
                return
            method, values = connection.recv()
            answer = attempt(getattr(target, method), values)
    except (EOFError, OSError):
        return


def die_with_parent() -> None:
    """End this process when its parent ends, in whatever way, even in the middle of a computation."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":  # where a native call that lets no thread run cannot keep it alive either
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it ended before it was said
            os._exit(1)


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Call, and say how it went."""
    try:
        return "ok", function(*arguments)
    except UserError as error:
        return "user error", error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "error", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
