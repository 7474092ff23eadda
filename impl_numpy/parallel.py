"""Workers that share each batch: NumPy has none."""

from typing import NoReturn

from shared.config import ParallelConfig, RuntimeConfig
from shared.errors import ImplementationError


def open_team(parallel: ParallelConfig, runtime: RuntimeConfig) -> NoReturn:
    """ImplementationError with the reason."""
    raise ImplementationError(
        f"--data-parallel needs messages between workers, {parallel.workers} here, and NumPy has none: that is what "
        "frameworks are for. Use --impl torch, jax or tf; any of them goes on with a NumPy run (--resume DIR --impl "
        "torch)."
    )
