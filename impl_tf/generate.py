"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from impl_tf.arrays import Array
from shared.sampling import BELOW_ONE, BLOCK, SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def asked(rule: SamplingRule) -> SamplingRule:
    """The rule with None for what it does not ask for, which is then not compiled; a number is a tensor, so that
    another compiles nothing anew."""
    wanted = rule.temperature > 0, rule.top_k > 0, rule.top_p < 1, rule.end >= 0
    numbers = map(tf.constant, rule, (tf.float64, tf.int32, tf.float64, tf.int32))
    return SamplingRule(*(each if want else None for each, want in zip(numbers, wanted, strict=True)))  # type: ignore[arg-type]


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    if allowed is not None:
        logits = tf.where(allowed, logits, float("-inf"))
    greatest = tf.reduce_max(logits, axis=-1, keepdims=True)
    if rule.temperature is None:
        return first(tf.equal(logits, greatest))
    weights = tf.exp((logits - greatest) / tf.cast(rule.temperature, logits.dtype))
    if rule.top_k is not None or rule.top_p is not None:
        weights = tf.where(kept(logits, rule), weights, 0)
    return choose(weights, uniforms[:, None])


def first(found: Array) -> Array:
    """The place of the first True of each row: bool [B, V] -> int32 [B]. XLA's argmax is ten times slower."""
    V = found.shape[1]
    return tf.reduce_min(tf.where(found, tf.range(V), V - 1), axis=-1)


def kept(logits: Array, rule: SamplingRule) -> Array:
    """Which tokens top-k and top-p keep, bool [B, V]: those above the last one's logit, and of its equals the first."""
    V = logits.shape[1]
    ranked = tf.sort(logits, axis=-1, direction="DESCENDING")
    count = tf.fill((logits.shape[0], 1), V if rule.top_k is None else tf.minimum(rule.top_k, V))
    if rule.top_p is not None:
        weights = tf.exp((ranked - ranked[:, :1]) / tf.cast(rule.temperature, logits.dtype))
        sums = tf.cumsum(tf.cast(tf.where(tf.range(V) < count, weights, 0), tf.float64), axis=-1)
        before = sums[:, :-1]
        count = tf.minimum(count, 1 + true(before < rule.top_p * sums[:, -1:]))
    border = tf.gather(ranked, count - 1, batch_dims=1)
    above, equal = logits > border, tf.equal(logits, border)
    return above | (equal & (tf.cumsum(tf.cast(equal, tf.int32), axis=-1) <= count - true(above)))


def true(found: Array) -> Array:
    """How many of each row are True: bool [B, N] -> int32 [B, 1]."""
    return tf.math.count_nonzero(found, axis=-1, keepdims=True, dtype=tf.int32)


def choose(weights: Array, uniforms: Array) -> Array:
    """The first token of each row at which the sum of the weights [B, V] exceeds uniform [B, 1] * total, int32 [B]. Of
    many tokens, whole blocks are added up first, and tokens one by one in a single block of each row."""
    rows, V = weights.shape
    if V <= BLOCK:
        sums = tf.cumsum(tf.cast(weights, tf.float64), axis=-1)
        return true(sums <= uniforms * sums[:, -1:])[:, 0]
    whole = V // BLOCK * BLOCK
    blocks = tf.reduce_sum(tf.reshape(weights[:, :whole], (rows, -1, BLOCK)), axis=-1)
    rest = tf.reduce_sum(weights[:, whole:], axis=-1, keepdims=True)
    sums = tf.cumsum(tf.cast(tf.concat([blocks, rest], axis=-1), tf.float64), axis=-1)
    goals = uniforms * sums[:, -1:]
    block = true(sums <= goals)
    places = block * BLOCK + tf.range(BLOCK)
    inside = tf.where(places < V, tf.gather(weights, tf.minimum(places, V - 1), batch_dims=1), 0)
    passed = tf.cumsum(tf.cast(inside, tf.float64), axis=-1)
    goals -= tf.where(block > 0, tf.gather(sums, tf.maximum(block - 1, 0), batch_dims=1), 0)
    # Added up in another order, a block may hold a little less than was looked for.
    goals = tf.minimum(goals, passed[:, -1:] * BELOW_ONE)
    return (block * BLOCK + true(passed <= goals))[:, 0]


def generate(
    advance: Advance,
    state: tuple[Any, ...],
    prompt: Array,
    prompt_lengths: Array,
    uniforms: Array,
    rule: SamplingRule,
    forced: Array | None,
    allowed: Array | None,
) -> Array:
    """Read the prompts, then write: shapes as in the contract; the rule as `asked` makes it."""
    length, uniforms = tf.shape(uniforms)[1], tf.minimum(uniforms, BELOW_ONE)

    def write(n: Array, logits: Array, state: Any, ended: Array, written: tf.TensorArray) -> tuple[Any, ...]:
        token = draw(logits, uniforms[:, n], rule, None if allowed is None else allowed[n])
        if forced is not None:
            token = tf.where(forced[:, n] >= 0, forced[:, n], token)
        if rule.end is not None:
            token = tf.where(ended, rule.end, token)
            ended |= tf.equal(token, rule.end)
        return n + 1, *advance(token, state), ended, written.write(n, token)

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
