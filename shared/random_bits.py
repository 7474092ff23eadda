"""Random numbers as pure functions of (seed, place), so that no implementation keeps a random state and every one draws
the same: Philox counters, whose raw output NumPy guarantees never to change (NEP 19), turned into numbers here."""

import zlib

import numpy as np

Array = np.ndarray


def uniforms(seed: int, place: str, count: int) -> Array:
    """float64 [count] in [0, 1), multiples of 2**-53; a longer draw begins with the shorter one."""
    return (raw(seed, place, count) >> np.uint64(11)) * 2.0**-53


def normals(seed: int, place: str, count: int) -> Array:
    """float64 [count], standard normal (Box and Muller 1958)."""
    radius, angle = uniforms(seed, place, 2 * count).reshape(2, count)
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)


def permutation(seed: int, place: str, count: int) -> Array:
    """int64 [count], the numbers 0..count-1 in random order."""
    return np.argsort(raw(seed, place, count), kind="stable")


def raw(seed: int, place: str, count: int) -> Array:
    """uint64 [count]; the key is the seed and the place's checksum."""
    key = np.array([seed, zlib.crc32(place.encode())], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key).random_raw(count))
