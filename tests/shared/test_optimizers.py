from shared.config import OptimizerConfig
from shared.optimizers import SLOTS, slot_shapes


def test_adam_keeps_pytorchs_two_moments_of_each_parameter():
    shapes = slot_shapes(OptimizerConfig(optimizer="adam"), {"a": (2, 3), "b": (4,)})
    assert shapes == {"exp_avg.a": (2, 3), "exp_avg.b": (4,), "exp_avg_sq.a": (2, 3), "exp_avg_sq.b": (4,)}


def test_plain_descent_keeps_nothing():
    assert slot_shapes(OptimizerConfig(optimizer="sgd"), {"a": (2, 3)}) == {}
    assert SLOTS["sgd"] == ()
