"""Where a float32 model writes another token than the reference from the same uniform: near-ties, which rounding
explains, told from mistakes, which it does not.

Rounding moves each logit a little. `reach` is how far all of them must move for the rule of `shared.sampling` to draw
the other token; a difference is a near-tie if that is no more than rounding can do. Only the first difference of a row
is judged: what comes after has read other tokens.
"""

from typing import NamedTuple

import numpy as np

from shared.config import Dtype, ModelConfig
from shared.contract import Array, LanguageModel
from shared.sampling import SamplingRule

MEMORY = 6
"""Steps whose rounding a state still feels: gates forget, so errors do not grow with the length of a text."""


class Writing(NamedTuple):
    """What `LanguageModel.generate` takes."""

    prompt: Array
    prompt_lengths: Array
    uniforms: Array
    rule: SamplingRule
    forced: Array | None = None
    allowed: Array | None = None


class Difference(NamedTuple):
    """The first token of a row that differs, and why it may."""

    row: int
    place: int
    """Among the tokens written, from 0."""
    expected: int
    got: int
    expected_logit: float
    """In the reference, as the next."""
    got_logit: float
    gap: float
    """What `reach` says, in units in the last place of the greatest logit."""
    bound: float
    """What rounding explains, in the same units."""

    @property
    def near_tie(self) -> bool:
        return self.gap <= self.bound


def differences(
    reference: LanguageModel, config: ModelConfig, writing: Writing, expected: Array, got: Array, dtype: Dtype
) -> list[Difference]:
    """The first difference of each row of two texts, tokens [B, N], of which `reference`, in float64, wrote the one and
    a model in `dtype` the other."""
    found = []
    for row, place in first_differences(expected, got):
        logits = logits_before(reference, writing, expected, row, place)
        right, other = int(expected[row, place]), int(got[row, place])
        greatest = np.abs(logits).max()
        unit = float(np.spacing(np.dtype(dtype).type(greatest)))
        gap = distance(logits, writing, row, place, other) / unit
        bound = float(rounding(config, dtype) * greatest) / unit
        found.append(Difference(row, place, right, other, float(logits[right]), float(logits[other]), gap, bound))
    return found


def first_differences(expected: Array, got: Array) -> list[tuple[int, int]]:
    """(row, place) of the first difference of each row that has one."""
    unequal = expected != got
    return [(int(row), int(unequal[row].argmax())) for row in np.flatnonzero(unequal.any(1))]


def logits_before(reference: LanguageModel, writing: Writing, written: Array, row: int, place: int) -> Array:
    """Logits [V] from which a token was drawn."""
    read = writing.prompt[row, : writing.prompt_lengths[row]], written[row, :place]
    logits, _ = reference.logits(np.concatenate(read).astype(np.int32)[None], reference.initial_state(1))
    return logits.reshape(-1, logits.shape[-1])[-1]


def rounding(config: ModelConfig, dtype: Dtype) -> float:
    """The largest error of a logit, relative to the greatest, that rounding explains: each of the steps that a state
    remembers adds, in each layer, about 2 H rounded products, n in all. Errors of either sign add up to less than
    4 sqrt(n) roundings of half a unit (Higham and Mary 2019)."""
    count = MEMORY * config.num_layers * 2 * config.hidden_size
    return 2 * float(np.sqrt(count) * np.finfo(dtype).eps)


def distance(logits: Array, writing: Writing, row: int, place: int, token: int) -> float:
    """`reach` at a place of a text; infinite where the token was not free."""
    forced = writing.forced is not None and writing.forced[row, place] >= 0
    allowed = None if writing.allowed is None else writing.allowed[place]
    if forced or not (allowed is None or allowed[token]):
        return np.inf
    scores = logits if allowed is None else np.where(allowed, logits, -np.inf)
    return reach(scores, float(writing.uniforms[row, place]), writing.rule, token)


def reach(scores: Array, uniform: float, rule: SamplingRule, token: int) -> float:
    """The least d such that the rule may draw `token` when no logit moves by more than d; scores [V]."""
    if rule.temperature == 0:
        return float(scores.max() - scores[token]) / 2
    low, high = -60.0, float(np.log2(np.ptp(scores[np.isfinite(scores)]) + 1)) + 8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reachable(scores, uniform, rule, token, 2.0**middle) else (middle, high)
    return float(2.0**high)


def reachable(scores: Array, uniform: float, rule: SamplingRule, token: int, moved: float) -> bool:
    """Whether the rule may draw the token when logits move by at most `moved`.

    Sums of weights exp(l / temperature) change by a factor of at most exp(2 moved / temperature) against each other;
    tokens no further than 2 moved apart may change places, so that some are kept surely and more maybe. The token is
    drawn if those kept before it hold no more than the share `uniform`, and with it they hold more.
    """
    weights = np.exp((scores - scores.max()) / rule.temperature)
    factor = float(np.exp(min(2 * moved / rule.temperature, 700.0)))
    surely, maybe = kept(scores, weights, rule, moved, factor)
    if not maybe[token]:
        return False
    (least_before, most_before), (least_after, most_after) = (
        [float(weights[side][some[side]].sum()) for some in (surely, maybe)]
        for side in (slice(token), slice(token + 1, None))
    )
    return least_before * (1 - uniform) <= uniform * (weights[token] + most_after) * factor and (
        uniform * least_after <= (1 - uniform) * (weights[token] + most_before) * factor
    )


def kept(scores: Array, weights: Array, rule: SamplingRule, moved: float, factor: float) -> tuple[Array, Array]:
    """Which tokens top-k and top-p keep however logits move, and which they may keep."""
    falling, held = np.sort(-scores), np.concatenate([[0.0], np.cumsum(np.sort(weights)[::-1])])
    fewest = falling.searchsorted(-scores - 2 * moved, "left")  # that stand before each token
    most = falling.searchsorted(-scores + 2 * moved, "right") - 1
    top_k = min(rule.top_k or len(scores), len(scores))
    surely, maybe = most < top_k, fewest < top_k
    if rule.top_p < 1:
        share = rule.top_p * held[top_k]  # the likeliest top_k, whichever they are, hold this but for half the factor
        surely &= (held[most + 1] - weights) * factor < share
        maybe &= held[fewest] < share * factor
    return surely, maybe
