import pytest

from shared.config import OptimizerConfig
from shared.errors import ConfigError
from shared.optimizers import clipped_layers, layer_of, rule, slot_shapes

NAMES = ["embedding.weight", "rnn.weight_ih_l0", "rnn.bias_hn_l0", "rnn.weight_ih_l12", "decoder.bias"]


def test_adam_keeps_pytorchs_two_moments_of_each_parameter():
    shapes = slot_shapes(OptimizerConfig(optimizer="adam"), {"a": (2, 3), "b": (4,)})
    assert shapes == {"exp_avg.a": (2, 3), "exp_avg.b": (4,), "exp_avg_sq.a": (2, 3), "exp_avg_sq.b": (4,)}


def test_plain_descent_keeps_nothing():
    assert slot_shapes(OptimizerConfig(optimizer="sgd"), {"a": (2, 3)}) == {}


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({"optimizer": "momentum"}, {"momentum_buffer": 0.0}),
        ({"optimizer": "adagrad", "initial_accumulator": 0.5}, {"sum": 0.5}),
        ({"optimizer": "rmsprop"}, {"square_avg": 0.0}),
        (
            {"optimizer": "rmsprop", "centered": True, "rmsprop_momentum": 0.1},
            {"grad_avg": 0.0, "square_avg": 0.0, "momentum_buffer": 0.0},
        ),
        ({"optimizer": "adamw"}, {"exp_avg": 0.0, "exp_avg_sq": 0.0}),
    ],
)
def test_slots_have_pytorchs_names_and_start_where_they_should(options, slots):
    assert rule(OptimizerConfig(**options)).slots == slots


def test_dialects_differ_where_the_libraries_do():
    def place(optimizer, dialect):
        return rule(OptimizerConfig(optimizer=optimizer, dialect=dialect)).place

    assert [place("rmsprop", each) for each in ("torch", "keras", "optax")] == ["outside", "inside", "inside"]
    assert [place("adam", each) for each in ("torch", "keras", "optax")] == ["outside", "uncorrected", "outside"]
    inside = [rule(OptimizerConfig(optimizer="momentum", dialect=each)).rate_inside for each in ("torch", "keras")]
    assert inside == [False, True]
    assert rule(OptimizerConfig(optimizer="adam")).weight_decay == 0


def test_each_parameter_belongs_to_a_layer():
    assert [layer_of(name) for name in NAMES] == ["embedding", "l0", "l0", "l12", "decoder"]


def test_layers_with_a_limit_and_their_parameters():
    optimizer = OptimizerConfig(clip_layers=("l0=0.5", "decoder=2"))
    assert clipped_layers(optimizer, NAMES) == [(0.5, ["rnn.weight_ih_l0", "rnn.bias_hn_l0"]), (2.0, ["decoder.bias"])]


def test_an_unknown_layer_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no layer l7; this model has embedding, l0, l12, decoder"):
        clipped_layers(OptimizerConfig(clip_layers=("l7=1",)), NAMES)
