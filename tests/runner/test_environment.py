"""Settings before anything is imported: guarded by what the machine has, switchable, inherited; the user's stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner import environment
from shared.config import RuntimeConfig

ZEN = environment.AVX512 | {"AuthenticAMD"}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (ZEN, ""),
        (ZEN - {"avx512vl"}, "the processor has no AVX-512"),
        (environment.AVX512 | {"GenuineIntel"}, "OpenBLAS knows the processor"),
        (frozenset(), "the system does not tell what the processor can do"),
    ],
)
def test_openblas_is_told_its_kernels_only_where_it_would_not_know(monkeypatch, flags, reason):
    monkeypatch.setattr(environment, "processor_flags", lambda: flags)
    assert environment.why_no_kernels() == reason
    assert ("OPENBLAS_CORETYPE" in environment.settings(RuntimeConfig())) == (not reason)
    assert any("OPENBLAS_CORETYPE" in left_out for left_out in environment.not_tuned()) == bool(reason)


def test_flags_are_read_of_the_first_processor(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f\nbugs\t: x\n\nflags\t: other\n"
    )
    monkeypatch.setattr(environment, "Path", lambda name: tmp_path / Path(name).name)
    assert environment.processor_flags() == {"AuthenticAMD", "fpu", "avx512f"}
    (tmp_path / "cpuinfo").unlink()
    assert environment.processor_flags() == frozenset()


def test_the_allocator_is_left_alone_where_it_is_not_glibcs(monkeypatch):
    monkeypatch.setattr(environment, "has_glibc", lambda: False)
    assert not set(environment.ALLOCATOR) & set(environment.settings(RuntimeConfig()))
    assert "MALLOC_MMAP_THRESHOLD_ (memory does not come from glibc)" in environment.not_tuned()
    monkeypatch.setattr(environment.ctypes, "CDLL", None)
    environment.tune_allocator()


def test_no_tuning_sets_nothing():
    assert environment.settings(RuntimeConfig(tuning=False)) == {}


def run(code, **variables):
    names = environment.settings(RuntimeConfig())
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = f"from runner import environment; from shared.config import RuntimeConfig\n{code}"
    command = [sys.executable, "-c", code]
    options = {"env": clean | variables, "cwd": Path(__file__).parents[2], "text": True, "check": True}
    return subprocess.run(command, capture_output=True, **options).stdout.strip()


def test_what_the_user_has_set_stays():
    code = "environment.prepare(RuntimeConfig()); print(environment.in_force()['OMP_NUM_THREADS'])"
    assert run(code, OMP_NUM_THREADS="7") == "7"


@pytest.mark.skipif(not environment.has_glibc(), reason="memory does not come from glibc")
@pytest.mark.parametrize(("tuning", "kept"), [(True, True), (False, False)])
def test_a_large_array_stays_with_the_process_when_freed_and_does_not_pile_up(tuning, kept):
    """Pages of 64 MB, counted by the system: after it is freed, and after it was made ten times."""
    code = f"""
environment.prepare(RuntimeConfig(tuning={tuning}, device="cpu"))
import numpy as np
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before = resident()
for _ in range(10):
    np.ones(2**23)
print(resident() - before)
"""
    grown = float(run(code))
    assert grown < 100
    assert (grown > 60) == kept


@pytest.mark.skipif(bool(environment.why_no_kernels()), reason=environment.why_no_kernels() or "none")
def test_openblas_reports_the_kernels_it_was_told():
    code = (
        "environment.prepare(RuntimeConfig(device='cpu')); import numpy; from threadpoolctl import threadpool_info;"
        "print([i['architecture'] for i in threadpool_info() if i['internal_api'] == 'openblas'])"
    )
    assert run(code) in ("['SkylakeX']", "[]")
