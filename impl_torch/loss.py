"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]; or [N, V] and
[N], of the unmasked."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from impl_torch.arrays import Array
from shared.contract import Batch


def token_nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, by log-sum-exp."""
    return cross_entropy(logits.flatten(0, -2), targets.flatten().long(), reduction="none").view(targets.shape)


def mean_nats(logits: Array, targets: Array, mask: Array, count: Array | None = None) -> Array:
    """Nats per unmasked token; where these are some rows of a batch, their share of it: `count` is the batch's."""
    return (token_nats(logits, targets) * mask).sum() / (mask.sum() if count is None else count)


def score(logits: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Summed nats in float64, unmasked tokens, hits."""
    nats = (token_nats(logits, targets) * mask).sum(dtype=torch.float64)
    return nats, mask.sum(), ((logits.argmax(-1) == targets) & mask).sum()


def predictions(outputs: Array, batch: Batch, many_to_one: bool) -> tuple[Array, Array, Array]:
    """Which outputs [T, B, H] predict, their targets and mask; of a many-to-one model only the last unmasked, T = 1."""
    if not many_to_one:
        return outputs, batch.targets.T, batch.mask.T
    return outputs[last_steps(batch)][None], batch.targets[None], batch.mask.any(1)[None]


def unmasked(chosen: Array, targets: Array, mask: Array, rows: Array | None) -> tuple[Array, Array, Array]:
    """The outputs [N, H], targets [N] and mask [N] at `rows` of the flat [T, B]: no logits are computed of the others.
    None: all, as they are."""
    if rows is None:
        return chosen, targets, mask
    return chosen.flatten(0, 1).index_select(0, rows), targets.flatten()[rows], mask.flatten()[rows]


def last_steps(batch: Batch) -> Any:
    """Index into [T, B] of the last unmasked step of each row; the first step where there is none."""
    last = (batch.mask.sum(1) - 1).clamp(min=0)
    return last, torch.arange(len(last), device=last.device)
