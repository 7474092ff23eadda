"""Dropout behind layers (Srivastava et al. 2014), inverted; its masks are shared.random_bits.keep_mask's, bit for bit,
made where the outputs are.

Torch computes with int32 ten times as fast as with int64, and lacks most of uint32. Sums and products are the same bits
in both; only a right shift drags the sign along, and comparison knows one: see `mix` and `keep_mask`.
"""

from typing import Any, NamedTuple

import torch

from impl_torch.arrays import Array


class Dropout(NamedTuple):
    """What decides the masks of one training step."""

    rates: tuple[float, ...]  # of each layer
    keys: Any  # [layers, 2], shared.random_bits.dropout_keys of each; on the device, or Python's numbers
    step: Any  # updates made before; the same
    worker: Any = 0  # of those that share a batch, k: its row b is row k B + b of the whole


def mix(x: Array) -> Array:
    """shared.random_bits.mix on the bits of int32, in place."""
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def keep_mask(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """bool, of the shape of a layer's outputs [T, B, H]: False where one is dropped."""
    T, B, H = outputs.shape
    times, rows, units = (torch.arange(n, dtype=torch.int32, device=outputs.device) for n in (T, B, H))
    rows += dropout.worker * B
    places = (rows[:, None] * T + times[:, None, None]) * H + units
    keys, now = (torch.as_tensor(each, device=outputs.device).long().int() for each in (dropout.keys, dropout.step))
    a, b = keys[layer].unbind()
    bits = mix(mix(places.add_(mix(a + now))).bitwise_xor_(mix(b ^ now)))
    # Less 2^31, both sides compare as unsigned words do.
    return bits.bitwise_xor_(-(2**31)) >= int(dropout.rates[layer] * 2**32) - 2**31


def drop(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """What is read of a layer: outputs [T, B, H] times 0 or 1 / (1 - rate)."""
    return outputs * (keep_mask(outputs, layer, dropout).to(outputs.dtype) * (1 / (1 - dropout.rates[layer])))
