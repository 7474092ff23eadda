"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]."""

import tensorflow as tf

from impl_tf.arrays import Array
from shared.contract import Batch


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


def predictions(outputs: Array, batch: Batch, many_to_one: bool) -> tuple[Array, Array, Array]:
    """Which outputs [T, B, H] predict, their targets and mask; of a many-to-one model only the last unmasked, T = 1."""
    if not many_to_one:
        return outputs, tf.transpose(batch.targets), tf.transpose(batch.mask)
    chosen = tf.gather_nd(outputs, last_steps(batch))
    return chosen[None], batch.targets[None], tf.reduce_any(batch.mask, axis=1)[None]


def last_steps(batch: Batch) -> Array:
    """Places in [T, B] of the last unmasked step of each row, [B, 2]; the first step where there is none."""
    last = tf.maximum(tf.reduce_sum(tf.cast(batch.mask, tf.int32), axis=1) - 1, 0)
    return tf.stack([last, tf.range(last.shape[0])], axis=1)
