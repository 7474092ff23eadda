import numpy as np
import pytest

from shared.random_bits import keep_mask, normals, permutation, raw, uniforms


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


def by_hand(seed, step, layer, place):
    """The hash of one place, in Python's integers."""

    def scatter(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ x >> shift) * factor) % 2**32
        return x ^ x >> 16

    word = int(raw(seed, f"dropout.l{layer}", 1)[0])
    a, b = word % 2**32, word >> 32
    return scatter(scatter((place + scatter((a + step) % 2**32)) % 2**32) ^ scatter(b ^ step))


def test_a_mask_is_the_hash_of_its_place():
    B, T, H, rate = 3, 5, 7, 0.3
    mask = keep_mask(11, 2**31 + 5, 2, (B, T, H), rate)
    expected = [by_hand(11, 2**31 + 5, 2, place) >= int(rate * 2**32) for place in range(B * T * H)]
    assert mask.reshape(-1).tolist() == expected


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_hash_of_just_the_rate_is_kept(beyond):
    bits = [by_hand(11, 4, 1, place) for place in range(12)]
    mask = keep_mask(11, 4, 1, (2, 3, 2), (bits[7] + beyond) / 2**32)
    assert mask.reshape(-1).tolist() == [each >= bits[7] + beyond for each in bits]
    assert mask.reshape(-1)[7] == (not beyond)


def test_masks_keep_the_share_that_was_asked_for_and_do_not_repeat():
    shape, rate = (16, 40, 64), 0.25
    masks = [keep_mask(seed, step, layer, shape, rate) for seed in (0, 1) for step in (0, 1, 2) for layer in (0, 1)]
    for mask in masks:
        assert mask.mean() == pytest.approx(1 - rate, abs=0.01)
        for axis in (0, 1, 2):  # no row, step or unit is treated otherwise
            others = tuple({0, 1, 2} - {axis})
            deviation = np.abs(mask.mean(others) - (1 - rate)).max()
            assert deviation < 5 * np.sqrt(rate * (1 - rate) * shape[axis] / mask.size)
    correlations = np.corrcoef([mask.reshape(-1) for mask in masks]) - np.eye(len(masks))
    assert np.abs(correlations).max() < 0.03


def test_neighbours_in_a_mask_are_independent():
    mask = keep_mask(3, 9, 0, (32, 50, 64), 0.5).astype(float)
    for axis in (0, 1, 2):
        first, second = (np.delete(mask, place, axis).reshape(-1) for place in (0, -1))
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
