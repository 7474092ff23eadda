"""The peers of `bench` compute what NumPy does: the same losses over five steps, the same likeliest tokens."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from runner.timing.field import PEERS, SAME_WORK, adam_of, proof
from runner.timing.worker import Contestant, Entry
from runner.timing.workloads import W0
from shared.config import ModelConfig, RuntimeConfig

FLOAT64 = RuntimeConfig(device="cpu", dtype="float64")
DEEP = ModelConfig(cell="gru", hidden_size=16, num_layers=2, embedding_size=12)
LSTM = replace(DEEP, cell="lstm")
CASES = {
    "lstm, one-hot, carried": W0,
    "gru, two layers, padded": replace(W0, model=DEEP, padded=True),
}
NUMPY = Entry("numpy", "scratch", peer=False, tuned=False)


def test_the_table_names_every_peer(impl):
    assert tuple(importlib.import_module(f"benchmarks.peer_{impl}").PEERS) == PEERS[impl]


@pytest.mark.parametrize("case", CASES)
def test_peers_do_the_same_work(impl, case):
    formula = adam_of(Entry(impl, "", peer=True, tuned=False))
    expected = Contestant(NUMPY, CASES[case], FLOAT64, formula).prove()
    for name in PEERS[impl]:
        if name == "min-char-rnn":  # one row, below
            continue
        entry = Entry(impl, name, peer=True, tuned=False)
        found = Contestant(entry, CASES[case], FLOAT64).prove()
        verdict = proof(found, expected, SAME_WORK["float64"])
        assert verdict["same_work"], (name, verdict)


def test_min_char_rnn_does_the_work_of_one_row():
    single = W0.single()
    found = Contestant(Entry("numpy", "min-char-rnn", peer=True, tuned=False), single, FLOAT64).prove()
    expected = Contestant(NUMPY, single, FLOAT64).prove()
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-12)


def test_peers_write_the_same_texts(impl):
    workload = replace(W0, model=LSTM, sampled=(1, 3), length=8)
    expected = Contestant(NUMPY, workload, FLOAT64).prove()
    found = Contestant(Entry(impl, PEERS[impl][0], peer=True, tuned=False), workload, FLOAT64).prove()
    assert found["tokens"] == expected["tokens"]
