"""TensorFlow tensors: device, precision, and the way to and from NumPy."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from shared.config import RuntimeConfig
from shared.errors import ImplementationError

# TensorFlow would round the factors of float32 products to TF32 on a GPU, and add up in any order there.
tf.config.experimental.enable_tensor_float_32_execution(False)
tf.config.experimental.enable_op_determinism()
# A model that meets many shapes is traced for each; TensorFlow warns about that, which is meant here.
tf.get_logger().setLevel("ERROR")

Array: TypeAlias = Any
"""tf.Tensor, which TensorFlow declares in no way that type checkers read."""


class Device(NamedTuple):
    """Where tensors live, and the precision of the model."""

    name: str
    dtype: tf.DType
    handle: str


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none."""
    dtype = tf.as_dtype(runtime.dtype)
    kind, _, index = runtime.device.partition(":")
    gpus = [] if kind == "cpu" else tf.config.list_physical_devices("GPU")
    if kind == "cpu" or (kind == "auto" and not gpus):
        return Device("cpu", dtype, "/CPU:0")
    if int(index or 0) >= len(gpus):
        raise ImplementationError(
            f"TensorFlow {tf.__version__} sees {len(gpus)} CUDA devices, --device {runtime.device} asks for one that "
            'is not there. Install `pip install "tensorflow[and-cuda]"` and a driver, or use --device cpu.'
        )
    details = tf.config.experimental.get_device_details(gpus[int(index or 0)])
    return Device(f"cuda:{index or 0} ({details['device_name']})", dtype, f"/GPU:{index or 0}")


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    return f"tf.while_loop, XLA {device.handle[1:4]} (tensorflow {tf.__version__})"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device; real numbers take the model's dtype."""
    with tf.device(device.handle):
        return tf.constant(values, dtype=device.dtype if values.dtype.kind == "f" else None)


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous."""
    return np.array(array)
