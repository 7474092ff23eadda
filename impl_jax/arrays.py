"""JAX arrays: device, precision, and the way to and from NumPy."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from shared.config import RuntimeConfig
from shared.errors import ImplementationError

# Before the first array: float64 would silently become float32.
jax.config.update("jax_enable_x64", True)

Array: TypeAlias = jax.Array


class Device(NamedTuple):
    """Where arrays live, and the precision of the model."""

    name: str
    dtype: Any  # of parameters, optimizer, loss, and the states outside
    layers: Any  # of everything from the embedding to the logits
    precision: str  # of products of float32: "highest", or "tensorfloat32"
    handle: jax.Device


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none, or no such precision."""
    dtype = jnp.dtype("float64" if runtime.dtype == "float64" else "float32")
    layers = jnp.dtype("bfloat16") if runtime.dtype == "bfloat16" else dtype
    precision = "tensorfloat32" if runtime.dtype == "tf32" else "highest"
    kind, _, index = runtime.device.partition(":")
    gpus = [] if kind == "cpu" else [device for device in jax.devices() if device.platform == "gpu"]
    if kind == "cpu" or (kind == "auto" and not gpus):
        if runtime.dtype == "tf32":
            raise ImplementationError(
                "TF32 exists on NVIDIA GPUs from Ampere on, but JAX runs on the processor. Use --dtype float32."
            )
        return Device("cpu", dtype, layers, precision, jax.devices("cpu")[0])
    if int(index or 0) >= len(gpus):
        raise ImplementationError(
            f"JAX {jax.__version__} sees {len(gpus)} CUDA devices, --device {runtime.device} asks for one that is not "
            'there. Run `pip install "jax[cuda12]"` where there is an NVIDIA driver, or use --device cpu.'
        )
    handle = gpus[int(index or 0)]
    name = f"cuda:{index or 0} ({handle.device_kind})"
    if runtime.dtype in ("tf32", "bfloat16") and float(getattr(handle, "compute_capability", 0)) < 8:
        raise ImplementationError(
            f"--dtype {runtime.dtype} needs an NVIDIA GPU from Ampere on, this is {name}. Use --dtype float32."
        )
    return Device(name, dtype, layers, precision, handle)


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    return f"lax.scan, XLA {device.handle.platform.upper()} (jax {jax.__version__})"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device; real numbers take the model's dtype."""
    return jnp.array(to_dtype(values, device), device=device.handle)


def to_dtype(values: np.ndarray, device: Device) -> np.ndarray:
    """Real numbers in the model's dtype."""
    return values.astype(device.dtype, copy=False) if values.dtype.kind == "f" else values


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous; bfloat16, which NumPy lacks, as float32."""
    return np.array(array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array)
