"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]."""

import torch
from torch.nn.functional import cross_entropy

from impl_torch.arrays import Array


def token_nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, by log-sum-exp."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none").view(targets.shape)


def mean_nats(logits: Array, targets: Array, mask: Array) -> Array:
    """Nats per unmasked token."""
    return (token_nats(logits, targets) * mask).sum() / mask.sum()


def score(logits: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Summed nats in float64, unmasked tokens, hits."""
    nats = (token_nats(logits, targets) * mask).sum(dtype=torch.float64)
    return nats, mask.sum(), ((logits.argmax(-1) == targets) & mask).sum()
