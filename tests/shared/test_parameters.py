import numpy as np
import pytest

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.parameters import check_arrays, initial_parameters, parameter_shapes, state_shapes

V, H, E = 11, 48, 20


def model(**options):
    return ModelConfig(**{"hidden_size": H, "embedding_size": E, "num_layers": 2, **options})


def test_names_and_shapes_are_pytorchs():
    assert parameter_shapes(model(cell="gru"), V) == {
        "embedding.weight": (V, E),
        "rnn.weight_ih_l0": (3 * H, E),
        "rnn.weight_hh_l0": (3 * H, H),
        "rnn.bias_l0": (3 * H,),
        "rnn.bias_hn_l0": (H,),
        "rnn.weight_ih_l1": (3 * H, H),
        "rnn.weight_hh_l1": (3 * H, H),
        "rnn.bias_l1": (3 * H,),
        "rnn.bias_hn_l1": (H,),
        "decoder.weight": (V, H),
        "decoder.bias": (V,),
    }


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_one_hot_input_has_no_embedding(cell, gates):
    shapes = parameter_shapes(model(cell=cell, embedding_size=0), V)
    assert "embedding.weight" not in shapes
    assert shapes["rnn.weight_ih_l0"] == (gates * H, V)
    assert ("rnn.bias_hn_l0" in shapes) == (cell == "gru")


def test_state_has_a_cell_in_the_lstm_only():
    assert list(state_shapes(model(cell="lstm"), 3)) == ["hidden_l0", "cell_l0", "hidden_l1", "cell_l1"]
    assert state_shapes(model(cell="gru"), 3) == {"hidden_l0": (3, H), "hidden_l1": (3, H)}


def test_uniform_fills_its_bounds():
    values = initial_parameters(model(), V, 0)
    for name, value in values.items():
        if name != "embedding.weight":
            assert np.abs(value).max() <= 1 / np.sqrt(H)
            assert np.abs(value).max() > 0.7 / np.sqrt(H)
    assert values["rnn.weight_hh_l0"].std() == pytest.approx(1 / np.sqrt(3 * H), rel=0.02)
    assert values["embedding.weight"].std() == pytest.approx(0.1, rel=0.15)


def test_normal_is_small_and_has_no_biases():
    values = initial_parameters(model(initializer="normal"), V, 0)
    assert values["rnn.weight_hh_l0"].std() == pytest.approx(0.01, rel=0.02)
    assert not values["rnn.bias_l0"].any()


def test_xavier_counts_each_gate_alone():
    values = initial_parameters(model(initializer="xavier"), V, 0)
    bound = np.sqrt(6 / (E + H))
    assert 0.99 * bound < np.abs(values["rnn.weight_ih_l0"]).max() <= bound
    assert not values["decoder.bias"].any()


def test_values_depend_on_seed_and_name_alone():
    first, again, other = (initial_parameters(model(), V, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    one_layer = initial_parameters(model(num_layers=1), V, 5)
    assert np.array_equal(one_layer["decoder.weight"], first["decoder.weight"])
    assert not np.array_equal(first["rnn.weight_hh_l0"], first["rnn.weight_hh_l1"])


def test_check_arrays_names_everything_that_is_wrong():
    shapes = {"a": (2,), "b": (3, 1)}
    check_arrays("These", {"a": np.zeros(2), "b": np.zeros((3, 1))}, shapes)
    with pytest.raises(
        ParameterError, match=r"These .*a has shape \[3\], expected \[2\]; missing b \[3, 1\]; unexpected c"
    ):
        check_arrays("These", {"a": np.zeros(3), "c": np.zeros(1)}, shapes)
