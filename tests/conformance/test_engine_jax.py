"""What only JAX has: cuDNN's weights in one vector, its precisions, and programs compiled once for each shape."""

import re

import numpy as np
import pytest

from runner.examination.cases import BRIEF, CASES, Design, H, make_case, small
from runner.examination.examinee import Examinee, at, numbers_of, tokens
from runner.registry import create_model
from shared.batching import PARTS
from shared.config import OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError
from shared.sampling import SamplingRule

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


@pytest.mark.parametrize("engine", ["scratch", "fused", "native"])
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
    arguments = network, model._parameters, state, batch, None, model._dropout_keys, None
    program = str(jax.make_jaxpr(_gradients, static_argnums=0)(*arguments))
    assert "rnn_fwd" in program
    assert "rnn_bwd" in program
    assert re.findall(r"cudnn_allow_tf32=(\w+)", program) == [allowed] * 4  # two layers


def test_tf32_needs_a_gpu_and_leaves_other_models_exact():
    model = make()
    with pytest.raises(ImplementationError, match="NVIDIA GPUs from Ampere on"):
        make("tf32")
    assert precisions(model) == {"HIGHEST"}


@pytest.mark.parametrize("engine", ["scratch", "fused", "native"])
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
    arguments = model._network, model._parameters, state, batch, None, model._dropout_keys, None
    program = _gradients.lower(*arguments).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 6  # both layers and the decoder, there and back
    return {name for line in products for name in (re.findall(r"precision = \[(\w+), \1\]", line) or ["DEFAULT"])}


@pytest.mark.parametrize(("model", "layer"), [(small("lstm"), "OptimizedLSTMCell"), (small("gru"), "GRUCell")])
def test_the_layer_that_ran_is_told(model, layer):
    kernel = create_model("jax", model, OptimizerConfig(), 11, RuntimeConfig("native", "cpu")).kernel
    assert f"flax.linen.{layer} under linen.RNN" in kernel


ONE_HOT = make_case("lstm one-hot", Design(small("lstm", 1, embedding_size=0), ("adam",), BRIEF))


@pytest.mark.parametrize("case", [CASE, make_case("gru", CASES["gru"]), ONE_HOT], ids=lambda case: case.name)
def test_the_fused_engine_writes_the_same_text(case):
    """Its tokens read a table, made once: they must be those of the scratch engine, one by one."""
    scratch, fused = (
        numbers_of(tokens(Examinee("jax", "cpu").create(case, "float64", engine), case))
        for engine in ("scratch", "fused")
    )
    for name, expected in scratch.items():
        np.testing.assert_array_equal(fused[name], expected, err_msg=name)


@pytest.mark.parametrize(("times", "table"), [(6, (28, 11)), (2, (28, 5))])  # 18 or 6 tokens, of a vocabulary of 11
def test_the_embedding_is_folded_where_tokens_outnumber_symbols(times, table):
    from impl_jax.model import _weights

    batch = at(CASE.batches, 0)
    short = Batch(batch.tokens[:, :times], batch.targets[:, :times], np.ones((3, times), bool), batch.reset)
    found = []
    for engine in ("scratch", "fused"):
        model = make("float64", engine)
        found.append(model.loss_and_gradients(short, model.load_state(CASE.state)))
    read = _weights(model._network, model._parameters, short.tokens.size)
    assert read["rnn.weight_ih_l0"].shape == table
    (loss, expected, _), (fused_loss, gradients, _) = found
    assert abs(fused_loss - loss) < 1e-14
    for ours, theirs in zip(gradients, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-14, err_msg=name)


def test_the_fused_engine_compiles_no_more_programs():
    """One for each shape of the batches, like the scratch engine, and none when a shape comes again."""
    from impl_jax.model import _train_steps

    compiled = {}
    for engine in ("scratch", "fused"):
        # Sizes of no other test: what is compiled is kept.
        case = make_case("lstm", Design(small("lstm", 1, embedding_size=9), ("sgd",)))
        model = Examinee("jax", "cpu").create(case, "float32", engine)
        state, before = model.load_state(case.state), _train_steps._cache_size()
        for steps in (2, 3, 2, 3):
            state = model.train_steps(at(case.batches, slice(0, steps)), state, np.full(steps, 0.1)).state
        compiled[engine] = _train_steps._cache_size() - before
    assert compiled == {"scratch": 2, "fused": 2}


def test_few_programs_serve_all_masks():
    """One for each number of rows, not one for each batch."""
    from impl_jax.model import _evaluate, _train_steps

    config, steps = small("lstm", 1, hidden_size=H + 3), 24
    model = create_model("jax", config, OptimizerConfig(), 11, RuntimeConfig(device="cpu"))
    state, before = model.initial_state(1), (_train_steps._cache_size(), _evaluate._cache_size())
    for count in range(1, steps + 1):
        tokens = np.full((1, 1, steps), count % 11, np.int32)
        stacked = Batch(tokens, tokens, np.arange(steps) < np.full((1, 1, 1), count), np.zeros((1, 1), bool))
        model.evaluate(stacked, state)
        if 12 < count <= 18:  # two eighths
            model.train_steps(stacked, state, np.array([0.1]))
    assert _train_steps._cache_size() - before[0] == 2
    assert _evaluate._cache_size() - before[1] == PARTS


@pytest.mark.parametrize("options", [{"cell": "rnn"}, {"cell": "wrnn"}, {"cell": "gru", "gru_reset": "before"}])
def test_the_fused_engine_says_which_cells_it_has(options):
    with pytest.raises(ImplementationError, match=r"--cell lstm, and for --cell gru .* --engine auto"):
        create_model("jax", small(**options), OptimizerConfig(), 11, RuntimeConfig("fused", "cpu"))


def test_the_fused_engine_is_told():
    assert "written-out gradient" in make(engine="fused").kernel


@pytest.mark.gpu
def test_cudnn_runs_on_a_gpu():
    model = make(engine="native", device="cuda")
    assert "cuDNN" in model.kernel
    measured = Examinee("jax", "cuda").measure(CASE, "float32", "native")
    assert "cuDNN" in measured["kernel"]


def test_nothing_is_sorted_unless_it_is_asked_for():
    """And another number compiles nothing anew."""
    import jax

    from impl_jax.generate import asked, draw

    logits, uniforms = np.zeros((2, 300), np.float32), np.array([0.2, 0.8])

    def compiled(rule):
        return str(jax.make_jaxpr(lambda numbers: draw(logits, uniforms, numbers, None))(asked(rule)))

    assert not any(" sort[" in compiled(SamplingRule(temperature)) for temperature in (0.0, 0.7, 1.0))
    assert all(" sort[" in compiled(rule) for rule in (SamplingRule(1.0, 3), SamplingRule(1.0, 0, 0.5)))
    assert compiled(SamplingRule(0.7, 3)) == compiled(SamplingRule(0.9, 5))
