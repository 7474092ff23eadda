"""What only PyTorch has: its own layers, their kernels, its precisions and its fused optimizers."""

import numpy as np
import pytest

from runner.registry import create_model, import_quietly
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ImplementationError
from shared.parameters import parameter_shapes
from shared.random_bits import dropout_keys, keep_mask
from shared.sampling import SamplingRule

B, T, V, E, H, K = 3, 5, 9, 4, 6, 8
LAYERS = {
    "rnn": (ModelConfig(cell="rnn"), "RNN", {}, "rnn_tanh"),
    "relu": (ModelConfig(cell="rnn", nonlinearity="relu"), "RNN", {"nonlinearity": "relu"}, "rnn_relu"),
    "lstm": (ModelConfig(cell="lstm"), "LSTM", {}, "lstm"),
    "gru": (ModelConfig(cell="gru"), "GRU", {}, "gru"),
}


@pytest.fixture
def torch():
    import_quietly("impl_torch")
    return import_quietly("torch")


def draw(torch, *shape, requires_grad=True):
    values = np.random.default_rng(sum(shape)).normal(0, 0.5, shape)
    return torch.tensor(values, requires_grad=requires_grad)


def layer(torch, name):
    """The cell, random weights of it, and a state."""
    from impl_torch.unroll import cell_of

    cell = cell_of(LAYERS[name][0])
    gates = {"lstm": 4, "gru": 3}.get(name, 1) * H
    shapes = {"weight_ih": (gates, E), "weight_hh": (gates, H), "bias": (gates,), "bias_hn": (H,)}
    weights = cell.weights(*(draw(torch, *shapes[field]) for field in cell.weights._fields))
    return cell, weights, cell.state(*(draw(torch, B, H) + k for k, _ in enumerate(cell.state._fields)))


def small(**options):
    return ModelConfig(**{"cell": "lstm", "hidden_size": H, "num_layers": 2, "embedding_size": E, **options})


SCRATCH = {"engine": "scratch", "device": "cpu"}


def make(model, optimizer=None, **runtime):
    made = create_model("torch", model, optimizer or OptimizerConfig(), V, RuntimeConfig(**SCRATCH | runtime), 1)
    random = np.random.default_rng(3)
    made.load_parameters({name: random.normal(0, 0.5, shape) for name, shape in parameter_shapes(model, V).items()})
    return made


def batches():
    random = np.random.default_rng(4)
    tokens, targets = (random.integers(0, V, (K, B, T)).astype(np.int32) for _ in range(2))
    return Batch(tokens, targets, np.ones((K, B, T), bool), np.zeros((K, B), bool))


