"""Two kills of a search, of a worker and of everything; `kill_sweep.py` makes more."""

import sys

import kill_sweep
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc: NOT TESTED here")
def test_no_trial_is_lost_or_told_twice():
    result = kill_sweep.campaign(times=2, seed=0)
    assert [each["of"] for each in result["kills"]] == ["worker", "everything"]
    assert result["differences"] == []
