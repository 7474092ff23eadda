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
    scores = logits.astype(np.float64)
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    if rule.temperature == 0:
        return scores.argmax(-1).astype(np.int32)
    scores = scores / rule.temperature
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=-1)
    weights = np.exp(ranked - ranked[:, :1])
    if rule.top_k:
        weights[:, rule.top_k :] = 0
    if rule.top_p < 1:
        before = np.cumsum(weights, axis=-1) - weights
        weights = np.where(before < rule.top_p * weights.sum(-1, keepdims=True), weights, 0)
    sums = np.cumsum(weights, axis=-1)
    rank = (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1, keepdims=True)
    last = (weights > 0).sum(-1, keepdims=True) - 1
    return np.take_along_axis(order, np.minimum(rank, last), axis=-1)[:, 0].astype(np.int32)


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
    for n in range(uniforms.shape[1]):
        token = draw(logits, uniforms[:, n], rule, None if allowed is None else allowed[n])
        token = np.where(forced[:, n] >= 0, forced[:, n], token)
        token = np.where(ended, np.int32(rule.end), token)
        ended = ended | (token == rule.end)
        written[:, n] = token
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
