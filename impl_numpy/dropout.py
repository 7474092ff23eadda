"""Dropout behind layers (Srivastava et al. 2014), inverted; its masks are shared.random_bits.keep_mask's, bit for bit,
made where the outputs are."""

from typing import NamedTuple

import numpy as np

from impl_numpy.arrays import Array
from shared.random_bits import mix


class Dropout(NamedTuple):
    """What decides the masks of one training step."""

    rates: tuple[float, ...]  # of each layer
    keys: tuple[tuple[int, int], ...]
    """Of each layer: shared.random_bits.dropout_keys."""
    step: int
    rows: slice = slice(0, None, 1)  # a thread's, in the batch


def keep_mask(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """bool, of the shape of a layer's outputs [T, B, H]: False where one is dropped."""
    T, B, H = outputs.shape
    times, rows, units = (np.arange(n, dtype=np.uint32, like=outputs) for n in (T, B, H))
    rows = np.uint32(dropout.rows.start) + rows * np.uint32(dropout.rows.step)
    places = (rows[:, None] * np.uint32(T) + times[:, None, None]) * np.uint32(H) + units
    now = np.uint32(dropout.step & 0xFFFFFFFF)
    a, b = (np.array([word], np.uint32, like=outputs) for word in dropout.keys[layer])
    bits = mix(mix(places + mix(a + now)) ^ mix(b ^ now))
    return bits >= np.uint32(dropout.rates[layer] * 2**32)


def drop(outputs: Array, layer: int, dropout: Dropout) -> tuple[Array, Array]:
    """What is read of a layer, and the factors [T, B, H] that made it so: 0 or 1 / (1 - rate)."""
    factors = keep_mask(outputs, layer, dropout) * outputs.dtype.type(1 / (1 - dropout.rates[layer]))
    return outputs * factors, factors
