"""Measures of a model on held-out text, and the yardstick every one of them must beat."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """Sums over a text; everything reported follows from them."""

    nats: float
    tokens: int
    hits: int
    characters: int
    """Characters of text that the tokens stand for, the unit in which vocabularies can be compared."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): as good as guessing among so many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_character(self) -> float:
        return self.nats / (self.characters * math.log(2))

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the likeliest of all."""
        return self.hits / self.tokens


def unigram_loss(training: np.ndarray, held_out: np.ndarray) -> float:
    """Nats per token of the model that knows only how often each token occurs: counts [V] of the training and of the
    held-out text; one is added to each of the former, since a token may occur in the held-out text alone."""
    counts = training + 1.0
    return float(-(np.log(counts / counts.sum()) @ held_out) / held_out.sum())
