"""TensorFlow tensors: device, precision, the way to and from NumPy, and how functions of them are compiled."""

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from shared.config import RuntimeConfig
from shared.errors import ImplementationError

# A GPU would add up in any order.
tf.config.experimental.enable_op_determinism()
# A model that meets many shapes is traced for each; TensorFlow warns about that, which is meant here.
tf.get_logger().setLevel("ERROR")

Array: TypeAlias = Any
"""tf.Tensor, which TensorFlow declares in no way that type checkers read."""


class Device(NamedTuple):
    """Where tensors live, and the precision of the model."""

    name: str
    dtype: tf.DType  # of parameters, optimizer, loss, and the states outside
    layers: tf.DType  # of everything from the embedding to the logits
    tf32: bool  # whether a GPU may round the factors of float32 products to TF32
    handle: str


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none, or no such precision."""
    dtype = tf.float64 if runtime.dtype == "float64" else tf.float32
    layers = tf.bfloat16 if runtime.dtype == "bfloat16" else dtype
    kind, _, index = runtime.device.partition(":")
    gpus = [] if kind == "cpu" else tf.config.list_physical_devices("GPU")
    if kind == "cpu" or (kind == "auto" and not gpus):
        if runtime.dtype == "tf32":
            raise ImplementationError(
                "TF32 exists on NVIDIA GPUs from Ampere on, but TensorFlow runs on the processor. Use --dtype float32."
            )
        return Device("cpu", dtype, layers, False, "/CPU:0")
    if int(index or 0) >= len(gpus):
        raise ImplementationError(
            f"TensorFlow {tf.__version__} sees {len(gpus)} CUDA devices, --device {runtime.device} asks for one that "
            'is not there. Install `pip install "tensorflow[and-cuda]"` and a driver, or use --device cpu.'
        )
    details = tf.config.experimental.get_device_details(gpus[int(index or 0)])
    name = f"cuda:{index or 0} ({details['device_name']})"
    if runtime.dtype in ("tf32", "bfloat16") and details.get("compute_capability", (0, 0)) < (8, 0):
        raise ImplementationError(
            f"--dtype {runtime.dtype} needs an NVIDIA GPU from Ampere on, this is {name}. Use --dtype float32."
        )
    return Device(name, dtype, layers, runtime.dtype == "tf32", f"/GPU:{index or 0}")


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    return f"tf.while_loop, XLA {device.handle[1:4]} (tensorflow {tf.__version__})"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device; real numbers take the model's dtype."""
    with tf.device(device.handle):
        return tf.constant(values, dtype=device.dtype if values.dtype.kind == "f" else None)


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous; bfloat16, which NumPy lacks, as float32."""
    return np.array(tf.cast(array, tf.float32) if array.dtype == tf.bfloat16 else array)


def cast(arrays: Any, dtype: tf.DType) -> Any:
    """Every array of a structure in another precision."""
    return tf.nest.map_structure(lambda array: tf.cast(array, dtype), arrays)


def swap_axes(steps: Array) -> Array:
    """[T, B, ...] to [B, T, ...], and back."""
    return tf.transpose(steps, (1, 0, 2))


@cache
def compiled(function: Callable[..., Any], setup: Hashable, xla: bool) -> Callable[..., Any]:
    """A function of tensors whose first argument, the setup, is fixed. Models of equal setup share it."""
    return tf.function(partial(function, setup), jit_compile=xla, autograph=False)


def scan(step: Callable[..., Any], carry: Any, stacked: Any, *fixed: Any) -> tuple[Any, Array]:
    """step(carry, *one of each stack [K, ...], *fixed) -> carry, report; the last carry, the reports float64 [K, R]. A
    stack may be None."""
    count = tf.shape(tf.nest.flatten(stacked)[0])[0]

    def advance(k: Array, carry: Any, reports: tf.TensorArray) -> tuple[Array, Any, tf.TensorArray]:
        one = tf.nest.map_structure(lambda stack: None if stack is None else stack[k], stacked)
        carry, report = step(carry, *one, *fixed)
        return k + 1, carry, reports.write(k, tf.stack(cast(report, tf.float64)))

    start = tf.constant(0), carry, tf.TensorArray(tf.float64, count)
    _, carry, reports = tf.while_loop(lambda k, *_: k < count, advance, start)
    return carry, reports.stack()
