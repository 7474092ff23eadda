"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import torch

from impl_torch.arrays import Array
from impl_torch.embedding import embed
from impl_torch.unroll import cell_of, layer_weights, project, shortcut
from shared.config import ModelConfig
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
    written, free = [], not (forced >= 0).any()  # what cannot happen is not asked for at each token
    ended = torch.zeros_like(prompt_lengths, dtype=torch.bool)
    for n, (uniform, force) in enumerate(zip(uniforms.unbind(1), forced.unbind(1), strict=True)):
        token = draw(logits, uniform, rule, None if allowed is None else allowed[n])
        if not free:
            token = torch.where(force >= 0, force, token)
        if rule.end >= 0:
            token = token.masked_fill(ended, rule.end)
            ended = ended | (token == rule.end)
        written.append(token)
        logits, state = advance(token, state)
    return torch.stack(written, dim=1)


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


def stepper(model: ModelConfig, weights: dict[str, Array], decode: Callable[[Array], Array], tokens: int) -> Advance:
    """The cell's own step, layer by layer. What a token adds to layer 0, W x + b, is computed once for every token of
    the vocabulary, [V, G*H], where at least as many are to be read and written."""
    cell = cell_of(model)
    layers = [layer_weights(cell, weights, k) for k in range(model.num_layers)]
    table: Array | None = None
    if (V := len(weights["decoder.bias"])) <= tokens:
        every = torch.arange(V, dtype=torch.int32, device=weights["decoder.bias"].device)
        table = project(embed(every[None], weights, model.embedding_activation), layers[0])[0]

    def advance(token: Array, state: Any) -> tuple[Array, Any]:
        vectors = table is None or model.residual
        inputs = embed(token[None], weights, model.embedding_activation) if vectors else token[None]
        after = []
        for k, layer in enumerate(layers):
            projected = project(inputs, layer)[0] if table is None or k else table.index_select(0, token)
            new, _ = cell.step(projected, state[k], layer)
            after.append(new)
            outputs = new.hidden[None]
            inputs = outputs + shortcut(inputs, weights.get(f"rnn.residual_l{k}")) if model.residual else outputs
        return decode(inputs[0]), tuple(after)

    return advance
