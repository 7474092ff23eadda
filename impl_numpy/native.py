"""The framework's own layer: NumPy has none."""

from impl_numpy.arrays import Device
from shared.config import ModelConfig
from shared.errors import ImplementationError


def require_native(model: ModelConfig, device: Device) -> None:
    """ImplementationError with the reason where the framework has no such layer."""
    raise ImplementationError(
        "NumPy has no recurrent layers of its own, so --engine native cannot run; use --engine scratch, which is the "
        "cell written out, or --impl torch, jax or tf."
    )
