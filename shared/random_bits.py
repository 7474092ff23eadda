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


def dropout_keys(seed: int, layer: int) -> tuple[int, int]:
    """Two 32-bit words that decide the dropout masks behind a layer at every step."""
    word = int(raw(seed, f"dropout.l{layer}", 1)[0])
    return word & 0xFFFFFFFF, word >> 32


def mix(x: Array) -> Array:
    """A permutation of the 32-bit words that scatters them, for arrays of uint32 (Wellons 2018, lowbias32)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def keep_mask(seed: int, step: int, layer: int, shape: tuple[int, int, int], rate: float) -> Array:
    """bool [B, T, H], False where an output is dropped: a hash of (seed, step, layer, place), the same everywhere.

    With all sums and products modulo 2^32, i = (b T + t) H + h, and the words a, b of `dropout_keys`:
    keep where mix(mix(i + mix(a + step)) ^ mix(b ^ step)) >= rate 2^32.
    """
    a, b = (np.array([word], np.uint32) for word in dropout_keys(seed, layer))
    now = np.uint32(step & 0xFFFFFFFF)
    places = np.arange(np.prod(shape), dtype=np.uint32)
    bits = mix(mix(places + mix(a + now)) ^ mix(b ^ now))
    return (bits >= np.uint32(rate * 2**32)).reshape(shape)
