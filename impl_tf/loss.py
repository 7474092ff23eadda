"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]."""

import tensorflow as tf

from impl_tf.arrays import Array


def token_nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, by log-sum-exp."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)


def mean_nats(logits: Array, targets: Array, mask: Array) -> Array:
    """Nats per unmasked token."""
    weights = tf.cast(mask, logits.dtype)
    return tf.reduce_sum(token_nats(logits, targets) * weights) / tf.reduce_sum(weights)


def score(logits: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Summed nats in float64, unmasked tokens, hits."""
    nats = tf.reduce_sum(tf.cast(token_nats(logits, targets), tf.float64) * tf.cast(mask, tf.float64))
    hits = (tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets) & mask
    return nats, tf.math.count_nonzero(mask), tf.math.count_nonzero(hits)
