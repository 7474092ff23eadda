"""Dropout behind layers (Srivastava et al. 2014), inverted; its masks are shared.random_bits.keep_mask's, bit for bit,
made where the outputs are. Sums and products of uint32 wrap, with XLA and without."""

from typing import Any, NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array


class Dropout(NamedTuple):
    """What decides the masks of one training step."""

    rates: tuple[float, ...]  # of each layer
    keys: Any  # [layers, 2], shared.random_bits.dropout_keys of each; on the device, or Python's numbers
    step: Any  # updates made before; the same
    worker: Any = 0  # of those that share a batch, k: its row b is row k B + b of the whole


def mix(x: Array) -> Array:
    """shared.random_bits.mix."""
    x = (x ^ tf.bitwise.right_shift(x, 16)) * 0x7FEB352D
    x = (x ^ tf.bitwise.right_shift(x, 15)) * 0x846CA68B
    return x ^ tf.bitwise.right_shift(x, 16)


def keep_mask(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """bool, of the shape of a layer's outputs [T, B, H]: False where one is dropped."""
    T, B, H = outputs.shape
    times, rows, units = (tf.cast(tf.range(n), tf.uint32) for n in (T, B, H))
    rows += tf.cast(dropout.worker, tf.uint32) * B
    places = (rows[:, None] * T + times[:, None, None]) * H + units
    now = tf.cast(tf.cast(dropout.step, tf.int64) & 0xFFFFFFFF, tf.uint32)
    keys = tf.cast(dropout.keys[layer], tf.uint32)
    bits = mix(mix(places + mix(keys[0] + now)) ^ mix(keys[1] ^ now))
    return bits >= int(dropout.rates[layer] * 2**32)


def drop(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """What is read of a layer: outputs [T, B, H] times 0 or 1 / (1 - rate)."""
    return outputs * (tf.cast(keep_mask(outputs, layer, dropout), outputs.dtype) * (1 / (1 - dropout.rates[layer])))
