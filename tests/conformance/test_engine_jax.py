"""What only JAX has: cuDNN's weights in one vector, and its precisions."""

import re

import numpy as np
import pytest

from runner.examination import CASES, Examinee, H, at, make_case, small
from runner.registry import create_model
from shared.config import OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError

CASE = make_case("lstm", CASES["lstm"])


def make(dtype="float32", engine="scratch", model=CASE.model, device="cpu"):
    made = create_model("jax", model, OptimizerConfig(), 11, RuntimeConfig(engine, device, dtype))
    made.load_parameters(CASE.parameters)
    return made


@pytest.mark.parametrize("layer", [0, 1])
def test_cudnns_weights_are_packed_as_it_reads_them(layer):
    """lstm_ref is cuDNN's mathematics on any device, once JAX has unpacked the vector as cuDNN reads it."""
    from jax.experimental import rnn

    from impl_jax.native import lstm_through
    from impl_jax.unroll import cell_of, layer_weights, unroll

    make("float64")  # x64 on
    cell = cell_of(CASE.model)
    arrays = {name: np.asarray(value) for name, value in CASE.parameters.items()}
    weights = layer_weights(cell, arrays, layer)
    random = np.random.default_rng(2)
    inputs = random.normal(size=(6, 3, weights.weight_ih.shape[1]))
    state = cell.state(*(random.normal(size=(3, H)) for _ in cell.state._fields))

    def reference(x, hidden, memory, flat, lengths, **options):
        sizes = [options[name] for name in ("input_size", "hidden_size", "num_layers", "bidirectional")]
        return rnn.lstm_ref(x, hidden, memory, *rnn.unpack_lstm_weights(flat, *sizes), lengths, **options)

    expected, after, _ = unroll(cell, inputs, state, weights, record=False)
    outputs, found, _ = lstm_through(reference, cell, inputs, state, weights)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-14)
    for field, value in after._asdict().items():
        np.testing.assert_allclose(getattr(found, field), value, rtol=0, atol=1e-14)


@pytest.mark.parametrize("engine", ["scratch", "native"])
def test_bfloat16_is_float32_rounded(engine):
    tokens = CASE.batches.tokens[0]
    exact, rounded = make(engine=engine), make("bfloat16", engine)
    logits = [model.logits(tokens, model.load_state(CASE.state))[0] for model in (exact, rounded)]
    error = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    assert 1e-4 < error < 3e-2  # eight bits, a few layers
    steps = rounded.train_steps(at(CASE.batches, slice(0, 3)), rounded.load_state(CASE.state), np.full(3, 0.01))
    assert steps.finite.all()
    arrays = [*rounded.dump_parameters().values(), *rounded.dump_optimizer()[0].values()]
    arrays += [logits[1], *rounded.dump_state(steps.state).values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("precision", "allowed"), [("highest", "False"), ("tensorfloat32", "True")])
def test_cudnn_is_told_its_precision_there_and_back(precision, allowed, monkeypatch):
    import jax
    from jaxlib import gpu_rnn

    from impl_jax.model import _gradients
    from impl_jax.native import CUDNN

    sizes = "compute_rnn_workspace_reserve_space_sizes"  # all that tracing asks of a GPU
    monkeypatch.setattr(gpu_rnn, sizes, lambda *_: (0, 1), raising=False)
    model = make(engine="native")
    network = model._network._replace(engine=CUDNN[precision], precision=precision)
    batch, state = Batch(*map(model._array, at(CASE.batches, 0))), model.load_state(CASE.state)
    arguments = network, model._parameters, state, batch, model._dropout_keys, None
    program = str(jax.make_jaxpr(_gradients, static_argnums=0)(*arguments))
    assert "rnn_fwd" in program
    assert "rnn_bwd" in program
    assert re.findall(r"cudnn_allow_tf32=(\w+)", program) == [allowed] * 4  # two layers


def test_tf32_needs_a_gpu_and_leaves_other_models_exact():
    model = make()
    with pytest.raises(ImplementationError, match="NVIDIA GPUs from Ampere on"):
        make("tf32")
    assert precisions(model) == {"HIGHEST"}


@pytest.mark.parametrize("engine", ["scratch", "native"])
def test_each_model_keeps_its_own_precision(engine):
    """Whatever the process is set to, forward and backward."""
    import jax

    exact, rounded = make(engine=engine), make(engine=engine)
    rounded._network = rounded._network._replace(precision="tensorfloat32")  # as --dtype tf32 on a GPU
    with jax.default_matmul_precision("bfloat16"):
        assert precisions(rounded) == {"HIGH"}
        assert precisions(exact) == {"HIGHEST"}


def precisions(model):
    """Those of all products in the program for loss and gradients; "DEFAULT" where none is written."""
    from impl_jax.model import _gradients

    batch, state = Batch(*map(model._array, at(CASE.batches, 0))), model.load_state(CASE.state)
    program = _gradients.lower(model._network, model._parameters, state, batch, model._dropout_keys, None).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 6  # both layers and the decoder, there and back
    return {name for line in products for name in (re.findall(r"precision = \[(\w+), \1\]", line) or ["DEFAULT"])}


@pytest.mark.parametrize(("model", "layer"), [(small("lstm"), "OptimizedLSTMCell"), (small("gru"), "GRUCell")])
def test_the_layer_that_ran_is_told(model, layer):
    kernel = create_model("jax", model, OptimizerConfig(), 11, RuntimeConfig("native", "cpu")).kernel
    assert f"flax.linen.{layer} under linen.RNN" in kernel


@pytest.mark.gpu
def test_cudnn_runs_on_a_gpu():
    model = make(engine="native", device="cuda")
    assert "cuDNN" in model.kernel
    measured = Examinee("jax", "cuda").measure(CASE, "float32", "native")
    assert "cuDNN" in measured["kernel"]
