"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import torch

from impl_torch.arrays import Array
from shared.sampling import SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    scores = logits.double()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    if rule.temperature == 0:
        return scores.argmax(-1).int()
    ranked, order = (scores / rule.temperature).sort(dim=-1, descending=True, stable=True)
    weights = (ranked - ranked[:, :1]).exp()
    if rule.top_k:
        weights[:, rule.top_k :] = 0
    if rule.top_p < 1:
        before = weights.cumsum(-1) - weights
        weights = weights.where(before < rule.top_p * weights.sum(-1, keepdim=True), 0)
    sums = weights.cumsum(-1)
    rank = (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1, keepdim=True)
    last = (weights > 0).sum(-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(rank, last))[:, 0].int()


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
    written = torch.zeros_like(forced)
    ended = torch.zeros_like(prompt_lengths, dtype=torch.bool)
    for n in range(uniforms.shape[1]):
        token = draw(logits, uniforms[:, n], rule, None if allowed is None else allowed[n])
        token = torch.where(forced[:, n] >= 0, forced[:, n], token)
        token = token.masked_fill(ended, rule.end)
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
        logits = torch.where(more, new_logits, logits)
        state = tuple(
            type(old)(*(torch.where(more, *pair) for pair in zip(new, old, strict=True)))
            for new, old in zip(new_state, state, strict=True)
        )
    return logits, state
