import numpy as np

from shared.config import SamplingConfig
from shared.sampling import SamplingRule, sampling_rule, sampling_uniforms


def test_a_row_depends_on_neither_the_others_nor_the_length():
    many, few = sampling_uniforms(3, 5, 40), sampling_uniforms(3, 2, 9)
    assert many.shape == (5, 40)
    assert np.array_equal(many[:2, :9], few)
    assert len(np.unique(many)) == many.size


def test_the_rule_is_what_the_options_say():
    options = SamplingConfig(temperature=0.7, top_k=4, top_p=0.9)
    assert sampling_rule(options, 3) == SamplingRule(temperature=0.7, top_k=4, top_p=0.9, end=3)
    assert sampling_rule(SamplingConfig()).end == -1
    assert SamplingRule() == (1.0, 0, 1.0, -1)  # the distribution as it is, to no end
