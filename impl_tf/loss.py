"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]; or [N, V] and
[N], of the unmasked."""

from collections.abc import Callable

import tensorflow as tf

from impl_tf.arrays import Array
from shared.contract import Batch


@tf.custom_gradient
def token_nats(logits: Array, targets: Array) -> tuple[Array, Callable[[Array], tuple[Array, None]]]:
    """-log softmax(logits)[target] of each token, by log-sum-exp. The gradient, softmax less one at the target, is one
    pass over the logits; TensorFlow's own makes the targets one-hot vectors in memory."""
    top = tf.reduce_max(logits, axis=-1, keepdims=True)
    total = top + tf.math.log(tf.reduce_sum(tf.exp(logits - top), axis=-1, keepdims=True))

    def backward(d_nats: Array) -> tuple[Array, None]:
        share = tf.exp(logits - total)
        hit = tf.equal(tf.range(logits.shape[-1]), targets[..., None])
        return tf.where(hit, share - 1, share) * d_nats[..., None], None

    return (total - tf.gather(logits, targets[..., None], batch_dims=targets.shape.rank))[..., 0], backward


def mean_nats(logits: Array, targets: Array, mask: Array, count: Array | None = None) -> Array:
    """Nats per unmasked token; where these are some rows of a batch, their share of it: `count` is the batch's."""
    weights = tf.cast(mask, logits.dtype)
    total = tf.reduce_sum(weights) if count is None else tf.cast(count, logits.dtype)
    return tf.reduce_sum(token_nats(logits, targets) * weights) / total


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


def unmasked(chosen: Array, targets: Array, mask: Array, rows: Array | None) -> tuple[Array, Array, Array]:
    """The outputs [N, H], targets [N] and mask [N] at `rows` of the flat [T, B]: no logits are computed of the others.
    None: all, as they are."""
    if rows is None:
        return chosen, targets, mask
    return tuple(tf.gather(tf.reshape(each, (-1, *each.shape[2:])), rows) for each in (chosen, targets, mask))


def last_steps(batch: Batch) -> Array:
    """Places in [T, B] of the last unmasked step of each row, [B, 2]; the first step where there is none."""
    last = tf.maximum(tf.reduce_sum(tf.cast(batch.mask, tf.int32), axis=1) - 1, 0)
    return tf.stack([last, tf.range(last.shape[0])], axis=1)
