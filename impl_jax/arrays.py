"""JAX arrays: device, precision, and the way to and from NumPy."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from shared.config import RuntimeConfig
from shared.errors import ImplementationError

# Both before the first array: float64 would silently become float32, and float32 products TF32 on a GPU.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")

Array: TypeAlias = jax.Array


class Device(NamedTuple):
    """Where arrays live, and the precision of the model."""

    name: str
    dtype: Any
    handle: jax.Device


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none."""
    dtype = jnp.dtype(runtime.dtype)
    kind, _, index = runtime.device.partition(":")
    gpus = [] if kind == "cpu" else [device for device in jax.devices() if device.platform == "gpu"]
    if kind == "cpu" or (kind == "auto" and not gpus):
        return Device("cpu", dtype, jax.devices("cpu")[0])
    if int(index or 0) >= len(gpus):
        raise ImplementationError(
            f"JAX {jax.__version__} sees {len(gpus)} CUDA devices, --device {runtime.device} asks for one that is not "
            'there. Run `pip install "jax[cuda12]"` where there is an NVIDIA driver, or use --device cpu.'
        )
    handle = gpus[int(index or 0)]
    return Device(f"cuda:{index or 0} ({handle.device_kind})", dtype, handle)


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    return f"lax.scan, XLA {device.handle.platform.upper()} (jax {jax.__version__})"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device; real numbers take the model's dtype."""
    dtype = device.dtype if values.dtype.kind == "f" else values.dtype
    return jnp.array(values, dtype=dtype, device=device.handle)


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous."""
    return np.array(array)
