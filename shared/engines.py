"""Which engine runs a model: `RuntimeConfig.engine`, decided once for all implementations."""

from shared.config import Engine, ModelConfig, RuntimeConfig
from shared.errors import ImplementationError
from shared.parameters import cell_variant

FUSED = ("lstm", "gru-after")
"""Cells whose way back is written by hand in every implementation's fused.py."""


def engine_of(runtime: RuntimeConfig, model: ModelConfig) -> Engine:
    """The engine asked for, or for auto the fastest that every implementation has for this cell.

    ImplementationError: fused, where no way back is written. What native needs, each implementation says itself.
    """
    variant = cell_variant(model)
    if runtime.engine == "auto":
        return "fused" if variant in FUSED else "scratch"
    if runtime.engine == "fused" and variant not in FUSED:
        raise ImplementationError(
            f"--engine fused is written for --cell lstm, and for --cell gru with --gru-reset after, not for {variant}: "
            "use --engine auto, which is scratch there."
        )
    return runtime.engine
