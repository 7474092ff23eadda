"""Workers that share each batch: a process for each, joined by torch.distributed (gloo, or NCCL between GPUs). Every
process is given the whole batch and computes its rows; what is left to tell each other is one sum of one vector a step,
and the state's rows at the end of a stack."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import distributed

from impl_torch.arrays import Array
from shared.config import ParallelConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError, WorkerLostError


class Team:
    """One process among all; alone unless it is told otherwise."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self._size, self._local = rank, size, local

    def first(self, content: bytes) -> bytes:
        """As the contract says."""
        if self._size == 1:
            return content
        length = self._told(torch.tensor([len(content)]))
        given = np.frombuffer(content if self.rank == 0 else bytes(int(length)), np.uint8)
        return self._told(torch.tensor(given)).cpu().numpy().tobytes()

    def close(self) -> None:
        """As the contract says."""
        if self._size > 1:
            self.first(b"")
            distributed.destroy_process_group()

    def place(self, runtime: RuntimeConfig) -> RuntimeConfig:
        """The same, on this worker's GPU where each of those on a machine takes one."""
        several = self._size > 1 and runtime.device in ("auto", "cuda") and torch.cuda.is_available()
        return replace(runtime, device=f"cuda:{self._local}") if several else runtime

    def rows(self, array: Any, axis: int = 0) -> Any:
        """The part of this worker along the batch axis, of a tensor or a NumPy array."""
        size = array.shape[axis] // self._size
        return array[(slice(None),) * axis + (slice(self.rank * size, (self.rank + 1) * size),)]

    def count(self, batch: Batch, many_to_one: bool) -> Array | None:
        """Predictions of each whole batch, of stacked ones [K]; None for a single worker, which counts its own."""
        if self._size == 1:
            return None
        return (batch.mask.any(-1) if many_to_one else batch.mask.sum(-1)).sum(-1)

    def total(self, arrays: Sequence[Array]) -> list[Array]:
        """The sum of each over all workers, by one message."""
        if self._size == 1:
            return list(arrays)
        flat = torch.cat([array.detach().flatten() for array in arrays])
        with said_plainly():
            distributed.all_reduce(flat)
        pieces = flat.split([array.numel() for array in arrays])
        return [piece.view_as(array) for piece, array in zip(pieces, arrays, strict=True)]

    def whole(self, rows: Array) -> Array:
        """All workers' rows, one behind the other."""
        if self._size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self._size)]
        with said_plainly():
            distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def _told(self, value: Array) -> Array:
        """What the first process has, in a vector of any length that the others know."""
        value = value.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
        with said_plainly():
            distributed.broadcast(value, src=0)
        return value


@contextmanager
def said_plainly() -> Iterator[None]:
    """A worker that is gone is no traceback."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerLostError(
            "Another worker is gone, and without it no step can be made. Its own message says why. Then go on with "
            f"--resume, with as many workers as you like. ({str(error).splitlines()[0]})"
        ) from None


def open_team(parallel: ParallelConfig, runtime: RuntimeConfig) -> Team:
    """Join the others, which torchrun or `--hosts` names; ImplementationError where that fails."""
    where, rank, local = f"tcp://{parallel.hosts.partition(',')[0]}", parallel.rank, parallel.local
    if distributed.is_torchelastic_launched():
        where, rank, local = "env://", int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    size = parallel.workers
    gpu = runtime.device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(runtime.device.partition(":")[2] or local))
    try:
        distributed.init_process_group("nccl" if gpu else "gloo", init_method=where, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise ImplementationError(
            f"Worker {rank} cannot join the {size} workers at {where}: {str(error).splitlines()[0]}. All are to be "
            "started within half an hour, with the same --hosts and each its own --rank."
        ) from None
    return Team(rank, size, local)
