"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]."""

from typing import Any

import numpy as np

from impl_numpy.arrays import Array
from shared.contract import Batch


def token_nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, by log-sum-exp."""
    shifted = logits - logits.max(-1, keepdims=True)
    picked = np.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return np.log(np.exp(shifted).sum(-1)) - picked


def mean_nats(logits: Array, targets: Array, mask: Array) -> Array:
    """Nats per unmasked token."""
    return (token_nats(logits, targets) * mask).sum() / mask.sum()


def mean_nats_backward(logits: Array, targets: Array, mask: Array) -> Array:
    """Gradient of mean_nats at the logits: (softmax - one-hot) / tokens where unmasked, else 0."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    d_logits = exponentials / exponentials.sum(-1, keepdims=True)
    rows = d_logits.reshape(targets.size, -1)
    rows[np.arange(targets.size, like=rows), targets.reshape(-1)] -= 1
    return d_logits * (mask / mask.sum(dtype=logits.dtype))[..., None].astype(logits.dtype)


def score(logits: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Summed nats in float64, unmasked tokens, hits."""
    nats = (token_nats(logits, targets) * mask).sum(dtype=np.float64)
    return nats, mask.sum(), ((logits.argmax(-1) == targets) & mask).sum()


def predictions(outputs: Array, batch: Batch, many_to_one: bool) -> tuple[Array, Array, Array]:
    """Which outputs [T, B, H] predict, their targets and mask; of a many-to-one model only the last unmasked, T = 1."""
    if not many_to_one:
        return outputs, batch.targets.T, batch.mask.T
    return outputs[last_steps(batch)][None], batch.targets[None], batch.mask.any(1)[None]


def predictions_backward(d_chosen: Array, outputs: Array, batch: Batch, many_to_one: bool) -> Array:
    """Gradient at all outputs, zero at those that predict nothing."""
    if not many_to_one:
        return d_chosen
    d_outputs = np.zeros_like(outputs)
    d_outputs[last_steps(batch)] = d_chosen[0]
    return d_outputs


def last_steps(batch: Batch) -> Any:
    """Index into [T, B] of the last unmasked step of each row; the first step where there is none."""
    last = np.maximum(batch.mask.sum(1) - 1, 0)
    return last, np.arange(len(last), like=last)
