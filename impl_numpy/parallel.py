"""Who shares a batch. Rows of a batch do not know each other, and NumPy lets other threads run while it computes: so
each thread takes rows of its own (of two threads, every second one: as long as the other's) all the way through the
layers and back, with a BLAS of one thread, and nobody waits between two steps. Messages between processes NumPy has
none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import NoReturn, TypeAlias, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from impl_numpy.arrays import Array, Device
from shared.config import ParallelConfig, RuntimeConfig
from shared.errors import ImplementationError

LEAST = 2**12
"""Numbers of a layer's state from which on a thread is worth it: below, threads wait for each other's Python."""

Result = TypeVar("Result")
Each: TypeAlias = Callable[[Callable[[slice], Result]], list[Result]]
"""What a function makes of each thread's rows, all at once."""


class Threads:
    """As many as BLAS has been given; one where a GPU computes."""

    def __init__(self, device: Device) -> None:
        self._blas = ThreadpoolController().select(user_api="blas")
        counts = [library["num_threads"] for library in self._blas.info()] if device.module is np else []
        self._count = max(counts, default=1)
        self._pool = ThreadPoolExecutor(self._count)

    @contextmanager
    def share(self, rows: int, width: int) -> Iterator[Each]:
        """Rows whose states are so wide, as many for each thread as for the others; few of them for one alone.
        Meanwhile BLAS has one thread: more of them would go on waiting for work beside those that have some."""
        count = max(1, min(self._count, rows, rows * width // LEAST))
        first, *others = (slice(k, rows, count) for k in range(count))

        def each(function: Callable[[slice], Result]) -> list[Result]:
            started = [self._pool.submit(copy_context().run, function, share) for share in others]
            return [function(first), *(future.result() for future in started)]

        with self._blas.limit(limits=1 if others else None):
            yield each


def interleaved(parts: Sequence[Array]) -> Array:
    """What each thread made of its rows, in the order of all rows."""
    if len(parts) == 1:
        return parts[0]
    whole = np.empty_like(parts[0], shape=(sum(map(len, parts)), *parts[0].shape[1:]))
    for k, part in enumerate(parts):
        whole[k :: len(parts)] = part
    return whole


def dealt(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Names in so many hands, of about as many numbers each: the next largest to whoever has least."""
    hands: list[list[str]] = [[] for _ in range(count)]
    held = [0] * count
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        least = held.index(min(held))
        hands[least].append(name)
        held[least] += sizes[name]
    return hands


def open_team(parallel: ParallelConfig, runtime: RuntimeConfig) -> NoReturn:
    """ImplementationError with the reason."""
    raise ImplementationError(
        f"--data-parallel needs messages between workers, {parallel.workers} here, and NumPy has none: that is what "
        "frameworks are for. Use --impl torch, jax or tf; any of them goes on with a NumPy run (--resume DIR --impl "
        "torch)."
    )
