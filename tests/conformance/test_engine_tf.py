"""What only TensorFlow has: Keras' layers, XLA and cuDNN, its precisions, and functions that are traced."""

import subprocess
import sys

import numpy as np
import pytest

from runner.registry import create_model, import_quietly
from shared.batching import PARTS
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError
from shared.parameters import parameter_shapes
from shared.random_bits import dropout_keys, keep_mask
from shared.sampling import SamplingRule

B, T, V, E, H, K = 3, 5, 9, 4, 6, 8
LAYERS = {
    "rnn": (ModelConfig(cell="rnn"), "SimpleRNN"),
    "relu": (ModelConfig(cell="rnn", nonlinearity="relu"), "SimpleRNN"),
    "lstm": (ModelConfig(cell="lstm"), "LSTM"),
    "gru": (ModelConfig(cell="gru"), "GRU"),
    "gru before": (ModelConfig(cell="gru", gru_reset="before"), "GRU"),
}


@pytest.fixture
def tf():
    import_quietly("impl_tf")
    return import_quietly("tensorflow")


def draw(tf, *shape):
    return tf.constant(np.random.default_rng(sum(shape)).normal(0, 0.5, shape))


def layer(tf, name):
    """The cell, random weights of it, and a state."""
    from impl_tf.unroll import cell_of

    cell = cell_of(LAYERS[name][0])
    gates = {"lstm": 4, "gru": 3, "gru before": 3}.get(name, 1) * H
    shapes = {"weight_ih": (gates, E), "weight_hh": (gates, H), "bias": (gates,), "bias_hn": (H,)}
    weights = cell.weights(*(draw(tf, *shapes[field]) for field in cell.weights._fields))
    return cell, weights, cell.state(*(draw(tf, B, H) + k for k, _ in enumerate(cell.state._fields)))


def small(**options):
    return ModelConfig(**{"cell": "lstm", "hidden_size": H, "num_layers": 2, "embedding_size": E, **options})


SCRATCH = {"engine": "scratch", "device": "cpu"}


def make(model, optimizer=None, seed=1, **runtime):
    made = create_model("tf", model, optimizer or OptimizerConfig(), V, RuntimeConfig(**SCRATCH | runtime), seed)
    random = np.random.default_rng(3)
    made.load_parameters({name: random.normal(0, 0.5, shape) for name, shape in parameter_shapes(model, V).items()})
    return made


def batches(count=K):
    random = np.random.default_rng(4)
    tokens, targets = (random.integers(0, V, (count, B, T)).astype(np.int32) for _ in range(2))
    return Batch(tokens, targets, np.ones((count, B, T), bool), np.zeros((count, B), bool))


def first(stacked):
    return Batch(*(each[0] for each in stacked))


@pytest.mark.parametrize("name", LAYERS)
def test_the_canonical_weights_are_the_layers(tf, name):
    """Outputs, final state and gradients of Keras' layer, which holds the weights as its own; float64 all the way."""
    from impl_tf.native import kernels, require_native, unroll_native

    require_native(LAYERS[name][0], None)
    keras = import_quietly("keras")
    cell, weights, state = layer(tf, name)
    inputs = draw(tf, T, B, E)
    options = {"activation": "relu"} if name == "relu" else {}
    if LAYERS[name][1] == "GRU":
        options["reset_after"] = name == "gru"
    own = getattr(keras.layers, LAYERS[name][1])(
        H, return_sequences=True, return_state=True, dtype="float64", **options
    )
    own.build((B, T, E))
    own.set_weights([each.numpy() for each in kernels(weights)])
    with tf.GradientTape() as tape:
        expected, *final = own(tf.transpose(inputs, (1, 0, 2)), initial_state=list(state))
        loss = tf.reduce_sum(expected**2)
    d_own = tape.gradient(loss, [each.value for each in own.trainable_variables])
    with tf.GradientTape() as tape:
        tape.watch((weights, state))
        outputs, after, record = unroll_native(cell, inputs, state, weights, record=False)
        loss = tf.reduce_sum(outputs**2)
    d_weights = tape.gradient(loss, weights)
    assert record is None
    assert outputs.dtype == tf.float64
    np.testing.assert_allclose(outputs, tf.transpose(expected, (1, 0, 2)), rtol=0, atol=1e-15)
    for field, like in zip(after, final, strict=True):
        np.testing.assert_allclose(field, like, rtol=0, atol=1e-15)
    # Swapping blocks is its own inverse, so the gradients, turned the same way, are Keras'.
    for turned, expected in zip(kernels(d_weights), d_own, strict=True):
        if name == "gru" and turned.shape.rank == 2 and turned.shape[0] == 2:
            np.testing.assert_allclose(turned[0], expected[0], rtol=0, atol=1e-13)
            np.testing.assert_allclose(turned[1, 2 * H :], expected[1, 2 * H :], rtol=0, atol=1e-13)
        else:
            np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-13)


