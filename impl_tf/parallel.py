"""Workers that share each batch: the replicas of a tf.distribute strategy, on devices of one process (MirroredStrategy)
or a process each (MultiWorkerMirroredStrategy). Every replica is given the whole batch and computes its rows; what is
left to tell each other is one sum of one vector a step, in which each has put its rows of the state beside zeros."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from impl_tf.arrays import Array
from shared.config import ParallelConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError


@dataclass(frozen=True)
class Team:
    """The replicas; a single worker without a strategy. A value, so that models of equal teams share programs."""

    strategy: Any = None
    rank: int = 0
    """Of this process."""

    @property
    def alone(self) -> bool:
        """Whether there is nobody to share with."""
        return self.strategy is None

    def first(self, content: bytes) -> bytes:
        """As the contract says."""
        if self.alone or not self._processes:
            return content
        length = int(self._sum(np.array([len(content) * (self.rank == 0)])).item())
        numbers = np.frombuffer(content if self.rank == 0 else bytes(length), np.uint8)
        return self._sum(numbers).astype(np.uint8).tobytes() if length else b""  # of nothing, TensorFlow 2.21 crashes

    def close(self) -> None:
        """As the contract says; TensorFlow ends what it has begun when the process ends."""
        self.first(b"-")

    def share(
        self, derive: Callable[..., Any], parameters: Any, state: Any, batch: Batch, dropout: Any, many_to_one: bool
    ) -> Any:
        """`derive` is impl_tf.model._gradients: its results for the whole batch."""
        predicting = tf.reduce_any(batch.mask, axis=1) if many_to_one else batch.mask
        arguments = parameters, state, batch, dropout, tf.math.count_nonzero(predicting, dtype=tf.int32)

        def on_worker(parameters: Any, state: Any, batch: Batch, dropout: Any, count: Array) -> Array:
            worker = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
            mine = dropout and dropout._replace(worker=worker)
            state, batch = self._rows(state, worker), self._rows(batch, worker)
            loss, (gradients, d_state), after = derive(parameters, state, batch, None, mine, count)
            parts = loss, (gradients, self._beside_zeros(d_state, worker)), self._beside_zeros(after, worker)
            return tf.concat([tf.reshape(each, [-1]) for each in tf.nest.flatten(parts)], 0)

        results = tf.zeros(()), (parameters, state), state  # of such shapes
        vectors = self.strategy.run(on_worker, args=arguments)
        return unpack(self.strategy.reduce("SUM", vectors, axis=None), results)

    @property
    def _workers(self) -> int:
        return int(self.strategy.num_replicas_in_sync)

    @property
    def _processes(self) -> bool:
        """Whether the replicas are processes."""
        return isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def _rows(self, arrays: Any, worker: Array) -> Any:
        """A worker's rows of [B, ...]."""
        return tf.nest.map_structure(lambda x: tf.reshape(x, (self._workers, -1, *x.shape[1:]))[worker], arrays)

    def _beside_zeros(self, rows: Any, worker: Array) -> Any:
        """A worker's rows as [B, ...], zero in the others'."""
        place = worker[None, None]
        return tf.nest.map_structure(lambda x: tf.scatter_nd(place, x[None], (self._workers, *x.shape)), rows)

    def _sum(self, vector: np.ndarray) -> np.ndarray:
        """Over the processes, of int32."""
        return np.asarray(added(self.strategy)(tf.constant(vector, tf.int32)))


@cache
def added(strategy: Any) -> Callable[[Array], Array]:
    """The sum of a vector over all processes, as a program for every length."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)
    def program(vector: Array) -> Array:
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(vector,)), axis=None)

    return program  # type: ignore[no-any-return]


def unpack(vector: Array, like: Any) -> Any:
    """Arrays of the shapes of `like` that lie one behind the other."""
    arrays = tf.nest.flatten(like)
    parts = tf.split(vector, [prod(each.shape) for each in arrays])
    shaped = [tf.reshape(part, each.shape) for part, each in zip(parts, arrays, strict=True)]
    return tf.nest.pack_sequence_as(like, shaped)


def open_team(parallel: ParallelConfig, runtime: RuntimeConfig) -> Team:
    """So many devices: of the processes that `--hosts` names, one each, or of this one, where the processor is divided
    into as many as it takes. ImplementationError where there are not so many."""
    workers, addresses = parallel.workers, parallel.addresses
    kind, _, index = runtime.device.partition(":")
    gpus = [] if kind == "cpu" else tf.config.list_physical_devices("GPU")
    if addresses:
        if gpus:
            tf.config.set_visible_devices(gpus[int(index or parallel.local)], "GPU")
        cluster = tf.train.ClusterSpec({"worker": addresses})
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            cluster, task_type="worker", task_id=parallel.rank, rpc_layer="grpc"
        )
        return Team(tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver), parallel.rank)
    if gpus and len(gpus) < workers:
        raise ImplementationError(
            f"TensorFlow {tf.__version__} sees {len(gpus)} GPUs, too few for {workers} workers. Lower --data-parallel, "
            "or use --device cpu."
        )
    if not gpus:
        divide_processor(workers)
    return Team(tf.distribute.MirroredStrategy([f"{'GPU' if gpus else 'CPU'}:{k}" for k in range(workers)]))


def divide_processor(workers: int) -> None:
    """Into so many devices, at work at the same time."""
    try:
        processor = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * workers
        tf.config.set_logical_device_configuration(processor, parts)
        tf.config.threading.set_inter_op_parallelism_threads(workers)
    except RuntimeError as error:
        raise ImplementationError(f"TensorFlow cannot have {workers} workers: {error}") from None
