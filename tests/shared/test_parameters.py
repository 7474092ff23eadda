import numpy as np
import pytest

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.parameters import check_arrays, parameter_shapes, state_shapes

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


def test_check_arrays_names_everything_that_is_wrong():
    shapes = {"a": (2,), "b": (3, 1)}
    check_arrays("These", {"a": np.zeros(2), "b": np.zeros((3, 1))}, shapes)
    with pytest.raises(
        ParameterError, match=r"These .*a has shape \[3\], expected \[2\]; missing b \[3, 1\]; unexpected c"
    ):
        check_arrays("These", {"a": np.zeros(3), "c": np.zeros(1)}, shapes)
