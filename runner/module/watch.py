"""A user's code watched: how long it takes, what it prints, and where it fails, in one sentence with the line."""

import contextlib
import io
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import UserError


class MisbehaviourError(UserError):
    """The user's code did something other than answer."""

    exit_status = 1


class HungError(MisbehaviourError):
    """It did not return in its time."""


class Expired(BaseException):
    """Raised where the user's code is when its time is over; no `except Exception` holds it up."""


class Heard(io.TextIOBase):
    """What the user's code prints: the first line, and how many there were."""

    def __init__(self) -> None:
        self.first, self.lines = "", 0

    def write(self, text: str) -> int:
        self.first += text[:200] if not self.lines and len(self.first) < 200 else ""
        self.lines += text.count("\n")
        return len(text)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Expired after so many seconds, where the system has an alarm; the parent's own clock stands behind it."""

    def ring(number: int, frame: Any) -> None:
        raise Expired

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def watched(path: Path, seconds: float, heard: Heard, what: str) -> Iterator[None]:
    """Around a call of what the file holds; MisbehaviourError says what happened, and on which line."""
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard), limited(seconds):
            yield
    except UserError:
        raise
    except Expired as error:
        raise HungError(f"{what} did not return within {seconds:g} s ({line(path, error)}).") from None
    except SyntaxError as error:
        place = f"{Path(str(error.filename)).name}, line {error.lineno}: {(error.text or '').strip()}"
        raise MisbehaviourError(f"{what} is not Python: {error.msg} ({place}).") from None
    except (Exception, SystemExit) as error:
        raise MisbehaviourError(f"{what} raised {type(error).__name__}: {error} ({line(path, error)}).") from None


def line(path: Path, error: BaseException) -> str:
    """The last line of the user's file on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if Path(frame.filename).name == path.name), frames[-1])
    return f"{Path(last.filename).name}, line {last.lineno}: {last.line}"
