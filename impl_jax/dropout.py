"""Dropout behind layers (Srivastava et al. 2014), inverted; its masks are shared.random_bits.keep_mask's, bit for bit,
made where the outputs are."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from impl_jax.arrays import Array
from shared.random_bits import mix


class Dropout(NamedTuple):
    """What decides the masks of one training step."""

    rates: tuple[float, ...]  # of each layer
    keys: Any  # [layers, 2], shared.random_bits.dropout_keys of each; on the device, or Python's numbers
    step: Any  # updates made before; the same
    worker: Any = 0  # of those that share a batch, k: its row b is row k B + b of the whole


def keep_mask(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """bool, of the shape of a layer's outputs [T, B, H]: False where one is dropped."""
    T, B, H = outputs.shape
    times, rows, units = (jnp.arange(n, dtype=jnp.uint32) for n in (T, B, H))
    rows += jnp.asarray(dropout.worker, jnp.uint32) * jnp.uint32(B)
    places = (rows[:, None] * jnp.uint32(T) + times[:, None, None]) * jnp.uint32(H) + units
    a, b = jnp.asarray(dropout.keys[layer], jnp.uint32)
    now = jnp.asarray(dropout.step, jnp.uint32)
    bits = mix(mix(places + mix(a + now)) ^ mix(b ^ now))
    return bits >= jnp.uint32(int(dropout.rates[layer] * 2**32))


def drop(outputs: Array, layer: int, dropout: Dropout) -> Array:
    """What is read of a layer: outputs [T, B, H] times 0 or 1 / (1 - rate)."""
    return outputs * (keep_mask(outputs, layer, dropout) * jnp.asarray(1 / (1 - dropout.rates[layer]), outputs.dtype))
