import numpy as np
import pytest

from shared.random_bits import normals, permutation, raw, uniforms


def test_the_bits_are_those_of_every_release():
    """Philox 4x64-10 with key (seed, crc32 of the place): frozen, since runs and checkpoints depend on it."""
    assert list(raw(1, "place", 3)) == [8764597111133137891, 12950871538853147361, 13696192767570415359]
    assert uniforms(1, "place", 1)[0] == (8764597111133137891 >> 11) * 2.0**-53


@pytest.mark.parametrize("draw", [uniforms, raw])
def test_a_longer_draw_begins_with_the_shorter(draw):
    assert np.array_equal(draw(3, "x", 100)[:7], draw(3, "x", 7))


def test_seeds_and_places_are_independent():
    drawn = [uniforms(seed, place, 4000) for seed in (0, 1, 2**63 - 1) for place in ("a", "b")]
    correlations = np.corrcoef(drawn) - np.eye(6)
    assert np.abs(correlations).max() < 0.06


def test_distributions():
    u, n = uniforms(0, "u", 100_000), normals(0, "n", 100_000)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.005)
    assert n.mean() == pytest.approx(0, abs=0.015)
    assert n.std() == pytest.approx(1, abs=0.01)
    assert (np.abs(n) > 1.96).mean() == pytest.approx(0.05, abs=0.004)
    assert np.isfinite(n).all()


def test_a_permutation_holds_each_number_once():
    order = permutation(4, "epoch.2", 1000)
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, permutation(4, "epoch.3", 1000))
