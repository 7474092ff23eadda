"""Settings that are read once, when NumPy or a framework loads: so this runs first, with the standard library only.

Every implementation has its own way to limit threads (JAX heeds NPROC, not OMP). Passive waiting, because OpenMP's
spinning threads starve a machine that is shared.
"""

import os
import platform
from pathlib import Path

from shared.config import RuntimeConfig


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_force() -> dict[str, str]:
    """The settings that this process runs with, whoever made them."""
    return {name: os.environ.get(name, "") for name in settings(RuntimeConfig())}


def prepare(runtime: RuntimeConfig, workers: int = 1) -> None:
    """Set the environment for this process and its children; what the user has set stays."""
    for name, value in (settings(runtime, workers) | quiet(runtime)).items():
        os.environ.setdefault(name, value)


def settings(runtime: RuntimeConfig, workers: int = 1) -> dict[str, str]:
    """Threads and waiting policy; empty with --no-tuning."""
    if not runtime.tuning:
        return {}
    count = str(runtime.threads or max(1, available_cores() // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")
    # A step's product is too small to share: a second OpenBLAS thread, which spins while it waits, gains nothing on an
    # idle machine and costs a factor of ten on a busy one.
    blas = {"OPENBLAS_NUM_THREADS": str(runtime.threads or 1)}
    return {**dict.fromkeys(names, count), **blas, "TF_NUM_INTEROP_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def quiet(runtime: RuntimeConfig) -> dict[str, str]:
    """Framework chatter off; one GPU's memory shared, not seized; no GPU looked for where none was asked for."""
    gpu = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"} if runtime.device == "cpu" else {}
    # What is called TF_USE_LEGACY_KERAS keeps TensorFlow from loading Keras at all, a third of its import.
    tensorflow = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "TF_USE_LEGACY_KERAS": "1"}
    # cuBLAS and XLA add up in any order on a GPU unless told otherwise before they load.
    same_bits = {"CUBLAS_WORKSPACE_CONFIG": ":4096:2", "XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    return tensorflow | gpu | hidden | same_bits
