"""A file's arrays are understood by their shapes, or refused with a reason: never half."""

import numpy as np
import pytest

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.layouts import LAYOUTS, from_layers, to_layers
from shared.parameters import parameter_shapes
from shared.recognition import recognise

V, H, E = 11, 3, 5


def of(*shapes):
    numbers = np.random.default_rng(0)
    return {name: numbers.normal(size=shape) for name, shape in shapes}


def stack(prefix="lstm.", gates=4, layers=2, inputs=E, hidden=H, biases=True):
    found = {}
    for k in range(layers):
        found[f"{prefix}weight_ih_l{k}"] = (gates * hidden, inputs if not k else hidden)
        found[f"{prefix}weight_hh_l{k}"] = (gates * hidden, hidden)
        if biases:
            found |= {f"{prefix}bias_{side}_l{k}": (gates * hidden,) for side in ("ih", "hh")}
    return of(*found.items())


def ends(table="encoder.weight", decoder="fc", hidden=H, size=V, width=E):
    shapes = {f"{decoder}.weight": (size, hidden), f"{decoder}.bias": (size,)}
    return of(*(({table: (size, width)} if table else {}) | shapes).items())


@pytest.mark.parametrize(("gates", "cell"), [(1, "rnn"), (3, "gru"), (4, "lstm")])
@pytest.mark.parametrize("prefix", ["", "lstm.", "module.encoder.rnn."])
def test_shapes_tell_the_cell_whatever_the_prefix(gates, cell, prefix):
    network = recognise("torch", stack(prefix, gates) | ends())
    assert network.model == ModelConfig(cell=cell, hidden_size=H, num_layers=2, embedding_size=E)
    assert network.size == V
    assert network.names["rnn.weight_hh_l1"] == f"{prefix}weight_hh_l1"
    assert network.names["embedding.weight"] == "encoder.weight"
    assert network.names["decoder.bias"] == "fc.bias"


@pytest.mark.parametrize("library", ["torch", "keras", "flax"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("options", [{}, {"embedding_size": 0, "residual": True}, {"num_layers": 12, "residual": True}])
def test_what_layouts_writes_is_understood(library, cell, options):
    model = ModelConfig(**{"cell": cell, "hidden_size": H, "num_layers": 2, "embedding_size": E} | options)
    given = of(*parameter_shapes(model, V).items())
    for layout in (each for each in LAYOUTS if each == library or (library == "flax" and each in ("linen", "nnx"))):
        if layout == "nnx":
            given |= {name: each * 0 for name, each in given.items() if "bias_hn" in name}
        native = to_layers(layout, model, given)
        prefixed = {f"params.{name}": each for name, each in native.items()} if library == "flax" else native
        network = recognise(library, prefixed)
        assert network.model == model
        assert network.layout == layout
        again = from_layers(layout, model, {name: prefixed[there] for name, there in network.names.items()})
        for name, each in given.items():
            np.testing.assert_array_equal(again[name], each)


def test_modules_in_a_row_are_one_stack():
    arrays = (
        stack("lstm.", layers=1) | stack("lstm2.", layers=1, inputs=H) | stack("lstm10.", layers=1, inputs=H) | ends()
    )
    network = recognise("torch", arrays)
    assert network.model.num_layers == 3
    assert network.names["rnn.weight_ih_l1"] == "lstm2.weight_ih_l0"
    assert network.names["rnn.weight_ih_l2"] == "lstm10.weight_ih_l0"


def test_without_embedding_the_input_is_one_hot():
    network = recognise("torch", stack(inputs=V) | ends(table=""))
    assert network.model.embedding_size == 0


def test_biases_may_be_absent():
    arrays = stack(biases=False) | of(("embed.weight", (V, E)), ("out.weight", (V, H)))
    network = recognise("torch", arrays)
    assert set(network.names.values()) == set(arrays)


def test_names_decide_between_arrays_of_one_shape():
    arrays = stack(inputs=H) | of(("token_embedding.weight", (V, H)), ("out.weight", (V, H)))
    assert recognise("torch", arrays).names["decoder.weight"] == "out.weight"
    twins = stack(inputs=H) | of(("a.weight", (V, H)), ("b.weight", (V, H)))
    with pytest.raises(
        ParameterError, match=r"a.weight \[11, 3\], b.weight \[11, 3\].*name them embedding and decoder"
    ):
        recognise("torch", twins)


def test_equal_arrays_are_tied_weights():
    arrays = stack(inputs=H) | ends("embedding.weight", width=H)
    assert not recognise("torch", arrays).model.tied_weights
    assert recognise("torch", arrays | {"fc.weight": arrays["embedding.weight"].copy()}).model.tied_weights


def test_options_say_what_no_array_says():
    network = recognise("torch", stack(gates=1) | ends(), nonlinearity="relu", many_to_one=True)
    assert (network.model.nonlinearity, network.model.many_to_one) == ("relu", True)


def test_like_another_model():
    like = ModelConfig(
        cell="lstm", hidden_size=H, num_layers=2, embedding_size=E, embedding_activation="tanh", dropout=0.1
    )
    assert recognise("torch", stack() | ends(), like).model == like
    with pytest.raises(ParameterError, match="its num_layers is 3, and that of --like 2"):
        recognise("torch", stack(layers=3) | ends(), like)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (stack() | of(("lstm.weight_ih_l0_reverse", (4 * H, E))) | ends(), "runs backwards"),
        (stack() | of(("lstm.weight_hr_l0", (2, H))) | ends(), "proj_size"),
        (stack() | ends() | of(("norm.weight", (H,))), r"norm.weight \[3\]"),
        (stack() | ends() | of(("attention.weight", (H, H))), "attention"),
        (stack() | of(("fc.weight", (V, H))), r"there is fc.weight \[11, 3\]"),
        (stack(), "there is nothing"),
        (stack("encoder.") | stack("decoder.") | ends(), r"several recurrent modules \(decoder, encoder\)"),
        (
            stack("a1.") | stack("a2.", gates=3, inputs=H) | ends(),
            "not alike: the first is lstm with 3 units, number 3",
        ),
        (stack(gates=2) | ends(), "no rnn, gru or lstm has arrays of such shapes"),
        ({name: each for name, each in stack(layers=3).items() if "l1" not in name} | ends(), "layers 0, 2"),
        (ends(), "no recurrent layer of Torch"),
        (stack() | ends() | {"steps": np.array([3])}, "steps holds int64"),
        (stack() | ends() | {"empty.weight": np.zeros((0, 2))}, "empty.weight holds nothing"),
    ],
)
def test_what_is_not_understood_is_refused(arrays, reason):
    with pytest.raises(ParameterError, match=f"This network is not understood: .*{reason}"):
        recognise("torch", arrays)


def test_a_keras_gru_without_biases_does_not_say_where_it_resets():
    arrays = of(("gru.kernel", (V, 3 * H)), ("gru.recurrent_kernel", (H, 3 * H)), ("dense.kernel", (H, V)))
    with pytest.raises(ParameterError, match="no bias, which would tell where it resets"):
        recognise("keras", arrays)
    assert recognise("keras", arrays, gru_reset="before").model.gru_reset == "before"