def test_the_blocks_of_a_gru_stand_in_keras_order(tf):
    from impl_tf.gru import GRUWeights, ResetBeforeWeights
    from impl_tf.native import kernels

    stacked = tf.constant([[1.0], [2.0], [3.0]])  # r z n, of one unit
    kernel, recurrent, bias = kernels(GRUWeights(stacked, stacked * 10, stacked[:, 0] * 100, tf.constant([7.0])))
    assert kernel.numpy().tolist() == [[2, 1, 3]]
    assert recurrent.numpy().tolist() == [[20, 10, 30]]
    assert bias.numpy().tolist() == [[200, 100, 300], [0, 0, 7]]
    assert kernels(ResetBeforeWeights(stacked, stacked, stacked[:, 0]))[2].numpy().tolist() == [2, 1, 3]


@pytest.mark.parametrize("name", LAYERS)
def test_the_native_engine_is_the_scratch_engine(tf, name):
    """In XLA, where it trains, and outside."""
    cell = LAYERS[name][0]
    model = small(cell=cell.cell, nonlinearity=cell.nonlinearity, gru_reset=cell.gru_reset, num_layers=1)
    native, scratch = make(model, engine="native", dtype="float64"), make(model, dtype="float64")
    versions = f"(tensorflow {tf.__version__}, keras {import_quietly('keras').__version__})"
    assert native.kernel == f"keras.layers.{LAYERS[name][1]}, while loop, XLA CPU {versions}"
    assert (native.engine, native.device) == ("native", "cpu")
    results = [each.train_steps(batches(), each.initial_state(B), np.full(K, 0.01)) for each in (native, scratch)]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=0, atol=1e-12)
    pairs = zip(native.dump_parameters().values(), scratch.dump_parameters().values(), strict=True)
    assert max(np.abs(left - right).max() for left, right in pairs) < 1e-12
    found = [each.loss_and_gradients(first(batches()), each.initial_state(B), 5)[1] for each in (native, scratch)]
    for left, right in zip(found[0].parameters.values(), found[1].parameters.values(), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("model", "runtime", "reason"),
    [
        (small(cell="wrnn"), {"engine": "native"}, "wrnn.*--engine scratch"),
        (small(cell="wrnn"), {"engine": "fused"}, "not for wrnn: use --engine auto"),
        (small(cell="gru", gru_reset="before"), {"engine": "fused"}, "not for gru-before: use --engine auto"),
        (small(), {"dtype": "tf32"}, "NVIDIA GPUs from Ampere on.*--dtype float32"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(model, runtime, reason):
    with pytest.raises(ImplementationError, match=reason):
        make(model, **runtime)


FUSED = {
    "lstm": {},
    "lstm one-hot": {"embedding_size": 0},
    "lstm tied, dropout": {"tied_weights": True, "embedding_size": H, "dropout": 0.3},
    "lstm many-to-one": {"many_to_one": True, "embedding_activation": "tanh"},
    "gru": {"cell": "gru"},
    "gru one-hot, residual": {"cell": "gru", "embedding_size": 0, "residual": True},
    "gru activation, residual": {"cell": "gru", "embedding_activation": "sigmoid", "residual": True},
}


@pytest.mark.parametrize("name", FUSED)
def test_the_way_back_by_hand_is_the_gradient(tf, name):
    """Loss, gradients, of the initial state too, and training: in XLA, where it trains, and outside; V < B T."""
    model, stacked = small(**FUSED[name]), batches()
    if model.many_to_one:
        stacked = stacked._replace(targets=stacked.targets[:, :, 0])
    fused, scratch = make(model, engine="fused", dtype="float64"), make(model, dtype="float64")
    assert fused.kernel == f"backward by hand, {scratch.kernel}"
    assert fused.engine == "fused"
    found = []
    for each in (fused, scratch):
        state = each.train_steps(stacked, each.initial_state(B), np.full(K, 0.01)).state
        loss, gradients, after = each.loss_and_gradients(first(stacked), state, 5)
        arrays = (*gradients.parameters.values(), *gradients.initial_state.values(), *each.dump_state(after).values())
        found.append([loss, *arrays, *each.dump_parameters().values()])
    for left, right in zip(*found, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-12)


def test_an_embedding_is_folded_where_the_vocabulary_is_small(tf):
    """W_ih @ tanh(embedding)^T, whose columns are what layer 0 makes of the tokens."""
    from impl_tf.fused import fold_embedding

    parameters = {"embedding.weight": draw(tf, V, E), "rnn.weight_ih_l0": draw(tf, 4 * H, E)}
    model = small(embedding_activation="tanh")
    assert fold_embedding(model, parameters, V) is parameters
    assert fold_embedding(small(residual=True), parameters, V + 1) is parameters
    folded = fold_embedding(model, parameters, V + 1)
    expected = parameters["rnn.weight_ih_l0"] @ tf.transpose(tf.tanh(parameters["embedding.weight"]))
    assert list(folded) == ["rnn.weight_ih_l0"]
    np.testing.assert_allclose(folded["rnn.weight_ih_l0"], expected, rtol=0, atol=1e-15)


def test_a_vocabulary_larger_than_the_batch_keeps_its_embedding():
    """Nothing is folded in training: the gradient of the embedding is exactly zero where a token was not used."""
    little = Batch(*(each[:1, :2] for each in first(batches())[:3]), np.zeros(1, bool))
    made = make(small(), engine="fused", dtype="float64")
    gradients = made.loss_and_gradients(little, made.initial_state(1))[1].parameters["embedding.weight"]
    unused = np.setdiff1d(np.arange(V), little.tokens)
    assert not gradients[unused].any()
    assert gradients[np.unique(little.tokens)].any(axis=1).all()


def test_the_gradient_of_the_loss_is_tensorflows(tf):
    from impl_tf.loss import token_nats

    logits, targets = draw(tf, T, B, V) * 20, tf.constant(batches().targets[0].T)
    found = []
    for nats in (token_nats, lambda x, y: tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            each = nats(logits, targets)
            loss = tf.reduce_sum(each**2)
        found.append((each, tape.gradient(loss, logits)))
    for left, right in zip(*found, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("vocabulary", [V, 150])
def test_every_engine_writes_the_same_text(vocabulary):
    """With a table of the tokens and without; drawn token by token, and by blocks."""
    model = small(embedding_activation="tanh")
    random, written = np.random.default_rng(5), []
    parameters = {name: random.normal(0, 0.5, shape) for name, shape in parameter_shapes(model, vocabulary).items()}
    uniforms, prompt, lengths = random.random((2, 90)), np.ones((2, 3), np.int32), np.array([1, 3], np.int32)
    for impl, engine in (("numpy", "scratch"), ("tf", "scratch"), ("tf", "fused"), ("tf", "native")):
        runtime = RuntimeConfig(device="cpu", engine=engine, dtype="float64")
        made = create_model(impl, model, OptimizerConfig(), vocabulary, runtime, 0)
        made.load_parameters(parameters)
        written.append(made.generate(prompt, lengths, uniforms, SamplingRule(0.9, 6, 0.95)))
    assert all(np.array_equal(each, written[0]) for each in written)


def test_keras_on_another_framework_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImplementationError, match=r"Keras is set to jax\. Set KERAS_BACKEND=tensorflow"):
        make(small(), engine="native")
    assert make(small()).engine == "scratch"


def test_keras_loads_for_the_native_engine_only():
    """It is a third of TensorFlow's import."""
    script = (
        "import sys; from runner import environment; from shared.config import *;"
        "runtime = RuntimeConfig(device='cpu'); environment.prepare(runtime); from runner.registry import create_model;"
        "create_model('tf', ModelConfig(hidden_size=2), OptimizerConfig(), 3, runtime); print('keras' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


def test_the_trace_is_the_scratch_engines(tf):
    native, scratch = make(small(), engine="native", dtype="float64"), make(small(), dtype="float64")
    traced, expected = (each.trace(first(batches()), each.initial_state(B)) for each in (native, scratch))
    assert traced.keys() == expected.keys() >= {"forget_gate_l1", "logits"}
    assert all(np.array_equal(traced[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("scratch", {"cell": "lstm", "dropout": 0.2, "residual": True}),
        ("scratch", {"cell": "wrnn", "num_layers": 1}),
        ("native", {"cell": "rnn", "num_layers": 1}),
        ("native", {"cell": "gru", "num_layers": 1}),
        ("fused", {"cell": "gru"}),
        ("fused", {"cell": "lstm", "embedding_size": 0}),
    ],
)
def test_bfloat16_is_in_the_layers_only(tf, engine, options):
    """Near float32, further than its rounding; what crosses the border, and what the optimizer keeps, is float32."""
    model = small(**options)
    exact, rounded = make(model, engine=engine), make(model, engine=engine, dtype="bfloat16")
    logits, state = rounded.logits(batches().tokens[0], rounded.initial_state(B))
    expected, _ = exact.logits(batches().tokens[0], exact.initial_state(B))
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 3e-2
    same = Batch(*(np.repeat(each[:1], K, axis=0) for each in batches()))
    steps = rounded.train_steps(same, state, np.full(K, 0.02))
    assert steps.losses[-1] < 0.9 * steps.losses[0]
    arrays = [*rounded.dump_parameters().values(), *rounded.dump_optimizer()[0].values(), logits]
    assert {each.dtype for each in (*arrays, *rounded.dump_state(steps.state).values())} == {np.dtype(np.float32)}
    # A weight that bfloat16 could not hold has moved by less than bfloat16 could tell.
    assert any((each != tf.cast(tf.cast(each, tf.bfloat16), tf.float32).numpy()).any() for each in arrays)
    assert rounded.trace(first(batches()), state)["hidden_l0"].dtype == np.float32


@pytest.mark.parametrize("options", [{"embedding_size": 0}, {"tied_weights": True, "embedding_size": H}, {}])
def test_bfloat16_counts_every_occurrence_of_a_token(options):
    """Added up in bfloat16, the gradient of a token's row stands still after a few hundred occurrences."""
    rows, length = 32, 64
    batch = Batch(*(np.zeros((rows, length), np.int32),) * 2, np.ones((rows, length), bool), np.zeros(rows, bool))
    found = []
    for dtype in ("float32", "bfloat16"):
        made = make(small(num_layers=1, **options), dtype=dtype)
        gradients = made.loss_and_gradients(batch, made.initial_state(rows))[1].parameters
        found.append(gradients.get("embedding.weight", gradients["rnn.weight_ih_l0"].T)[0])
    assert np.abs(found[1] - found[0]).max() < 0.03 * np.abs(found[0]).max()


@pytest.mark.parametrize("how", ["eager", "graph", "XLA"])
def test_masks_where_words_wrap(tf, how):
    """Every bit of seed, step and place in use, sizes that fill no vector; Python's numbers for keys and step, too."""
    from impl_tf import dropout

    keys, outputs = [dropout_keys(2**62 + 5, layer) for layer in range(2)], tf.zeros((T, B, 7))

    def mask(keys, step, rate):
        return dropout.keep_mask(outputs, 1, dropout.Dropout((0.0, rate), keys, step))

    made = mask if how == "eager" else tf.function(mask, jit_compile=how == "XLA")
    for step in (0, 2**31 - 1, 2**31, 2**32 - 1, 2**40 + 3):
        for rate in (0.01, 0.5, 0.999):
            expected = keep_mask(2**62 + 5, step, 1, (B, T, 7), rate)
            tensors = tf.constant(keys, tf.uint32), tf.constant(step, tf.int64)
            for given in (tensors, (tuple(keys), step)) if how == "eager" else (tensors,):
                assert np.array_equal(np.swapaxes(made(*given, rate), 0, 1), expected)


@pytest.mark.parametrize(("cell", "engine"), [("rnn", "scratch"), ("lstm", "fused")])
def test_nothing_is_traced_for_another_number(tf, cell, engine):
    """One trace for a configuration and its shapes, whatever seed, step, learning rate or temperature."""
    from impl_tf import model as module

    model = small(cell=cell, dropout=0.3, hidden_size=H + 1)
    stacked, prompt, lengths = batches(2), np.zeros((1, 2), np.int32), np.array([2], np.int32)
    for seed in (1, 2):
        made = make(model, OptimizerConfig(clip_value=0.5), seed, engine=engine)
        for number in (1, 2):
            state = made.train_steps(stacked, made.initial_state(B), np.full(2, 0.01 * number)).state
            made.evaluate(stacked, state)
            made.loss_and_gradients(first(stacked), state, number)
            made.generate(prompt, lengths, np.full((1, 3), 0.5), SamplingRule(temperature=0.5 * number, top_k=number))
    counts = {
        (name, xla): module.compiled(getattr(module, name), made._setup, xla).experimental_get_tracing_count()
        for name, xla in (("_train_step", True), ("_score", True), ("_shared_gradients", False), ("_generate", True))
    }
    assert set(counts.values()) == {1}, counts
    outer = module.compiled(module._scan, made._setup, False)
    assert outer.experimental_get_tracing_count() == 2  # training and evaluation


def test_few_programs_serve_all_masks():
    """One for each number of rows, not one for each batch."""
    from impl_tf import model as module

    made, steps = make(small(hidden_size=H + 3, num_layers=1)), 16
    state = made.initial_state(1)
    for count in range(1, steps + 1):
        tokens = np.full((1, 1, steps), count % V, np.int32)
        stacked = Batch(tokens, tokens, np.arange(steps) < np.full((1, 1, 1), count), np.zeros((1, 1), bool))
        made.evaluate(stacked, state)
    score = module.compiled(module._score, made._setup, True)
    assert score.experimental_get_tracing_count() == PARTS


@pytest.mark.parametrize("optimizer", ["nesterov", "adagrad", "rmsprop", "adamw"])
def test_a_step_that_is_not_finite_leaves_every_rule_alone(optimizer):
    config = OptimizerConfig(optimizer=optimizer, dialect="keras", rmsprop_momentum=0.5 * (optimizer == "rmsprop"))
    made, stacked = make(small(num_layers=1), config, dtype="float64"), batches(2)
    made.train_steps(stacked, made.initial_state(B), np.full(2, 0.01))
    slots, step = made.dump_optimizer()
    broken = {name: np.where(name == "decoder.bias", np.nan, value) for name, value in made.dump_parameters().items()}
    made.load_parameters(broken)
    made.load_optimizer(slots, step)
    steps = made.train_steps(stacked, made.initial_state(B), np.full(2, 0.01))
    assert not steps.finite.any()
    assert made.dump_optimizer()[1] == step == 2
    assert all(np.array_equal(value, slots[name]) for name, value in made.dump_optimizer()[0].items())
    after = made.dump_parameters()
    assert all(np.array_equal(after[name], broken[name], equal_nan=True) for name in broken)


def test_slots_start_in_the_models_precision():
    """0.1 is not 0.1 rounded to float32."""
    config = OptimizerConfig(optimizer="adagrad", initial_accumulator=0.1)
    slots, step = make(small(), config, dtype="float64").dump_optimizer()
    assert step == 0
    assert all(np.all(value == 0.1) for value in slots.values())


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_training_through_cudnn_is_built_without_a_gpu(tf, monkeypatch, cell, dtype):
    """Forward and backward, outside XLA; Keras is told that there is a GPU. Only a GPU can run it."""
    from impl_tf import model as module
    from impl_tf.native import native_engine, native_kernel, unroll_cudnn

    model = small(cell=cell, dropout=0.3)
    made = make(model, engine="native", dtype=dtype)
    gpu = made._place._replace(handle="/GPU:0")
    assert native_engine(model, gpu) is unroll_cudnn
    assert ", cuDNN (" in native_kernel(model, gpu)
    monkeypatch.setattr(sys.modules["keras.src.backend.tensorflow.rnn"], "_is_gpu_available", lambda: True)
    setup = made._setup._replace(engine=unroll_cudnn, xla=False)
    start = made._parameters, made._slots, made._step, made.initial_state(B)
    stack = Batch(*map(tf.constant, batches())), None, tf.zeros(K, made._place.dtype)
    program = module.compiled(module._scan, setup, False)
    graph = program.get_concrete_function(module._train_step, start, stack, made._dropout(made._step)).graph
    operations = [node.op for function in graph.as_graph_def().library.function for node in function.node_def]
    assert operations.count("CudnnRNNV3") == operations.count("CudnnRNNBackpropV3") == 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cudnn_runs_the_native_engine_on_a_gpu(tf, name):
    """Equal to the scratch engine, in float64; and float32 is not rounded to TF32."""
    results = []
    for engine in ("native", "scratch"):
        runtime = RuntimeConfig(device="cuda", engine=engine, dtype="float64")
        made = create_model("tf", small(cell=name), OptimizerConfig(), V, runtime, 0)
        random, shapes = np.random.default_rng(3), parameter_shapes(small(cell=name), V)
        made.load_parameters({key: random.normal(0, 0.5, shape) for key, shape in shapes.items()})
        results.append(made.train_steps(batches(), made.initial_state(B), np.full(K, 0.01)).losses)
        assert not tf.config.experimental.tensor_float_32_execution_enabled()
        assert ("cuDNN" in made.kernel) == (engine == "native")
    np.testing.assert_allclose(*results, rtol=0, atol=1e-11)
