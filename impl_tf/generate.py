"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from impl_tf.arrays import Array
from shared.sampling import SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""

PAIRS = 128
"""Tokens of a vocabulary up to which all pairs are compared."""


def as_tensors(rule: SamplingRule) -> SamplingRule:
    """The rule with tensors for numbers: another number compiles nothing anew."""
    return SamplingRule(*map(tf.constant, rule, (tf.float64, tf.int32, tf.float64, tf.int32)))


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    scores = tf.cast(logits, tf.float64)
    if allowed is not None:
        scores = tf.where(allowed, scores, float("-inf"))
    # The rule's numbers are tensors, so every case is computed: temperature 0 is the first of the sorted tokens.
    warm = rule.temperature > 0
    scores = scores / tf.where(warm, rule.temperature, 1)
    top_k = tf.where(warm & (rule.top_k > 0), rule.top_k, tf.where(warm, scores.shape[-1], 1))
    chosen = choose_by_pairs if scores.shape[-1] <= PAIRS else choose_sorted
    return chosen(scores, uniforms[:, None], top_k, rule.top_p)


def choose_sorted(scores: Array, uniforms: Array, top_k: Array, top_p: Array) -> Array:
    """The rule's steps 2 to 4: scores [B, V], uniforms [B, 1] -> int32 [B]."""
    ranked, order = tf.math.top_k(scores, k=scores.shape[-1])  # ties by the lower token
    weights = tf.exp(ranked - ranked[:, :1])
    weights = tf.where(tf.range(weights.shape[-1]) < top_k, weights, 0)
    before = tf.cumsum(weights, axis=-1) - weights
    kept = (top_p >= 1) | (before < top_p * tf.reduce_sum(weights, axis=-1, keepdims=True))
    weights = tf.where(kept, weights, 0)
    sums = tf.cumsum(weights, axis=-1)
    rank = tf.math.count_nonzero(sums <= uniforms * sums[:, -1:], axis=-1, keepdims=True)
    last = tf.math.count_nonzero(weights > 0, axis=-1, keepdims=True) - 1
    return tf.gather(order, tf.minimum(rank, last), batch_dims=1)[:, 0]


def choose_by_pairs(scores: Array, uniforms: Array, top_k: Array, top_p: Array) -> Array:
    """The same by comparing every token with every other, which XLA does faster than it sorts a few."""
    tokens, one, other = tf.range(scores.shape[-1]), scores[:, :, None], scores[:, None]
    first = (other > one) | (tf.equal(other, one) & (tokens < tokens[:, None]))  # [B, V, V]: the other comes before
    rank = tf.reduce_sum(tf.cast(first, tf.int32), axis=-1)
    weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
    weights = tf.where(rank < top_k, weights, 0)
    before = tf.reduce_sum(tf.where(first, weights[:, None], 0), axis=-1)
    kept = (top_p >= 1) | (before < top_p * tf.reduce_sum(weights, axis=-1, keepdims=True))
    weights = tf.where(kept, weights, 0)
    passed = before + weights <= uniforms * tf.reduce_sum(weights, axis=-1, keepdims=True)
    place = tf.math.count_nonzero(passed & (weights > 0), axis=-1, keepdims=True, dtype=tf.int32)
    last = tf.math.count_nonzero(weights > 0, axis=-1, keepdims=True, dtype=tf.int32) - 1
    return tf.argmax(tf.equal(rank, tf.minimum(place, last)), axis=-1, output_type=tf.int32)


def generate(
    advance: Advance,
    state: tuple[Any, ...],
    prompt: Array,
    prompt_lengths: Array,
    uniforms: Array,
    rule: SamplingRule,
    forced: Array,
    allowed: Array | None,
) -> Array:
    """Read the prompts, then write: shapes as in the contract, forced always given."""
    length = tf.shape(uniforms)[1]

    def write(n: Array, logits: Array, state: Any, ended: Array, written: tf.TensorArray) -> tuple[Any, ...]:
        token = draw(logits, uniforms[:, n], rule, None if allowed is None else allowed[n])
        token = tf.where(forced[:, n] >= 0, forced[:, n], token)
        token = tf.where(ended, rule.end, token)
        return n + 1, *advance(token, state), ended | tf.equal(token, rule.end), written.write(n, token)

    ended = tf.zeros_like(prompt_lengths, dtype=tf.bool)
    written = tf.TensorArray(tf.int32, length)
    start = tf.constant(0), *read(advance, state, prompt, prompt_lengths), ended, written
    return tf.transpose(tf.while_loop(lambda n, *_: n < length, write, start)[-1].stack())


def read(advance: Advance, state: tuple[Any, ...], prompt: Array, prompt_lengths: Array) -> tuple[Array, Any]:
    """Logits and state of each row after its own prompt."""

    def advance_unfinished(p: Array, logits: Array, state: Any) -> tuple[Array, Array, Any]:
        more = (p < prompt_lengths)[:, None]
        after = advance(prompt[:, p], state)
        kept = tf.nest.map_structure(lambda new, old: tf.where(more, new, old), after, (logits, state))
        return p + 1, *kept

    start = tf.constant(1), *advance(prompt[:, 0], state)
    return tf.while_loop(lambda p, *_: p < tf.shape(prompt)[1], advance_unfinished, start)[1:]
