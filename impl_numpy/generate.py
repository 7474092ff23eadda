"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np

from impl_numpy.arrays import Array
from shared.sampling import BELOW_ONE, BLOCK, SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    if allowed is not None:
        logits = np.where(allowed, logits, logits.dtype.type(-np.inf))
    if rule.temperature == 0:
        return logits.argmax(-1).astype(np.int32)
    weights = logits - logits.max(-1, keepdims=True)
    if rule.temperature != 1:
        weights /= rule.temperature
    np.exp(weights, out=weights)
    if rule.top_k or rule.top_p < 1:
        weights *= kept(logits, rule)
    return choose(weights, uniforms).astype(np.int32)


def kept(logits: Array, rule: SamplingRule) -> Array:
    """Which tokens top-k and top-p keep, bool [B, V]: those above the last one's logit, and of its equals the first."""
    V = logits.shape[1]
    count = min(rule.top_k or V, V)
    best = np.partition(logits, V - count, axis=-1)[:, V - count :]
    border = best[:, :1]
    if rule.top_p < 1:
        ranked = np.sort(best, axis=-1)[:, ::-1]
        sums = np.exp((ranked - ranked[:, :1]) / rule.temperature).cumsum(-1, dtype=np.float64)
        before = sums[:, :-1]
        count = 1 + (before < rule.top_p * sums[:, -1:]).sum(-1, keepdims=True)
        border = np.take_along_axis(ranked, count - 1, axis=-1)
    above, equal = logits > border, logits == border
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdims=True)))


def choose(weights: Array, uniforms: Array) -> Array:
    """The first token of each row at which the sum of the weights [B, V] exceeds uniform * total, int [B]. Of many rows
    and tokens, whole blocks are added up first, and tokens one by one in a single block of each row."""
    rows, V = weights.shape
    if rows == 1:
        sums = weights[0].astype(np.float64).cumsum()
        return sums.searchsorted(uniforms * sums[-1], "right")
    if V <= BLOCK:
        sums = weights.cumsum(-1, dtype=np.float64)
        return (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1)
    whole = V // BLOCK * BLOCK
    blocks = weights[:, :whole].reshape(rows, -1, BLOCK).sum(-1), weights[:, whole:].sum(-1, keepdims=True)
    sums = np.concatenate(blocks, axis=-1).cumsum(-1, dtype=np.float64)
    goals = uniforms[:, None] * sums[:, -1:]
    block = (sums <= goals).sum(-1, keepdims=True)
    places = block * BLOCK + np.arange(BLOCK, like=block)
    inside = np.where(places < V, np.take_along_axis(weights, np.minimum(places, V - 1), axis=-1), 0)
    passed = inside.cumsum(-1, dtype=np.float64)
    goals -= np.where(block > 0, np.take_along_axis(sums, np.maximum(block - 1, 0), axis=-1), 0)
    # Added up in another order, a block may hold a little less than was looked for.
    goals = np.minimum(goals, passed[:, -1:] * BELOW_ONE)
    return block[:, 0] * BLOCK + (passed <= goals).sum(-1)


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
    """Read the prompts, then write: shapes as in the contract."""
    logits, state = read(advance, state, prompt, prompt_lengths)
    written = np.zeros(uniforms.shape, np.int32, like=prompt)
    ended = np.zeros_like(prompt_lengths, dtype=bool)
    uniforms = np.minimum(uniforms, BELOW_ONE)
    length = uniforms.shape[1]
    for n in range(length):
        token = draw(logits, uniforms[:, n], rule, None if allowed is None else allowed[n])
        if forced is not None:
            token = np.where(forced[:, n] >= 0, forced[:, n], token)
        if rule.end >= 0:
            token = np.where(ended, np.int32(rule.end), token)
            ended |= token == rule.end
        written[:, n] = token
        if n + 1 < length:
            logits, state = advance(token, state)
    return written


def read(advance: Advance, state: tuple[Any, ...], prompt: Array, prompt_lengths: Array) -> tuple[Array, Any]:
    """Logits and state of each row after its own prompt."""
    logits, state = advance(prompt[:, 0], state)
    for p in range(1, prompt.shape[1]):
        more = (p < prompt_lengths)[:, None]
        new_logits, new_state = advance(prompt[:, p], state)
        logits = np.where(more, new_logits, logits)
        state = tuple(
            type(old)(*(np.where(more, *pair) for pair in zip(new, old, strict=True)))
            for new, old in zip(new_state, state, strict=True)
        )
    return logits, state
