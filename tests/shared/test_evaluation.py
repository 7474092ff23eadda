import math

import numpy as np
import pytest

from shared.evaluation import Score, unigram_loss


def test_everything_follows_from_the_sums():
    score = Score(nats=20.0, tokens=10, hits=4, characters=8)
    assert score.loss == 2.0
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.bits_per_character == pytest.approx(20 / 8 / math.log(2))
    assert score.accuracy == 0.4


def test_a_hopeless_model_has_a_perplexity_that_can_be_printed():
    assert math.isfinite(Score(nats=1e6, tokens=10, hits=0, characters=10).perplexity)


def test_the_unigram_model_knows_frequencies_alone():
    training, held_out = np.array([3, 1, 0]), np.array([1, 2, 1])  # how often each of three tokens occurs
    shares = np.array([4, 2, 2, 1]) / 7
    assert unigram_loss(training, held_out) == pytest.approx(-np.log(shares).mean())
