"""Every gradient by hand against finite differences of the loss, in float64."""

import pytest

from impl_numpy import unroll
from runner.examination.cases import CASES, make_case, whole_grid
from runner.examination.examinee import Examinee


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_slopes_of_the_loss(name):
    assert Examinee("numpy", "cpu").finite_differences(make_case(name, CASES[name])) <= 1e-8


def test_a_kink_between_the_points_is_no_mistake_and_hides_none(monkeypatch):
    name = "rnn relu, 2 layers, embedding, residual, many-to-one"
    examinee, case = Examinee("numpy", "cpu"), make_case(name, whole_grid()[name])
    assert examinee.finite_differences(case) <= 1e-8
    monkeypatch.setattr("runner.examination.examinee.SHORTER", (1e-3,))
    assert examinee.finite_differences(case) > 1e-5
    monkeypatch.undo()
    right = unroll.CELLS["rnn-relu"]
    wrong = right._replace(step_backward=lambda *given: doubled(right.step_backward(*given)))
    monkeypatch.setitem(unroll.CELLS, "rnn-relu", wrong)
    assert examinee.finite_differences(case) > 1e-3


def doubled(found):
    d_projected, d_recurrent, d_state = found
    return 2 * d_projected, d_recurrent, d_state
