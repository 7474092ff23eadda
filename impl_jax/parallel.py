"""Workers that share each batch: the devices of a mesh, which jax.distributed extends over processes. Parameters are on
all of them, rows of a batch on one each. What they tell each other stands in the programs: a psum of the gradients."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from impl_jax.arrays import Array
from shared.config import ParallelConfig, RuntimeConfig
from shared.errors import ImplementationError

AXIS = "workers"
ALL, ROWS, STACKED = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
"""The whole on every worker; rows [B, ...] shared out; rows of a stack [K, B, ...]."""


class Team:
    """The mesh of all workers, None for a single one."""

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.mesh = mesh

    def first(self, content: bytes) -> bytes:
        """As the contract says."""
        if jax.process_count() == 1:
            return content
        length = int(multihost_utils.broadcast_one_to_all(np.array(len(content))))
        padded = np.frombuffer(content.ljust(length)[:length], np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()

    def close(self) -> None:
        """As the contract says."""
        if jax.process_count() > 1:
            self.first(b"-")
            jax.distributed.shutdown()

    def put(self, values: np.ndarray, spec: PartitionSpec) -> Array:
        """On the workers, as said; nobody asks whether other processes have the same."""
        assert self.mesh is not None  # noqa: S101 - a single worker puts arrays on its device
        return jax.make_array_from_callback(values.shape, NamedSharding(self.mesh, spec), lambda place: values[place])


def over_workers(mesh: Mesh | None, function: Callable[..., Any], takes: Any, gives: Any) -> Callable[..., Any]:
    """The function on every worker, of its rows; `takes` and `gives` say for arguments and results whether they are
    whole or shared out. The function itself where there is no mesh."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)


def total(mesh: Mesh | None, values: Any) -> Any:
    """The sum over all workers, of everything in one message where the backend can."""
    return values if mesh is None else jax.lax.psum(values, AXIS)


def worker(mesh: Mesh | None) -> Any:
    """The number of the worker that computes this."""
    return 0 if mesh is None else jax.lax.axis_index(AXIS)


def whole(mesh: Mesh | None, values: Any) -> Any:
    """Everything on every worker, so that any process can read it."""
    return values if mesh is None else jax.lax.with_sharding_constraint(values, NamedSharding(mesh, ALL))


def open_team(parallel: ParallelConfig, runtime: RuntimeConfig) -> Team:
    """So many devices: of the processes that `--hosts` names, one each, or of this one, where the processor is divided
    into as many as it takes. ImplementationError where there are not so many."""
    workers, addresses = parallel.workers, parallel.addresses
    kind, _, index = runtime.device.partition(":")
    try:
        if addresses:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            gpu = int(index or parallel.local)
            jax.distributed.initialize(addresses[0], workers, parallel.rank, local_device_ids=[gpu])
        else:
            jax.config.update("jax_num_cpu_devices", workers)
    except RuntimeError as error:
        raise ImplementationError(f"JAX cannot have {workers} workers: {str(error).splitlines()[0]}") from None
    gpus = [] if kind == "cpu" else [device for device in jax.devices() if device.platform == "gpu"]
    if not gpus and kind == "cuda":
        raise ImplementationError("JAX sees no GPU. Use --device cpu, or auto.")
    devices = gpus or jax.devices("cpu")
    mine = [[device for device in devices if device.process_index == k] for k in range(jax.process_count())]
    chosen = [each[0] for each in mine if each] if addresses else devices[:workers]
    if len(chosen) < workers:
        raise ImplementationError(
            f"JAX {jax.__version__} sees {len(devices)} devices, too few for {workers} workers. Lower --data-parallel, "
            "or use --device cpu."
        )
    return Team(Mesh(np.array(chosen), (AXIS,)))
