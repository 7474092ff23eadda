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
    dtype: torch.dtype
    handle: torch.device


def open_device(runtime: RuntimeConfig) -> Device:
    """The device that the user asked for; ImplementationError where there is none."""
    dtype = {"float32": torch.float32, "float64": torch.float64}[runtime.dtype]
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    kind, _, index = runtime.device.partition(":")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return Device("cpu", dtype, torch.device("cpu"))
    if int(index or 0) >= torch.cuda.device_count():
        raise ImplementationError(
            f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, --device {runtime.device} "
            "asks for one that is not there. Install a CUDA build of torch and a driver, or use --device cpu."
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    handle = torch.device("cuda", int(index or 0))
    return Device(f"{handle} ({torch.cuda.get_device_name(handle)})", dtype, handle)


def kernel(device: Device) -> str:
    """What multiplies matrices here."""
    library = "cuBLAS" if device.handle.type == "cuda" else "MKL" if torch.backends.mkl.is_available() else "BLAS"
    return f"eager ATen, {library} (torch {torch.__version__})"


def to_array(values: np.ndarray, device: Device) -> Array:
    """Copy to the device; real numbers take the model's dtype."""
    dtype = device.dtype if values.dtype.kind == "f" else None
    return torch.tensor(values, dtype=dtype, device=device.handle)


def to_numpy(array: Array) -> np.ndarray:
    """Copy to the host, contiguous."""
    return array.detach().cpu().contiguous().numpy().copy()
