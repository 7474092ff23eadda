"""The sampling rule of shared.sampling, and the loop that reads prompts and writes tokens."""

from collections.abc import Callable
from typing import Any

import torch

from impl_torch.arrays import Array
from impl_torch.embedding import embed
from impl_torch.unroll import cell_of, layer_weights, project, shortcut
from shared.config import ModelConfig
from shared.sampling import BELOW_ONE, BLOCK, SamplingRule

Advance = Callable[[Array, Any], tuple[Array, Any]]
"""tokens [B], state -> logits [B, V], state."""


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None) -> Array:
    """One token a row: logits [B, V], uniforms [B], allowed [V] -> int32 [B]."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if rule.temperature == 0:
        return logits.argmax(-1).int()
    weights = logits - logits.amax(-1, keepdim=True)
    if rule.temperature != 1:
        weights /= rule.temperature
    weights.exp_()
    if rule.top_k or rule.top_p < 1:
        weights *= kept(logits, rule)
    return choose(weights, uniforms[:, None]).int()


def kept(logits: Array, rule: SamplingRule) -> Array:
    """Which tokens top-k and top-p keep, bool [B, V]: those above the last one's logit, and of its equals the first."""
    count = min(rule.top_k or logits.shape[1], logits.shape[1])
    ranked = logits.topk(count, dim=-1).values
    border, places = ranked[:, -1:], torch.tensor(count)
    if rule.top_p < 1:
        sums = ((ranked - ranked[:, :1]) / rule.temperature).exp().cumsum(-1, dtype=torch.float64)
        before = sums[:, :-1]
        places = 1 + (before < rule.top_p * sums[:, -1:]).sum(-1, keepdim=True)
        border = ranked.gather(-1, places - 1)
    above, equal = logits > border, logits == border
    return above | (equal & (equal.cumsum(-1) <= places - above.sum(-1, keepdim=True)))


def choose(weights: Array, uniforms: Array) -> Array:
    """The first token of each row at which the sum of the weights [B, V] exceeds uniform [B, 1] * total, int [B]. Of
    many rows and tokens, whole blocks are added up first, and tokens one by one in a single block of each row."""
    rows, V = weights.shape
    if rows == 1 or V <= BLOCK:
        sums = weights.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)[:, 0]
    whole = V // BLOCK * BLOCK
    blocks = weights[:, :whole].view(rows, -1, BLOCK).sum(-1), weights[:, whole:].sum(-1, keepdim=True)
    sums = torch.cat(blocks, dim=-1).cumsum(-1, dtype=torch.float64)
    goals = uniforms * sums[:, -1:]
    block = torch.searchsorted(sums, goals, right=True)
    places = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = weights.gather(-1, places.clamp(max=V - 1)).masked_fill_(places >= V, 0)
    passed = inside.cumsum(-1, dtype=torch.float64)
    goals = goals - torch.where(block > 0, sums.gather(-1, (block - 1).clamp(min=0)), 0)
    # Added up in another order, a block may hold a little less than was looked for.
    goals = torch.minimum(goals, passed[:, -1:] * BELOW_ONE)
    return (block * BLOCK + torch.searchsorted(passed, goals, right=True))[:, 0]


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
    written = []
    ended = torch.zeros_like(prompt_lengths, dtype=torch.bool)
    uniforms = uniforms.clamp(max=BELOW_ONE)
    for n, uniform in enumerate(uniforms.unbind(1)):
        token = draw(logits, uniform, rule, None if allowed is None else allowed[n])
        if forced is not None:
            token = torch.where(forced[:, n] >= 0, forced[:, n], token)
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
