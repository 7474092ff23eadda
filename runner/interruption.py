"""Ctrl-C and SIGTERM as a wish that is granted between two calls, never in the middle of an update."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """`requested` is 0, or the signal's number."""

    requested = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # asked twice: now
            raise KeyboardInterrupt
        self.requested = number


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Catch both signals for the time of the block."""
    wish = Interruption()
    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
