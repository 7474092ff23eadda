"""The sampling rule, the same in every implementation:

1. Kept are all tokens that `allowed` does not forbid; with top_k, of these the first so many in descending order of
   their logits, ties by the lower token; with top_p, of these, renormalised, each whose predecessors in that order hold
   less than top_p (the first always). Only where one of the two is asked for is there anything to sort.
2. A kept token weighs exp((l - max) / temperature), any other nothing; in the logits' own precision.
3. Add the weights up in the order of the tokens, in float64, and take the first token whose sum exceeds
   uniform * total.

Temperature 0 takes the greatest allowed logit, ties to the lowest token, and needs no uniform. A forced token replaces
the drawn one. A row that has written `end` repeats it.
"""

from typing import NamedTuple

import numpy as np

from shared.config import SamplingConfig
from shared.random_bits import uniforms

BELOW_ONE = 1 - 2.0**-52
"""The greatest share that surely comes out less than the whole when it is multiplied with it."""
BLOCK = 128
"""Tokens whose weights are added up together."""


class SamplingRule(NamedTuple):
    """What the rule needs to know beside the logits; plain numbers, so that a new value compiles nothing anew."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all
    end: int = -1  # the token after which a row repeats itself; -1: none


def sampling_rule(config: SamplingConfig, end: int = -1) -> SamplingRule:
    """The rule that a configuration asks for."""
    return SamplingRule(config.temperature, config.top_k, config.top_p, end)


def sampling_uniforms(seed: int, rows: int, length: int, first: int = 0) -> np.ndarray:
    """float64 [rows, length] of the rows first, first + 1, ...; a row's numbers depend on neither the other rows nor
    the length."""
    return np.stack([uniforms(seed, f"sample.{row}", length) for row in range(first, first + rows)])
