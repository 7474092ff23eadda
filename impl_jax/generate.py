"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from impl_jax.arrays import Array
from shared.sampling import BELOW_ONE, BLOCK, SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def asked(rule: SamplingRule) -> SamplingRule:
    """The rule with None for what it does not ask for, which is then not compiled; a number is traced, so that another
    compiles nothing anew."""
    temperature = rule.temperature or None
    top_k, top_p = rule.top_k or None, rule.top_p if rule.top_p < 1 else None
    return SamplingRule(temperature, top_k, top_p, rule.end if rule.end >= 0 else None)  # type: ignore[arg-type]


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    greatest = logits.max(-1, keepdims=True)
    if rule.temperature is None:
        return first(logits == greatest)
    weights = jnp.exp((logits - greatest) / jnp.asarray(rule.temperature, logits.dtype))
    if rule.top_k is not None or rule.top_p is not None:
        weights = jnp.where(kept(logits, rule), weights, 0)
    return choose(weights, uniforms[:, None])


def first(found: Array) -> Array:
    """The place of the first True of each row: bool [B, V] -> int32 [B]. XLA's argmax is ten times slower."""
    V = found.shape[1]
    return jnp.where(found, jnp.arange(V, dtype=jnp.int32), V - 1).min(-1)


def kept(logits: Array, rule: SamplingRule) -> Array:
    """Which tokens top-k and top-p keep, bool [B, V]: those above the last one's logit, and of its equals the first."""
    V = logits.shape[1]
    ranked = -jnp.sort(-logits, axis=-1)
    count = jnp.full((len(logits), 1), V if rule.top_k is None else jnp.minimum(rule.top_k, V))
    if rule.top_p is not None:
        weights = jnp.exp((ranked - ranked[:, :1]) / jnp.asarray(rule.temperature, logits.dtype))
        sums = jnp.cumsum(jnp.where(jnp.arange(V) < count, weights, 0), axis=-1, dtype=jnp.float64)
        before = sums[:, :-1]
        count = jnp.minimum(count, 1 + (before < rule.top_p * sums[:, -1:]).sum(-1, keepdims=True))
    border = jnp.take_along_axis(ranked, count - 1, axis=-1)
    above, equal = logits > border, logits == border
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= count - above.sum(-1, keepdims=True)))


def choose(weights: Array, uniforms: Array) -> Array:
    """The first token of each row at which the sum of the weights [B, V] exceeds uniform [B, 1] * total, int32 [B]. Of
    many tokens, whole blocks are added up first, and tokens one by one in a single block of each row."""
    rows, V = weights.shape
    if V <= BLOCK:
        sums = jnp.cumsum(weights, axis=-1, dtype=jnp.float64)
        return (sums <= uniforms * sums[:, -1:]).sum(-1, dtype=jnp.int32)
    whole = V // BLOCK * BLOCK
    blocks = weights[:, :whole].reshape(rows, -1, BLOCK).sum(-1), weights[:, whole:].sum(-1, keepdims=True)
    sums = jnp.cumsum(jnp.concatenate(blocks, axis=-1), axis=-1, dtype=jnp.float64)
    goals = uniforms * sums[:, -1:]
    block = (sums <= goals).sum(-1, keepdims=True, dtype=jnp.int32)
    places = block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
    inside = jnp.where(places < V, jnp.take_along_axis(weights, jnp.minimum(places, V - 1), axis=-1), 0)
    passed = jnp.cumsum(inside, axis=-1, dtype=jnp.float64)
    goals -= jnp.where(block > 0, jnp.take_along_axis(sums, jnp.maximum(block - 1, 0), axis=-1), 0)
    # Added up in another order, a block may hold a little less than was looked for.
    goals = jnp.minimum(goals, passed[:, -1:] * BELOW_ONE)
    return block[:, 0] * BLOCK + (passed <= goals).sum(-1, dtype=jnp.int32)


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

    def write(carry: tuple[Array, Any, Array], column: tuple[Array, Array | None, Array | None]) -> tuple[Any, Array]:
        logits, state, ended = carry
        uniform, force, permitted = column
        token = draw(logits, uniform, rule, permitted)
        if force is not None:
            token = jnp.where(force >= 0, force, token)
        if rule.end is not None:
            token = jnp.where(ended, rule.end, token)
            ended |= token == rule.end
        return (*advance(token, state), ended), token

    ended = jnp.zeros_like(prompt_lengths, dtype=bool)
    start = *read(advance, state, prompt, prompt_lengths), ended
    columns = jnp.minimum(uniforms, BELOW_ONE).T, None if forced is None else forced.T, allowed
    return lax.scan(write, start, columns)[1].T


def read(advance: Advance, state: tuple[Any, ...], prompt: Array, prompt_lengths: Array) -> tuple[Array, Any]:
    """Logits and state of each row after its own prompt."""

    def advance_unfinished(before: tuple[Array, Any], column: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
        p, tokens = column
        more = (p < prompt_lengths)[:, None]
        return jax.tree.map(partial(jnp.where, more), advance(tokens, before[1]), before), None

    columns = jnp.arange(1, prompt.shape[1]), prompt.T[1:]
    return lax.scan(advance_unfinished, advance(prompt[:, 0], state), columns)[0]
