"""Cross-entropy from logits, in nats, with masks. Axes: logits [T, B, V], targets and mask [T, B]."""

from typing import Any

import numpy as np

from impl_numpy.arrays import Array, pieces
from shared.contract import Batch


def token_nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, by log-sum-exp."""
    shifted = logits - logits.max(-1, keepdims=True)
    picked = np.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return np.log(np.exp(shifted).sum(-1)) - picked


def mean_nats_backward(logits: Array, targets: Array, count: Array) -> tuple[Array, Array]:
    """What unmasked tokens [N], of so many in all, add to the mean nats, and the gradient at their logits [N, V], which
    it overwrites: (softmax - one-hot) / count."""
    nats = np.empty_like(logits, shape=len(logits))
    share = 1 / np.maximum(count, 1).astype(logits.dtype)
    for piece in pieces(logits):
        rows = logits[piece]
        picks = np.arange(len(rows), like=rows), targets[piece]
        rows -= rows.max(-1, keepdims=True)
        picked = rows[picks]
        np.exp(rows, out=rows)
        sums = rows.sum(-1)
        nats[piece] = np.log(sums) - picked
        rows *= (share / sums)[:, None]
        rows[picks] -= share
    return nats.sum() / count, logits


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


def unmasked(chosen: Array, targets: Array, mask: Array) -> tuple[Array, Array, Array]:
    """The outputs [N, H] that weigh something, their targets and mask [N]: no logits are computed of the others."""
    if mask.all():
        return chosen.reshape(-1, chosen.shape[-1]), targets.reshape(-1), mask.reshape(-1)
    return chosen[mask], targets[mask], mask[mask]


def unmasked_backward(d_rows: Array, mask: Array) -> Array:
    """Gradient at all chosen outputs [T, B, H], zero where masked."""
    if mask.all():
        return d_rows.reshape(*mask.shape, -1)
    d_chosen = np.zeros_like(d_rows, shape=(*mask.shape, d_rows.shape[1]))
    d_chosen[mask] = d_rows
    return d_chosen


def last_steps(batch: Batch) -> Any:
    """Index into [T, B] of the last unmasked step of each row; the first step where there is none."""
    last = np.maximum(batch.mask.sum(1) - 1, 0)
    return last, np.arange(len(last), like=last)
