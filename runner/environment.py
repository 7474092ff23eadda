"""Settings that are read once, when NumPy or a framework loads: so this runs first, with the standard library only.

Every implementation has its own way to limit threads (JAX heeds NPROC, not OMP). Where several processes compute at
once, threads wait passively, because OpenMP's spinning ones starve each other; one alone is faster if they spin. All
settings are environment variables, so that worker processes inherit them, and what the user has set stays.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

from shared.config import RuntimeConfig

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")
"""Every framework's variable for the threads of an operation."""
TOLD = ("vendor_id", "flags")
AVX512 = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"))
"""What OpenBLAS' kernels for SkylakeX use."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
"""glibc's variables, and the same as parameters of `mallopt` (malloc.h)."""
KEPT = 2**30
"""Bytes: arrays up to this size stay with the process when they are freed. As it is, glibc gives every large one back
to the system, which hands it out again page by page, zeroed: a seventh to a third of a step in PyTorch. Memory stays at
its peak between steps and does not grow."""


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


def machine() -> dict[str, str | int]:
    """What stands in every result."""
    return {
        "processor": processor(),
        "cores": available_cores(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def processor_flags() -> frozenset[str]:
    """What the first processor can do, in Linux' words ("avx512f"), and its maker ("AuthenticAMD"); else nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return frozenset()
    return frozenset(" ".join(v for k, _, v in (x.partition(":") for x in lines) if k.strip() in TOLD).split())


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process and its fellows."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def in_force() -> dict[str, str]:
    """The settings that this process runs with, whoever made them."""
    return {name: os.environ.get(name, "") for name in settings(RuntimeConfig())}


def prepare(runtime: RuntimeConfig, workers: int = 1) -> None:
    """Set the environment for this process and its children; what the user has set stays."""
    for name, value in (settings(runtime, workers) | quiet(runtime)).items():
        os.environ.setdefault(name, value)
    if runtime.tuning:
        tune_allocator()


def tune_allocator() -> None:
    """Tell the allocator of this process, which has started, what its children read when they start."""
    for name, parameter in (ALLOCATOR if has_glibc() else {}).items():
        value = os.environ.get(name, "")
        if value.isdecimal():
            ctypes.CDLL(None).mallopt(parameter, int(value))


def has_glibc() -> bool:
    """Whether memory comes from GNU's C library, which can be told to keep it."""
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def settings(runtime: RuntimeConfig, workers: int = 1) -> dict[str, str]:
    """Threads, waiting policy, and what `tuned` adds; empty with --no-tuning."""
    if not runtime.tuning:
        return {}
    # PyTorch heeds MKL's number before OpenMP's, so who limits OpenMP means all of them.
    limit = os.environ.get("OMP_NUM_THREADS", "")
    count = str(runtime.threads or (limit.isdecimal() and int(limit)) or max(1, available_cores() // workers))
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"} if workers > 1 else {}
    return {**dict.fromkeys((*THREADS, "TF_NUM_INTEROP_THREADS"), count), **waiting, **tuned()}


def tuned() -> dict[str, str]:
    """Settings for the processor's and the system's own kind; `not_tuned` says of the others why not."""
    kernels = {} if why_no_kernels() else {"OPENBLAS_CORETYPE": "SkylakeX"}
    return kernels | (dict.fromkeys(ALLOCATOR, str(KEPT)) if has_glibc() else {})


def not_tuned() -> list[str]:
    """What is left out on this machine, and why."""
    kernels, allocator = why_no_kernels(), "" if has_glibc() else "memory does not come from glibc"
    reasons = {"OPENBLAS_CORETYPE": kernels, **dict.fromkeys(ALLOCATOR, allocator)}
    return [f"{name} ({reason})" for name, reason in reasons.items() if reason]


def why_no_kernels() -> str:
    """Why OpenBLAS is left to choose its kernels; "" where it is told. It knows every processor of Intel, but takes an
    AMD that is newer than itself for a Haswell, whose vectors are half as wide."""
    flags = processor_flags()
    if not flags:
        return "the system does not tell what the processor can do"
    if AVX512 - flags:
        return "the processor has no AVX-512"
    return "" if "AuthenticAMD" in flags else "OpenBLAS knows the processor"


def quiet(runtime: RuntimeConfig) -> dict[str, str]:
    """Framework chatter off; one GPU's memory shared, not seized; no GPU looked for where none was asked for."""
    gpu = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"} if runtime.device == "cpu" else {}
    # What is called TF_USE_LEGACY_KERAS keeps TensorFlow from loading Keras at all, a third of its import.
    tensorflow = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "TF_USE_LEGACY_KERAS": "1"}
    # cuBLAS and XLA add up in any order on a GPU unless told otherwise before they load.
    same_bits = {"CUBLAS_WORKSPACE_CONFIG": ":4096:2", "XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    return tensorflow | gpu | hidden | same_bits
