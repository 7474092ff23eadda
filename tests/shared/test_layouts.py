"""Native layouts come back number for number, and hold what the libraries put there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import ModelConfig
from shared.errors import ParameterError
from shared.layouts import LAYOUTS, Network, from_layers, layer_shapes, to_layers
from shared.parameters import parameter_shapes

V, H, E = 11, 3, 5
VARIANTS: dict[str, dict] = {"rnn": {}, "lstm": {}, "gru": {}, "gru-before": {"cell": "gru", "gru_reset": "before"}}


def model(variant="lstm", **options) -> ModelConfig:
    usual = {"cell": variant, "hidden_size": H, "embedding_size": E, "num_layers": 2}
    return ModelConfig(**usual | VARIANTS[variant] | options)


def parameters(config, size=V, seed=0, dtype=np.float64):
    numbers = np.random.default_rng(seed)
    return {name: numbers.normal(size=shape).astype(dtype) for name, shape in parameter_shapes(config, size).items()}


def fits(layout, variant):
    return layout == "keras" or variant != "gru-before"


def prepared(layout, config, **options):
    """Random parameters that the layout has room for."""
    given = parameters(config, **options)
    for name in given:
        if layout.startswith("nnx") and "bias_hn" in name:
            given[name][:] = 0
    return given


def assert_same(left, right):
    assert list(left) == list(right)
    for name, each in left.items():
        assert each.dtype == right[name].dtype
        assert each.flags.c_contiguous
        np.testing.assert_array_equal(each, right[name], strict=True)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    variant=st.sampled_from(list(VARIANTS)),
    sizes=st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 6)),
    flags=st.tuples(st.booleans(), st.booleans(), st.sampled_from([np.float32, np.float64])),
    seed=st.integers(0, 99),
)
def test_there_and_back_nothing_changes(layout, variant, sizes, flags, seed):
    (hidden, embedding, layers, size), (residual, tied, dtype) = sizes, flags
    tied = tied and hidden == embedding
    options = {"hidden_size": hidden, "embedding_size": embedding, "num_layers": layers}
    config = model(variant if fits(layout, variant) else "gru", **options, residual=residual, tied_weights=tied)
    given = prepared(layout, config, size=size, seed=seed, dtype=dtype)
    native = to_layers(layout, config, given)
    assert {name: each.shape for name, each in native.items()} == layer_shapes(layout, config, size)
    assert all(each.flags.c_contiguous and each.dtype == dtype for each in native.values())
    assert_same(from_layers(layout, config, native), given)


def test_torch_has_its_own_names_and_two_biases():
    given = parameters(model("gru"))
    native = to_layers("torch", model("gru"), given)
    assert list(native) == [
        "embedding.weight",
        *(f"rnn.{field}_l{k}" for k in (0, 1) for field in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        "decoder.weight",
        "decoder.bias",
    ]
    np.testing.assert_array_equal(native["rnn.bias_ih_l1"], given["rnn.bias_l1"])
    np.testing.assert_array_equal(native["rnn.bias_hh_l1"], [*np.zeros(2 * H), *given["rnn.bias_hn_l1"]])


def test_back_from_two_biases_comes_their_sum():
    native = to_layers("torch", model("lstm"), parameters(model("lstm")))
    native["rnn.bias_hh_l0"] = np.arange(4.0 * H)
    found = from_layers("torch", model("lstm"), native)["rnn.bias_l0"]
    np.testing.assert_array_equal(found, native["rnn.bias_ih_l0"] + np.arange(4.0 * H))


@pytest.mark.parametrize("layout", ["torch", "keras"])
def test_of_a_grus_second_bias_the_candidates_block_stays_apart(layout):
    config, second = model("gru", num_layers=1), np.arange(1.0, 3 * H + 1)
    native = to_layers(layout, config, parameters(config))
    first = from_layers(layout, config, native)["rnn.bias_l0"]
    if layout == "torch":
        native["rnn.bias_hh_l0"] = second
    else:
        native["rnn_0.bias"][1] = second[[*range(H, 2 * H), *range(H), *range(2 * H, 3 * H)]]  # z r n
    found = from_layers(layout, config, native)
    np.testing.assert_allclose(found["rnn.bias_l0"], np.add(first, [*second[: 2 * H], *np.zeros(H)]))
    np.testing.assert_array_equal(found["rnn.bias_hn_l0"], second[2 * H :])


@pytest.mark.parametrize("variant", ["gru", "gru-before"])
def test_keras_grus_begin_with_the_update_gate(variant):
    config = model(variant, num_layers=1)
    given = parameters(config)
    kernel = to_layers("keras", config, given)["rnn_0.kernel"]
    blocks = given["rnn.weight_ih_l0"].reshape(3, H, E)  # r z n
    np.testing.assert_array_equal(kernel.reshape(E, 3, H).transpose(1, 2, 0), blocks[[1, 0, 2]])


@pytest.mark.parametrize(("cell", "gates"), [("lstm", "ifgo"), ("gru", "rzn")])
def test_linen_has_a_kernel_for_each_gate(cell, gates):
    config = model(cell, num_layers=1)
    given = parameters(config)
    native = to_layers("linen", config, given)
    for gate, w, u in zip(
        gates, *(np.split(given[f"rnn.weight_{each}_l0"], len(gates)) for each in ("ih", "hh")), strict=True
    ):
        np.testing.assert_array_equal(native[f"rnn_0.cell.i{gate}.kernel"], w.T)
        np.testing.assert_array_equal(native[f"rnn_0.cell.h{gate}.kernel"], u.T)


@pytest.mark.parametrize("layout", ["torch", "keras", "linen", "nnx"])
def test_a_permuted_gate_is_not_the_same_network(layout):
    """Had a mapping another order of the gates, some gate would come back as another."""
    config = model("lstm", num_layers=1)
    given = parameters(config)
    permuted = {**given, "rnn.weight_hh_l0": given["rnn.weight_hh_l0"].reshape(4, H, H)[[1, 0, 2, 3]].reshape(4 * H, H)}
    left, right = (to_layers(layout, config, each) for each in (given, permuted))
    changed = {name for name in left if not np.array_equal(left[name], right[name])}
    whole = {"torch": {"rnn.weight_hh_l0"}, "keras": {"rnn_0.recurrent_kernel"}}
    assert changed == whole.get(layout, {"rnn_0.cell.hi.kernel", "rnn_0.cell.hf.kernel"})


def test_nnx_writes_if_with_an_underscore():
    given = parameters(model())
    assert "rnn_0.cell.if_.kernel" in to_layers("nnx", model(), given)
    assert "rnn_0.cell.if.kernel" in to_layers("linen", model(), given)
    assert "rnn_0.cell.dense_h.bias" in to_layers("nnx-optimized", model(), given)


def test_tied_weights_stand_twice_and_must_be_equal():
    config = model(embedding_size=H, tied_weights=True)
    native = to_layers("keras", config, parameters(config))
    np.testing.assert_array_equal(native["decoder.kernel"], native["embedding.embeddings"].T)
    native["decoder.kernel"][0, 0] += 1
    with pytest.raises(ParameterError, match="tied, but the decoder's differ"):
        from_layers("keras", config, native)


def test_absent_biases_are_zero():
    config = model("gru")
    native = to_layers("torch", config, parameters(config, dtype=np.float32))
    bare = {name: each for name, each in native.items() if "bias" not in name}
    found = from_layers("torch", config, bare)
    zero = {name for name, each in found.items() if not each.any()}
    assert zero == {name for name in found if "bias" in name}
    assert {each.dtype for each in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_has_no_native_layer_is_refused_with_the_reason(layout):
    wrnn = ModelConfig(cell="wrnn", hidden_size=H, embedding_size=E)
    with pytest.raises(ParameterError, match="no layer for the wrnn"):
        to_layers(layout, wrnn, parameters(wrnn))
    before = model("gru-before")
    if layout == "keras":
        assert to_layers(layout, before, parameters(before))["rnn_0.bias"].shape == (3 * H,)
    else:
        with pytest.raises(ParameterError, match=r"resets after the product, this one before.*\.keras"):
            to_layers(layout, before, parameters(before))


@pytest.mark.parametrize("layout", ["nnx", "nnx-optimized"])
def test_nnx_has_no_bias_within_the_reset_product(layout):
    with pytest.raises(ParameterError, match=r"nnx.GRUCell has no bias.*bias_hn_l0.*linen"):
        to_layers(layout, model("gru"), parameters(model("gru")))


def test_misfits_are_named():
    native = to_layers("torch", model(), parameters(model()))
    native["rnn.weight_hh_l1"] = native["rnn.weight_hh_l1"][:, :2]
    native["attention"] = native.pop("rnn.weight_ih_l0")
    with pytest.raises(
        ParameterError, match=r"PyTorch's layers .*missing rnn.weight_ih_l0.*shape.*unexpected attention"
    ):
        from_layers("torch", model(), native)


def test_a_network_says_what_it_is():
    network = Network("torch", model(), V, {"decoder.bias": "fc.bias"})
    assert (network.layout, network.size) == ("torch", V)
