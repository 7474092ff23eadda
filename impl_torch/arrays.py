"""PyTorch tensors: device, precision, and the way to and from NumPy."""

from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from shared.config import RuntimeConfig
from shared.errors import ImplementationError

Array: TypeAlias = torch.Tensor


class Device(NamedTuple):
    """Where tensors live, and the precision of the model."""

    name: str
    dtype: torch.dtype  # of parameters, optimizer, loss, and the states outside
    layers: torch.dtype  # of everything from the embedding to the logits
    handle: torch.device


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none, or no such precision.

    Whether products may be rounded to TF32 is a setting of the process: the model made last decides.
    """
    dtype = torch.float64 if runtime.dtype == "float64" else torch.float32
    layers = torch.bfloat16 if runtime.dtype == "bfloat16" else dtype
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    kind, _, index = runtime.device.partition(":")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        if runtime.dtype == "tf32":
            raise ImplementationError(
                "TF32 exists on NVIDIA GPUs from Ampere on, but PyTorch runs on the processor. Use --dtype float32."
            )
        return Device("cpu", dtype, layers, torch.device("cpu"))
    if int(index or 0) >= torch.cuda.device_count():
        raise ImplementationError(
            f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, --device {runtime.device} "
            "asks for one that is not there. Install a CUDA build of torch and a driver, or use --device cpu."
        )
    handle = torch.device("cuda", int(index or 0))
    name = f"{handle} ({torch.cuda.get_device_name(handle)})"
    if runtime.dtype in ("tf32", "bfloat16") and torch.cuda.get_device_capability(handle) < (8, 0):
        raise ImplementationError(
            f"--dtype {runtime.dtype} needs an NVIDIA GPU from Ampere on, this is {name}. Use --dtype float32."
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = runtime.dtype == "tf32"
    return Device(name, dtype, layers, handle)


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    library = "MKL" if torch.backends.mkl.is_available() else "BLAS"
    if device.handle.type == "cuda":
        library = "cuBLAS"
    elif device.layers == torch.bfloat16 and torch.backends.mkldnn.is_available():
        library = "oneDNN"
    return f"eager ATen, {library} (torch {torch.__version__})"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device; real numbers take the model's dtype."""
    dtype = device.dtype if values.dtype.kind == "f" else None
    return torch.tensor(values, dtype=dtype, device=device.handle)


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous; bfloat16, which NumPy lacks, as float32."""
    array = array.float() if array.dtype == torch.bfloat16 else array
    return array.detach().cpu().contiguous().numpy().copy()
