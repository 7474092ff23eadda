"""Every gradient by hand against finite differences of the loss, in float64."""

import pytest

from runner.examination import CASES, Examinee, make_case


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_slopes_of_the_loss(name):
    assert Examinee("numpy", "cpu").finite_differences(make_case(name, CASES[name])) <= 1e-8
