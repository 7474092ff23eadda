"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from impl_jax.arrays import Array
from shared.sampling import SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    scores = logits.astype(jnp.float64)
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    # The rule's numbers are traced, so every case is computed: temperature 0 is the first of the sorted tokens.
    scores = scores / jnp.where(rule.temperature == 0, 1, rule.temperature)
    negated, order = lax.sort_key_val(-scores, lax.broadcasted_iota(jnp.int32, scores.shape, 1))
    weights = jnp.exp(negated[:, :1] - negated)
    top_k = jnp.where(rule.temperature == 0, 1, rule.top_k)
    weights = jnp.where((top_k == 0) | (jnp.arange(weights.shape[-1]) < top_k), weights, 0)
    before = jnp.cumsum(weights, axis=-1) - weights
    kept = (rule.top_p >= 1) | (before < rule.top_p * weights.sum(-1, keepdims=True))
    weights = jnp.where(kept, weights, 0)
    sums = jnp.cumsum(weights, axis=-1)
    rank = (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1, keepdims=True)
    last = (weights > 0).sum(-1, keepdims=True) - 1
    return jnp.take_along_axis(order, jnp.minimum(rank, last), axis=-1)[:, 0]


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

    def write(carry: tuple[Array, Any, Array], column: tuple[Array, Array, Array | None]) -> tuple[Any, Array]:
        logits, state, ended = carry
        uniform, force, permitted = column
        token = draw(logits, uniform, rule, permitted)
        token = jnp.where(force >= 0, force, token)
        token = jnp.where(ended, rule.end, token)
        return (*advance(token, state), ended | (token == rule.end)), token

    ended = jnp.zeros_like(prompt_lengths, dtype=bool)
    start = *read(advance, state, prompt, prompt_lengths), ended
    return lax.scan(write, start, (uniforms.T, forced.T, allowed))[1].T


def read(advance: Advance, state: tuple[Any, ...], prompt: Array, prompt_lengths: Array) -> tuple[Array, Any]:
    """Logits and state of each row after its own prompt."""

    def advance_unfinished(before: tuple[Array, Any], column: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
        p, tokens = column
        more = (p < prompt_lengths)[:, None]
        return jax.tree.map(partial(jnp.where, more), advance(tokens, before[1]), before), None

    columns = jnp.arange(1, prompt.shape[1]), prompt.T[1:]
    return lax.scan(advance_unfinished, advance(prompt[:, 0], state), columns)[0]
