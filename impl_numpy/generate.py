"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np

from impl_numpy.arrays import Array
from shared.sampling import SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    if allowed is not None:
        logits = np.where(allowed, logits, logits.dtype.type(-np.inf))
    if rule.temperature == 0:
        return logits.argmax(-1).astype(np.int32)
    # A division keeps the order, and float32 is sorted twice as fast as float64.
    scores, ranked = (
        each.astype(np.float64) / rule.temperature for each in (logits, np.sort(logits, axis=-1)[:, ::-1])
    )
    weights = np.exp(ranked - ranked[:, :1])
    if rule.top_k:
        weights[:, rule.top_k :] = 0
    if rule.top_p < 1:
        before = np.cumsum(weights, axis=-1) - weights
        weights = np.where(before < rule.top_p * weights.sum(-1, keepdims=True), weights, 0)
    sums = weights.cumsum(-1)
    thresholds = uniforms[:, None] * sums[:, -1:]
    if len(sums) == 1 and isinstance(sums, np.ndarray):
        rank = sums[0].searchsorted(thresholds[0], "right")  # the same, quicker
    else:
        rank = (sums <= thresholds).sum(-1)
    if np.count_nonzero(rank == sums.shape[1]):  # rounded up to the total: the last that weighs anything
        rank = np.minimum(rank, (weights > 0).sum(-1) - 1)
    return at_rank(scores, ranked, rank)


def at_rank(scores: Array, ranked: Array, rank: Array) -> Array:
    """The token of each row that stands at a rank [B] of the scores [B, V] in descending order: finding it is less work
    than sorting the tokens along with their scores."""
    value = ranked[np.arange(len(rank), like=rank), rank][:, None]
    equal = scores == value
    if np.count_nonzero(equal) > len(rank):  # ties: so many tokens with this score come before
        earlier = rank[:, None] - (ranked > value).sum(-1, keepdims=True)
        equal = equal.cumsum(-1) > earlier
    return equal.argmax(-1).astype(np.int32)


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
    logits, state = read(advance, state, prompt, prompt_lengths)
    written = np.zeros_like(forced)
    ended = np.zeros_like(prompt_lengths, dtype=bool)
    some_forced, length = bool((forced >= 0).any()), uniforms.shape[1]
    for n in range(length):
        token = draw(logits, uniforms[:, n], rule, None if allowed is None else allowed[n])
        if some_forced:
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
