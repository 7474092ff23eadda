"""`--data-parallel N` and `--hosts`: who the workers are, and how they stay together. Every process runs the same
training on the same batches; the first alone reads the clock and signals and writes files, and tells the others."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from runner.cli import Train
from runner.console import console
from runner.environment import launched_by_torchrun
from runner.experiment import prepare
from runner.registry import open_team
from runner.workers import Worker, WorkerError
from shared.config import ParallelConfig
from shared.contract import Team
from shared.errors import ConfigError, WorkerLostError


class Follower:
    """A process beside the first: it trains with it, says nothing, and writes nothing."""

    def __init__(self, options: Train) -> None:
        console.quiet = True
        self._options, self._experiment = options, prepare(options.corpus, options.training, options.model)

    def train(self) -> int:
        """The whole run."""
        from runner.train import train

        return train(self._options, self._experiment)


def rank(options: Train) -> int:
    """Which process this is; 0 leads, and writes the files."""
    return int(os.environ["RANK"]) if launched_by_torchrun() else options.parallel.rank


@contextmanager
def team_of(options: Train) -> Iterator[Team | None]:
    """The workers, started where that is left to us; None where there is but one. What goes wrong in a worker that was
    started here is what is said, and not that it is gone."""
    workers = options.parallel.workers
    if launched_by_torchrun() and int(os.environ["WORLD_SIZE"]) != workers:
        raise ConfigError(f"torchrun has started {os.environ['WORLD_SIZE']} workers: say so with --data-parallel.")
    if workers == 1:
        yield None
        return
    with ExitStack() as stack:
        parallel = options.parallel
        followers: list[Any] = []
        if options.processes > 1 and not options.parallel.hosts and not launched_by_torchrun():
            count = options.processes
            parallel = ParallelConfig(hosts=",".join(f"127.0.0.1:{port}" for port in free_ports(count)))
            for k in range(1, count):
                theirs = replace(options, parallel=replace(parallel, rank=k))
                followers.append(stack.enter_context(Worker(f"worker {k}", Follower, theirs)))
            for follower in followers:
                follower.start("train")
        try:
            yield open_team(options.impl, parallel, options.runtime)
        except WorkerLostError:
            answering: list[Any] = wait(followers, timeout=5)
            for follower in answering:
                try:
                    follower.result(timeout=0)
                except WorkerError as error:
                    raise WorkerLostError(f"{error}. What was saved is kept: go on with --resume.") from None
            raise


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now; only the first is, in the end, listened at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
