"""NumPy arrays, or CuPy's on a GPU. CuPy answers NumPy's functions for its own arrays (NEP 13, NEP 18), so the
mathematics says `np` for both; only what makes a new array out of nothing asks the device's module."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from threadpoolctl import threadpool_info

from shared.config import RuntimeConfig
from shared.errors import ImplementationError

Array: TypeAlias = Any
"""np.ndarray, or cupy.ndarray."""
CACHED = 2**16
"""Numbers of an array that are taken at a time where each is read and written more than once: a core's cache holds
several such pieces."""


class Device(NamedTuple):
    """Where arrays live, and the precision of the model."""

    name: str
    dtype: Any
    module: ModuleType


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none, or no such precision."""
    if runtime.dtype not in ("float32", "float64"):
        raise ImplementationError(
            f"NumPy computes in float32 and float64, not in {runtime.dtype}, for which it has no products. "
            "Use --dtype float32, or --impl torch, jax or tf."
        )
    kind, _, index = runtime.device.partition(":")
    if kind != "cpu":
        try:
            import cupy

            cupy.cuda.Device(int(index or 0)).use()
            name = cupy.cuda.runtime.getDeviceProperties(int(index or 0))["name"].decode()
            return Device(f"cuda:{index or 0} ({name})", np.dtype(runtime.dtype), cupy)
        except Exception as error:
            if kind == "cuda":
                raise ImplementationError(
                    f"NumPy runs on {runtime.device} through CuPy, which cannot: {error}. "
                    "Install the extra `gpu`, or use --device cpu."
                ) from None
    return Device("cpu", np.dtype(runtime.dtype), np)


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    if device.module is not np:
        return f"CuPy {device.module.__version__}, cuBLAS"
    blas = next((info for info in threadpool_info() if info["user_api"] == "blas"), None)
    return f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}".strip() if blas else "BLAS"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device, contiguous; real numbers take the model's dtype."""
    dtype = device.dtype if values.dtype.kind == "f" else values.dtype
    return device.module.array(values, dtype=dtype, order="C")


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous."""
    return np.array(array) if isinstance(array, np.ndarray) else array.get()


def pieces(array: Array) -> Iterator[slice]:
    """Slices of the first axis that the cache holds; on a GPU the whole."""
    width = array.size // max(1, len(array))
    step = max(1, CACHED // max(1, width)) if isinstance(array, np.ndarray) else max(1, len(array))
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow, and exact in the tails; NumPy has none."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def product(left: Array, right: Array) -> Array:
    """Outer products summed over time and batch: [T, B, M], [T, B, N] -> [M, N]."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


def add_rows(table: Array, rows: Array, values: Array) -> None:
    """table[rows[n]] += values[n] with repeated rows added up, which `table[rows] += values` would drop."""
    if isinstance(table, np.ndarray):
        order = np.argsort(rows, kind="stable")
        present, starts = np.unique(rows[order], return_index=True)
        table[present] += np.add.reduceat(values[order], starts, axis=0)  # ten times as fast as np.add.at
    else:
        import cupyx

        cupyx.scatter_add(table, rows, values)
