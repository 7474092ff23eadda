"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]."""

import jax.numpy as jnp
from optax import softmax_cross_entropy_with_integer_labels

from impl_jax.arrays import Array


def token_nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, by log-sum-exp."""
    return softmax_cross_entropy_with_integer_labels(logits, targets)


def mean_nats(logits: Array, targets: Array, mask: Array) -> Array:
    """Nats per unmasked token."""
    return token_nats(logits, targets).mean(where=mask)


def score(logits: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Summed nats in float64, unmasked tokens, hits."""
    nats = token_nats(logits, targets).sum(dtype=jnp.float64, where=mask)
    return nats, mask.sum(), ((logits.argmax(-1) == targets) & mask).sum()
