"""300 of the files of hostile_checkpoints.py, and what it rests on: the memory that a large file takes, and that the
judge can find somebody guilty. By hand: python tests/faults/hostile_checkpoints.py --count 2000"""

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_checkpoints import COMMANDS, KINDS, Original, Suite, assemble, hashed, judged, summary

from shared.checkpoint import LARGEST_HEADER, Checkpoint, load_checkpoint, save_checkpoint
from shared.errors import CheckpointError
from shared.vocabulary import Vocabulary

COUNT, SEED = 300, 7


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(tmp_path_factory.mktemp("hostile"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by what Linux counts")
def test_no_file_crashes_hangs_swells_or_is_believed(suite: Suite) -> None:
    rows = list(suite.use(SEED, range(COUNT), workers=2))
    found = summary(rows)
    assert sorted(row["number"] for row in rows) == list(range(COUNT))
    assert found["failures"] == []
    assert len(found["kinds"]) == len(KINDS)
    assert sum(kind["same"] for kind in found["kinds"].values()) < COUNT / 20


def test_every_mutation_changes_the_file(suite: Suite) -> None:
    for number, kind in enumerate(KINDS):
        found, name, content = suite.file(SEED, number)
        assert found == kind
        assert content != suite.originals[name].content


def test_hashing_anew_is_right(suite: Suite, tmp_path: Path) -> None:
    """Or else the hash would refuse what the layers behind it should."""
    for original in suite.originals.values():
        (tmp_path / "c").write_bytes(hashed(original.tensors, original.metadata))
        assert load_checkpoint(tmp_path / "c").step == original.entry("step")


@pytest.mark.parametrize(
    ("kind", "outcomes", "verdict"),
    [
        ("truncated", {"load": "accepted"}, "believed by load"),
        ("truncated", {"load": "same", "resume": "accepted"}, "same"),
        (
            "truncated",
            {"load": "refused: cut short", "convert": "failed: KeyError: 'x'"},
            "convert failed: KeyError: 'x'",
        ),
        ("parameter missing, hashed anew", {"load": "accepted"}, "refused"),
        ("parameter missing, hashed anew", {"load": "accepted", "sample": "accepted"}, "believed by sample"),
        ("step beyond the progress, hashed anew", dict.fromkeys(COMMANDS, "accepted"), "believed by resume"),
    ],
)
def test_the_judge(kind: str, outcomes: dict[str, str], verdict: str) -> None:
    row: dict[str, Any] = {"kind": kind, "seconds": 0.1, **dict.fromkeys(COMMANDS, "refused: no"), **outcomes}
    assert judged(row)["verdict"] == verdict


def example(size: int) -> Checkpoint:
    weights = np.random.default_rng(1).normal(size=(size, 1)).astype(np.float32)
    return Checkpoint({"a": weights}, {"b": weights.T}, 3, {}, {}, Vocabulary(("a",)), {})


def test_a_large_checkpoint_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "large"
    save_checkpoint(path, example(2_000_000))
    tracemalloc.start()
    loaded = load_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beside the data, whether each number of one tensor is finite, a byte each, and twice in passing.
    assert peak < path.stat().st_size + 2 * 2_000_000 + 1_000_000
    assert loaded.parameters["a"].flags.writeable


def test_tensors_lie_as_processors_want_them(tmp_path: Path) -> None:
    """One of float64 after an odd number of float32."""
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.arange(4.0)}
    save_checkpoint(tmp_path / "c", example(3))
    (tmp_path / "c").write_bytes(hashed(tensors, Original.read(tmp_path / "c").metadata))
    loaded = load_checkpoint(tmp_path / "c").parameters
    assert all(each.flags.aligned and each.flags.writeable for each in loaded.values())
    np.testing.assert_array_equal(loaded["b"], tensors["b"])


def test_a_header_too_long_to_be_read_is_not_written(tmp_path: Path) -> None:
    path, long = tmp_path / "c", {"text": "x" * LARGEST_HEADER}
    save_checkpoint(path, example(3))
    with pytest.raises(
        CheckpointError, match=f"not written: its header would have .* at most {LARGEST_HEADER} are read"
    ):
        save_checkpoint(path, replace(example(3), config=long))
    assert load_checkpoint(path).config == {}


def test_a_long_name_does_not_make_a_long_error(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(assemble({"__metadata__": {"format": "x" * 10**6}}, b""))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "c")
    assert len(str(caught.value)) < 3000