@pytest.mark.parametrize("name", LAYERS)
def test_the_canonical_weights_are_the_modules(torch, name):
    """Outputs, final state and gradients of torch.nn's module, whose second bias is fixed but for bias_hn."""
    from impl_torch.native import two_biases, unroll_native

    cell, weights, state = layer(torch, name)
    inputs = draw(torch, T, B, E)
    module = getattr(torch.nn, LAYERS[name][1])(E, H, dtype=torch.float64, **LAYERS[name][2])
    with torch.no_grad():
        for own, given in zip(module.parameters(), two_biases(weights), strict=True):
            own.copy_(given)
    before = tuple(field[None] for field in state)
    expected, final = module(inputs, before if name == "lstm" else before[0])
    outputs, after, record = unroll_native(cell, inputs, state, weights, record=False)
    assert record is None
    np.testing.assert_allclose(outputs.detach(), expected.detach(), rtol=0, atol=1e-15)
    for field, like in zip(after, final if name == "lstm" else [final], strict=True):
        np.testing.assert_allclose(field.detach(), like[0].detach(), rtol=0, atol=1e-15)
    (outputs**2).sum().backward()
    (expected**2).sum().backward()
    for field, own in (("weight_ih", "weight_ih_l0"), ("weight_hh", "weight_hh_l0"), ("bias", "bias_ih_l0")):
        np.testing.assert_allclose(getattr(weights, field).grad, getattr(module, own).grad, rtol=0, atol=1e-13)
    if name == "gru":
        np.testing.assert_allclose(weights.bias_hn.grad, module.bias_hh_l0.grad[2 * H :], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_one_buffer_holds_the_weights_one_behind_the_other(torch, name):
    from impl_torch.native import in_one_buffer, two_biases

    weights = layer(torch, name)[1]
    four = two_biases(weights)
    packed = in_one_buffer(four)
    offset = 0
    for each, like in zip(packed, four, strict=True):
        assert each.is_contiguous()
        assert each.storage_offset() == offset
        assert torch.equal(each, like)
        offset += each.numel()
    assert packed[0].untyped_storage().nbytes() == 8 * offset
    sum((k + 1) * each.sum() for k, each in enumerate(packed)).backward()
    assert weights.weight_hh.grad.eq(2).all()
    assert weights.bias.grad.eq(3).all()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # said whenever oneDNN's flags are set
@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_is_the_one_that_ran(torch, name):
    """On the processor oneDNN has an LSTM, not in float64; everything else is ATen's."""
    model, function = LAYERS[name][0], LAYERS[name][3]
    assert make(model, engine="native", dtype="float64").kernel == f"torch.{function}, ATen (torch {torch.__version__})"
    library = "oneDNN" if name == "lstm" and torch.backends.mkldnn.is_available() else "ATen"
    assert make(model, engine="native").kernel == f"torch.{function}, {library} (torch {torch.__version__})"
    with torch.backends.mkldnn.flags(enabled=False):
        assert ", ATen (" in make(model, engine="native").kernel


@pytest.mark.parametrize(
    ("model", "runtime", "reason"),
    [
        (small(cell="wrnn"), {"engine": "native"}, "wrnn.*--engine scratch"),
        (small(cell="gru", gru_reset="before"), {"engine": "native"}, "resets after the product.*--engine scratch"),
        (small(cell="gru", gru_reset="before"), {"engine": "fused"}, "not for gru-before.*--engine auto"),
        (small(), {"dtype": "tf32"}, "NVIDIA GPUs from Ampere on.*--dtype float32"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(model, runtime, reason):
    with pytest.raises(ImplementationError, match=reason):
        make(model, **runtime)


@pytest.mark.parametrize("engine", ["fused", "native"])
def test_the_trace_is_the_scratch_engines(engine):
    batch = Batch(*(each[0] for each in batches()))
    model = small(embedding_size=64)
    other, scratch = make(model, engine=engine, dtype="float64"), make(model, dtype="float64")
    traced, expected = (each.trace(batch, each.initial_state(B)) for each in (other, scratch))
    assert traced.keys() == expected.keys() >= {"forget_gate_l1", "logits"}
    assert all(np.array_equal(traced[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("cell", "engine"),
    [*((cell, engine) for cell in ("lstm", "gru") for engine in ("scratch", "fused", "native")), ("rnn", "native")],
)
def test_bfloat16_is_in_the_layers_only(torch, cell, engine):
    """Near float32, further than its rounding; what crosses the border, and what the optimizer keeps, is float32."""
    model = small(cell=cell, num_layers=3, dropout=0.2, residual=True)
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
    assert any((each.astype(np.float32) != torch.tensor(each).bfloat16().float().numpy()).any() for each in arrays)
    assert rounded.trace(Batch(*(each[0] for each in batches())), state)["hidden_l2"].dtype == np.float32


@pytest.mark.parametrize("options", [{}, {"tied_weights": True, "embedding_size": H}, {"residual": True}], ids=str)
@pytest.mark.parametrize(("embedding", "folds"), [(0, False), (4, False), (64, True)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_fused_engine_computes_the_same(torch, monkeypatch, cell, embedding, folds, options):
    """Loss, gradients, states, tokens; vectors of more numbers than there are tokens are folded into the weight."""
    from impl_torch import fused

    monkeypatch.setattr(fused, "folding_pays", lambda V, E, steps: folds)
    sizes = {"embedding_size": embedding, "embedding_activation": "tanh" if embedding else "none"}
    model, results = small(cell=cell, dropout=0.3, **{**sizes, **options}), []
    for engine in ("scratch", "fused"):
        made = make(model, engine=engine, dtype="float64")
        state = made.logits(batches().tokens[1], made.initial_state(B))[1]
        loss, gradients, after = made.loss_and_gradients(Batch(*(each[0] for each in batches())), state, 3)
        written = made.generate(*prompts(), SamplingRule(end=2))
        state, given = made.dump_state(after), gradients.initial_state
        results.append([loss, *gradients.parameters.values(), *given.values(), *state.values(), written])
    for own, expected in zip(*results, strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-14)


def prompts():
    random = np.random.default_rng(5)
    return random.integers(0, V, (B, 3)).astype(np.int32), np.array([1, 3, 2], np.int32), random.random((B, 20))


def test_what_a_token_adds_is_looked_up_where_that_is_less_work(torch):
    """A table of the whole vocabulary, or each token by itself: the same tokens."""
    for model in (small(), small(embedding_size=0, residual=True), small(cell="wrnn", residual=True)):
        made, few = make(model, dtype="float64"), prompts()
        one = made.generate(few[0][:1, :1], few[1][:1], few[2][:1, :4], SamplingRule())  # 5 tokens of 9
        assert np.array_equal(made.generate(few[0][:1, :1], few[1][:1], few[2][:1], SamplingRule())[:, :4], one)


def test_folding_pays_where_there_are_fewer_products():
    from impl_torch.fused import folding_pays

    assert folding_pays(65, 512, 6400)
    assert not folding_pays(5416, 512, 3136)
    assert not folding_pays(65, 512, 64)


def test_gradients_through_onednns_product(torch):
    from impl_torch.fused import OneDNN, dense, why_no_onednn

    if why_no_onednn(torch.float32, "cpu"):
        pytest.skip(why_no_onednn(torch.float32, "cpu"))
    assert dense(torch.ones(T, B, H), torch.ones(V, H), torch.ones(V)).grad_fn is None
    given = [draw(torch, *shape).detach().float().requires_grad_() for shape in ((T, B, H), (V, H), (V,))]
    product = dense(*given)
    assert isinstance(product.grad_fn.next_functions[0][0], OneDNN._backward_cls)
    gradients = torch.autograd.grad((product**2).sum(), given)
    expected = torch.autograd.grad((torch.nn.functional.linear(*given) ** 2).sum(), given)
    for own, like in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, like, rtol=1e-5, atol=1e-5)
    assert make(small(), engine="fused").kernel.endswith("logits: oneDNN")
    assert "oneDNN's product is for float32" in make(small(), engine="fused", dtype="float64").kernel


def test_a_torch_without_the_private_product_says_so(torch, monkeypatch):
    from impl_torch import fused

    def gone(*arguments):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(fused, "onednn", gone)
    fused.why_no_onednn.cache_clear()
    try:
        made = make(small(), engine="fused")
        assert "ATen (this torch has no oneDNN product: '_OpNamespace'" in made.kernel
        assert made.train_steps(batches(), made.initial_state(B), np.full(K, 0.01)).finite.all()
    finally:
        fused.why_no_onednn.cache_clear()


def test_masks_where_words_wrap_and_signs_turn(torch):
    """int32 stands for uint32: every bit of seed, step and place in use, sizes that fill no vector."""
    from impl_torch import dropout

    outputs, keys = torch.zeros(T, B, 7), torch.tensor([dropout_keys(2**62 + 5, layer) for layer in range(2)])
    for step in (2**31 - 1, 2**31, 2**32 - 1, 2**40 + 3):
        for rate in (0.01, 0.5, 0.999):
            asked = dropout.Dropout((0.0, rate), keys, torch.tensor(step, dtype=torch.float64))
            mask = dropout.keep_mask(outputs, 1, asked).transpose(0, 1).numpy()
            assert np.array_equal(mask, keep_mask(2**62 + 5, step, 1, (B, T, 7), rate))


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("dialect", ["torch", "keras"])
def test_a_step_that_is_not_finite_leaves_every_rule_alone(optimizer, dialect):
    config = OptimizerConfig(optimizer=optimizer, dialect=dialect, rmsprop_momentum=0.5 * (optimizer == "rmsprop"))
    made, stacked = make(small(), config, dtype="float64"), batches()
    made.train_steps(stacked, made.initial_state(B), np.full(K, 0.01))
    slots, step = made.dump_optimizer()
    broken = {name: np.where(name == "decoder.bias", np.nan, value) for name, value in made.dump_parameters().items()}
    made.load_parameters(broken)
    made.load_optimizer(slots, step)
    steps = made.train_steps(stacked, made.initial_state(B), np.full(K, 0.01))
    assert not steps.finite.any()
    assert made.dump_optimizer()[1] == step == K
    assert all(np.array_equal(value, slots[name]) for name, value in made.dump_optimizer()[0].items())
    after = made.dump_parameters()
    assert all(np.array_equal(after[name], broken[name], equal_nan=True) for name in broken)


def test_a_gradient_in_another_memory_order_is_applied_as_it_is(torch):
    """The fused kernels would read it scrambled."""
    from impl_torch.optimizer import init_slots, update

    gradient = draw(torch, H, E, requires_grad=False)
    for optimizer in ("sgd", "momentum", "adam"):
        config, results = OptimizerConfig(optimizer=optimizer), []
        for given in (gradient, gradient.T.contiguous().T):
            parameters = {"p": torch.zeros(H, E, dtype=torch.float64)}
            slots, step = init_slots(config, parameters), torch.zeros((), dtype=torch.float64)
            update(config, parameters, {"p": given}, slots, step, torch.tensor(True), 0.1)
            results.append(parameters["p"])
        assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_cudnn_runs_the_native_engine_on_a_gpu(torch, name):
    """Without a warning that weights lie apart: warnings are errors here."""
    model = LAYERS[name][0]
    made = create_model("torch", model, OptimizerConfig(), V, RuntimeConfig(device="cuda", engine="native"), 0)
    assert f"torch.{LAYERS[name][3]}, cuDNN {torch.backends.cudnn.version()}" in made.kernel
    assert made.train_steps(batches(), made.initial_state(B), np.full(K, 0.01)).finite.all()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
