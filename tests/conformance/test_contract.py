"""The contract's promises that need no second implementation."""

import importlib

import numpy as np
import pytest

from runner.registry import create_model
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Batch
from shared.errors import ConfigError, ImplementationError, ParameterError
from shared.parameters import parameter_shapes, state_shapes
from shared.random_bits import dropout_keys, keep_mask, mix
from shared.sampling import SamplingRule, sampling_uniforms

B, T, V, E, H, K = 3, 5, 9, 4, 6, 4
RUNTIME = RuntimeConfig(device="cpu", dtype="float64")
RANDOM = np.random.default_rng


def make(impl, cell="lstm", runtime=RUNTIME, seed=0, model_options=None, **options):
    shape = {"cell": cell, "hidden_size": H, "num_layers": 2, "embedding_size": E} | (model_options or {})
    config = ModelConfig(**shape)
    model = create_model(impl, config, OptimizerConfig(**options), V, runtime, seed)
    random = RANDOM(3)
    model.load_parameters({name: random.normal(0, 0.5, shape) for name, shape in parameter_shapes(config, V).items()})
    return model


def make_batch(seed=5, leading=()):
    random = RANDOM(seed)
    shape = (*leading, B, T)
    tokens, targets = (random.integers(0, V, shape).astype(np.int32) for _ in range(2))
    mask = np.arange(T) < np.array([[T], [2], [4]])
    return Batch(tokens, targets, np.broadcast_to(mask, shape).copy(), np.zeros((*leading, B), bool))


def make_state(model, config_cell="lstm", layers=2):
    config = ModelConfig(cell=config_cell, hidden_size=H, num_layers=layers, embedding_size=E)
    random = RANDOM(11)
    return model.load_state({name: random.normal(size=shape) for name, shape in state_shapes(config, B).items()})


def dropout_inputs(arrays, place, keys, step):
    """Keys and step as the package takes them: numbers in NumPy, arrays on the device elsewhere."""
    return keys, step


def worst(left, right):
    return max(np.abs(left[name] - right[name]).max() for name in right)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "wrnn"])
def test_parameters_and_state_go_round(impl, cell):
    model = make(impl, cell)
    parameters, state = model.dump_parameters(), make_state(model, cell)
    model.load_parameters(parameters)
    assert worst(model.dump_parameters(), parameters) == 0
    dumped = model.dump_state(state)
    assert worst(model.dump_state(model.load_state(dumped)), dumped) == 0
    assert list(parameters) == list(
        parameter_shapes(ModelConfig(cell=cell, hidden_size=H, num_layers=2, embedding_size=E), V)
    )
    assert all(value.flags.c_contiguous for value in (*parameters.values(), *dumped.values()))


def test_wrong_parameters_are_named(impl):
    model = make(impl)
    before = model.dump_parameters()
    wrong = {**before, "rnn.bias_l1": np.zeros(3), "extra": np.zeros(2)}
    del wrong["decoder.bias"]
    with pytest.raises(ParameterError, match=r"missing decoder\.bias.*rnn\.bias_l1 has shape \[3\].*unexpected extra"):
        model.load_parameters(wrong)
    assert worst(model.dump_parameters(), before) == 0


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "wrnn"])
def test_a_text_in_pieces_is_the_text(impl, cell):
    model, batch = make(impl, cell), make_batch()
    whole, end = model.logits(batch.tokens, make_state(model, cell))
    first, between = model.logits(batch.tokens[:, :2], make_state(model, cell))
    second, end_in_pieces = model.logits(batch.tokens[:, 2:], between)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-13)
    assert worst(model.dump_state(end_in_pieces), model.dump_state(end)) < 1e-13


def test_rows_do_not_touch_each_other(impl):
    model, batch = make(impl), make_batch()
    order = [2, 0, 1]
    logits, _ = model.logits(batch.tokens, model.initial_state(B))
    permuted, _ = model.logits(batch.tokens[order], model.initial_state(B))
    np.testing.assert_allclose(permuted, logits[order], rtol=0, atol=1e-13)


def test_padding_changes_nothing(impl):
    model, batch = make(impl), make_batch()
    other = batch._replace(
        tokens=np.where(batch.mask, batch.tokens, 8).astype(np.int32),
        targets=np.where(batch.mask, batch.targets, 1).astype(np.int32),
    )
    results = [model.loss_and_gradients(each, make_state(model)) for each in (batch, other)]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-14)
    assert worst(results[0][1].parameters, results[1][1].parameters) < 1e-15
    assert model.evaluate(Batch(*(x[None] for x in batch)), make_state(model)).tokens == batch.mask.sum()


def test_reset_rows_start_from_zero_and_give_no_gradient_back(impl):
    model = make(impl)
    reset = np.array([False, True, False])
    batch = make_batch()._replace(reset=reset)
    loss, gradients, _ = model.loss_and_gradients(batch, make_state(model))
    arrays = {name: np.where(reset[:, None], 0, value) for name, value in model.dump_state(make_state(model)).items()}
    expected, _, _ = model.loss_and_gradients(make_batch(), model.load_state(arrays))
    assert loss == pytest.approx(expected, rel=1e-14)
    for value in gradients.initial_state.values():
        assert np.all(value[1] == 0)
        assert np.all(np.abs(value[[0, 2]]).max(axis=1) > 0)


def test_unused_embedding_rows_have_no_gradient(impl):
    model, batch = make(impl), make_batch()
    batch = batch._replace(tokens=(batch.tokens % 4).astype(np.int32))
    _, gradients, _ = model.loss_and_gradients(batch, model.initial_state(B))
    assert np.all(gradients.parameters["embedding.weight"][4:] == 0)
    assert np.all(np.abs(gradients.parameters["embedding.weight"][:4]).max(axis=1) > 0)


def test_a_stack_is_its_batches_one_by_one(impl):
    stacked, rates = make_batch(leading=(K,)), np.array([0.1, 0.2, 0.05, 0.3])
    together, apart = make(impl), make(impl)
    steps = together.train_steps(stacked, make_state(together), rates)
    state, losses = make_state(apart), []
    for k in range(K):
        step = apart.train_steps(Batch(*(each[k : k + 1] for each in stacked)), state, rates[k : k + 1])
        state, losses = step.state, [*losses, *step.losses]
    np.testing.assert_allclose(steps.losses, losses, rtol=1e-13)
    assert worst(together.dump_parameters(), apart.dump_parameters()) < 1e-12
    assert steps.finite.all()
    assert steps.losses.dtype == steps.gradient_norms.dtype == np.float64


def test_the_loss_of_a_step_is_the_loss_before_it(impl):
    model, stacked = make(impl), make_batch(leading=(1,))
    batch = Batch(*(each[0] for each in stacked))
    loss, gradients, _ = model.loss_and_gradients(batch, make_state(model))
    steps = model.train_steps(stacked, make_state(model), np.array([0.1]))
    norms = [np.sqrt((value**2).sum()) for value in gradients.parameters.values()]
    assert steps.losses[0] == pytest.approx(loss, rel=1e-14)
    assert steps.gradient_norms[0] == pytest.approx(np.sqrt(np.square(norms).sum()), rel=1e-13)
    np.testing.assert_allclose(steps.parameter_norms, [norms], rtol=1e-13)


@pytest.mark.parametrize("first", [{"clip_value": 0.02}, {"clip_layers": ("l0=0.05",)}], ids=["value", "layer"])
def test_the_global_norm_is_that_of_what_was_clipped_before(impl, first):
    limit, batch = 0.06, make_batch(leading=(1,))
    model = make(impl, optimizer="sgd", clip_norm=limit, **first)
    before, state = model.dump_parameters(), make_state(model)
    _, found, _ = model.loss_and_gradients(Batch(*(field[0] for field in batch)), state)
    model.train_steps(batch, state, np.array([1.0]))
    clipped = dict(found.parameters)
    if "clip_value" in first:
        clipped = {name: gradient.clip(-0.02, 0.02) for name, gradient in clipped.items()}
    else:
        clipped |= scaled({name: gradient for name, gradient in clipped.items() if name.endswith("_l0")}, 0.05)
    assert norm(found.parameters) > norm(clipped) > limit
    clipped = scaled(clipped, limit)
    assert worst(model.dump_parameters(), {name: before[name] - clipped[name] for name in before}) < 1e-14


def norm(gradients):
    return np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))


def scaled(gradients, limit):
    """To a norm that is exceeded."""
    assert norm(gradients) > limit
    return {name: gradient * limit / norm(gradients) for name, gradient in gradients.items()}


def test_clipping_off_is_plain_descent(impl):
    model, stacked = make(impl, optimizer="sgd", clip_norm=0.0), make_batch(leading=(1,))
    before = model.dump_parameters()
    _, gradients, _ = model.loss_and_gradients(Batch(*(each[0] for each in stacked)), make_state(model))
    model.train_steps(stacked, make_state(model), np.array([0.25]))
    expected = {name: value - 0.25 * gradients.parameters[name] for name, value in before.items()}
    assert worst(model.dump_parameters(), expected) < 1e-14


def test_a_step_that_is_not_finite_changes_nothing_but_the_state(impl):
    model, stacked = make(impl), make_batch(leading=(2,))
    parameters = model.dump_parameters()
    parameters["decoder.weight"][2, 3] = np.inf
    model.load_parameters(parameters)
    state = make_state(model)
    steps = model.train_steps(stacked, state, np.array([0.1, 0.1]))
    assert not steps.finite.any()
    after = model.dump_parameters()
    assert all(np.array_equal(after[name], parameters[name]) for name in parameters)
    assert all(np.all(value == 0) for value in model.dump_state(steps.state).values())
    slots, step = model.dump_optimizer()
    assert step == 0
    assert all(np.all(value == 0) for value in slots.values())


def test_a_run_handed_over_in_the_middle_does_not_notice(impl):
    stacked, rates = make_batch(leading=(K,)), np.full(K, 0.05)
    whole, first, second = make(impl), make(impl), make(impl)
    whole.train_steps(stacked, make_state(whole), rates)
    half = first.train_steps(Batch(*(each[:2] for each in stacked)), make_state(first), rates[:2])
    second.load_parameters(first.dump_parameters())
    second.load_optimizer(*first.dump_optimizer())
    state = second.load_state(first.dump_state(half.state))
    second.train_steps(Batch(*(each[2:] for each in stacked)), state, rates[2:])
    assert worst(second.dump_parameters(), whole.dump_parameters()) < 1e-13
    assert second.dump_optimizer()[1] == K


def test_evaluation_adds_up_the_losses(impl):
    model, stacked = make(impl), make_batch(leading=(K,))
    result = model.evaluate(stacked, make_state(model))
    state, nats = make_state(model), 0.0
    for k in range(K):
        loss, _, state = model.loss_and_gradients(Batch(*(each[k] for each in stacked)), state)
        nats += loss * stacked.mask[k].sum()
    assert result.nats == pytest.approx(nats, rel=1e-13)
    assert result.tokens == stacked.mask.sum()
    assert 0 <= result.hits <= result.tokens


def test_generated_text_is_what_the_logits_say(impl):
    """Greedy generation, ragged prompts: each token is the argmax of the logits after everything before it."""
    model = make(impl)
    prompt, lengths = np.array([[1, 2, 3], [4, 0, 0], [5, 6, 0]], np.int32), np.array([3, 1, 2], np.int32)
    written = model.generate(prompt, lengths, np.zeros((3, 7)), SamplingRule(temperature=0.0))
    assert written.dtype == np.int32
    for row, length in enumerate(lengths):
        text, state, greedy = [*prompt[row, :length], *written[row]], model.initial_state(1), []
        for token in text:
            logits, state = model.logits(np.array([[token]], np.int32), state)
            greedy.append(int(logits[0, 0].argmax()))
        assert greedy[length - 1 : -1] == list(written[row])


def test_sampling_follows_the_rule(impl):
    """Against the rule written out a second time, token by token, in plain Python."""
    model = make(impl)
    prompt, lengths, uniforms = np.array([[1]], np.int32), np.array([1], np.int32), sampling_uniforms(9, 1, 30)
    rule = SamplingRule(temperature=1.7, top_k=5, top_p=0.7)
    written = model.generate(prompt, lengths, uniforms, rule)[0]
    token, state = 1, model.initial_state(1)
    for following, uniform in zip(written, uniforms[0], strict=True):
        logits, state = model.logits(np.array([[token]], np.int32), state)
        assert following == draw(logits[0, 0] / rule.temperature, uniform, rule.top_k, rule.top_p)
        token = following
    assert len(set(written)) > 2


def draw(scores, uniform, top_k, top_p):
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:top_k]
    weights = [np.exp(scores[token] - scores[ranked[0]]) for token in ranked]
    total, before, kept = sum(weights), 0.0, []
    for token, weight in zip(ranked, weights, strict=True):
        if before < top_p * total or not kept:
            kept.append((token, weight))
        before += weight
    goal, reached = uniform * sum(weight for _, weight in kept), 0.0
    for token, weight in sorted(kept):
        reached += weight
        if reached > goal:
            return token
    return max(kept)[0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "rule",
    [SamplingRule(1.0), SamplingRule(0.6, top_k=7), SamplingRule(1.4, top_p=0.8), SamplingRule(2.0, 40, 0.9, end=4)],
    ids=str,
)
def test_many_texts_of_many_tokens_are_those_of_one_at_a_time(impl, rule, dtype):
    """A vocabulary of more than one block, its last one not full; equal logits at every border, ragged prompts, tokens
    forbidden, uniforms at both ends. The decoder is a bias alone, so that logits are the same at every step."""
    size, rows, length = 301, 5, 16
    config, random = ModelConfig(cell="gru", hidden_size=H, embedding_size=E), RANDOM(2)
    model = create_model(impl, config, OptimizerConfig(), size, RuntimeConfig(device="cpu", dtype=dtype), 0)
    logits = np.round(random.normal(0, 1.2, size), 1)
    zeros = {name: np.zeros(shape) for name, shape in parameter_shapes(config, size).items()}
    model.load_parameters({**zeros, "decoder.bias": logits})
    prompt, lengths = random.integers(0, size, (rows, 3)).astype(np.int32), np.array([3, 1, 2, 1, 3], np.int32)
    uniforms, allowed = random.random((rows, length)), random.random((length, size)) < 0.7
    uniforms[0, :4], uniforms[1, :4] = 0, 1 - 2**-53
    written = model.generate(prompt, lengths, uniforms, rule, None, allowed)
    for row in range(rows):
        last = 0
        for place, uniform in enumerate(uniforms[row]):
            permitted = np.flatnonzero(allowed[place])
            wanted = permitted[draw(logits[permitted] / rule.temperature, uniform, rule.top_k or size, rule.top_p)]
            last = rule.end if last == rule.end else wanted
            assert written[row, place] == last
    alone = model.generate(prompt[1:2, :1], lengths[1:2], uniforms[1:2], rule, None, allowed)
    assert np.array_equal(alone, written[1:2])


def test_ties_go_to_the_lowest_token(impl):
    model = make(impl)
    model.load_parameters({name: np.zeros_like(value) for name, value in model.dump_parameters().items()})
    prompt, lengths = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
    assert list(model.generate(prompt, lengths, np.zeros((1, 3)), SamplingRule(temperature=0.0))[0]) == [0, 0, 0]
    uniforms = np.array([[0.0, 0.3, 0.999999]])
    assert list(model.generate(prompt, lengths, uniforms, SamplingRule())[0]) == [0, int(0.3 * V), V - 1]
    assert list(model.generate(prompt, lengths, uniforms, SamplingRule(top_k=2))[0]) == [0, 0, 1]
    on_the_edge = np.array([[0.0, 0.5, 0.25]])  # a sum that is just reached is not exceeded
    assert list(model.generate(prompt, lengths, on_the_edge, SamplingRule(top_k=4))[0]) == [0, 2, 1]


@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_what_all_logits_have_in_common_changes_no_token(impl, shift):
    """exp(1000) would overflow, exp(-1000) vanish."""
    model, uniforms = make(impl), sampling_uniforms(8, 2, 10)
    prompt, lengths = np.array([[1], [2]], np.int32), np.ones(2, np.int32)
    expected = model.generate(prompt, lengths, uniforms, SamplingRule(temperature=0.9, top_p=0.95))
    parameters = model.dump_parameters()
    model.load_parameters({**parameters, "decoder.bias": parameters["decoder.bias"] + shift})
    written = model.generate(prompt, lengths, uniforms, SamplingRule(temperature=0.9, top_p=0.95))
    assert written.tolist() == expected.tolist()
    assert len(set(written.reshape(-1))) > 2


def test_rows_end_and_forced_tokens_stand(impl):
    model, uniforms = make(impl), sampling_uniforms(4, 2, 12)
    prompt, lengths = np.array([[1], [2]], np.int32), np.ones(2, np.int32)
    forced = np.full((2, 12), -1, np.int32)
    forced[0, 4], forced[1, 6] = 3, 5
    allowed = np.ones((12, V), bool)
    allowed[:, 3] = False
    written = model.generate(prompt, lengths, uniforms, SamplingRule(end=3), forced, allowed)
    assert 3 not in written[0, :4]
    assert list(written[0, 4:]) == [3] * 8
    assert 3 not in written[1]
    assert written[1, 6] == 5


def dropping(impl, seed=0):
    return make(impl, "gru", seed=seed, model_options={"dropout": 0.4})


def test_dropout_is_a_function_of_seed_and_step(impl):
    batch, model, other = make_batch(), dropping(impl), dropping(impl, seed=1)

    def loss(which, step):
        return which.loss_and_gradients(batch, which.initial_state(B), step)[0]

    assert loss(model, 3) == loss(model, 3)
    assert len({loss(model, 3), loss(model, 4), loss(other, 3), loss(model, None)}) == 4
    assert loss(model, None) == pytest.approx(loss(other, None), rel=1e-14)


def test_dropout_acts_in_training_alone(impl):
    model, plain, stacked = dropping(impl), make(impl, "gru"), make_batch(leading=(1,))
    batch = Batch(*(each[0] for each in stacked))
    state = model.initial_state(B)
    np.testing.assert_allclose(
        model.logits(batch.tokens, state)[0], plain.logits(batch.tokens, plain.initial_state(B))[0], rtol=0, atol=1e-14
    )
    assert model.evaluate(stacked, state).nats == pytest.approx(
        plain.evaluate(stacked, plain.initial_state(B)).nats, rel=1e-13
    )
    expected = model.loss_and_gradients(batch, state, 0)[0]
    assert model.train_steps(stacked, state, np.array([0.1])).losses[0] == pytest.approx(expected, rel=1e-13)


def just_kept(a, b, step):
    """A rate at which one output's hash is the least that is kept."""
    words = [np.array([word], np.uint32) for word in (a + step, b ^ step)]
    bits = mix(mix(np.arange(B * T * H, dtype=np.uint32) + mix(words[0])) ^ mix(words[1]))
    return float(bits[5]) / 2**32


def test_the_masks_are_the_contracts_bit_for_bit(impl):
    """Read off the second layer's input, through the package's own function."""
    dropout, arrays = (importlib.import_module(f"impl_{impl}.{name}") for name in ("dropout", "arrays"))
    place = arrays.open_device(RUNTIME)
    keys = tuple(dropout_keys(9, layer) for layer in range(3))
    for step, rate in ((0, 0.1), (77, 0.5), (2**30, 0.9), (77, just_kept(*keys[2], 77))):
        asked = dropout.Dropout((0.0, 0.0, rate), *dropout_inputs(arrays, place, keys, step))
        outputs = arrays.to_array(np.zeros((T, B, H)), place)
        mask = arrays.to_numpy(dropout.keep_mask(outputs, 2, asked)).swapaxes(0, 1)
        assert mask.dtype == bool
        assert mask.tobytes() == keep_mask(9, step, 2, (B, T, H), rate).tobytes()


@pytest.mark.parametrize("many_to_one", [False, True])
@pytest.mark.parametrize("gru_reset", ["after", "before"])
def test_a_trace_is_what_happened(impl, gru_reset, many_to_one):
    options = {"num_layers": 1, "gru_reset": gru_reset, "many_to_one": many_to_one}
    model = make(impl, "gru", model_options=options)
    batch, state = make_batch()._replace(mask=np.ones((B, T), bool)), make_state(model, "gru", 1)
    trace, (logits, after) = model.trace(batch, state), model.logits(batch.tokens, state)
    np.testing.assert_allclose(trace["logits"], logits, rtol=0, atol=1e-13)
    hidden = trace["hidden_l0"]
    np.testing.assert_allclose(hidden[:, -1], model.dump_state(after)["hidden_l0"], rtol=0, atol=1e-14)
    update, candidate = trace["update_gate_l0"][:, 1:], trace["candidate_l0"][:, 1:]
    np.testing.assert_allclose(hidden[:, 1:], (1 - update) * candidate + update * hidden[:, :-1], rtol=0, atol=1e-14)
    assert trace["reset_gate_l0"].min() > 0


def test_many_to_one_predicts_the_last_step(impl):
    options = {"num_layers": 1}
    last, every = make(impl, model_options={**options, "many_to_one": True}), make(impl, model_options=options)
    batch = make_batch()
    logits, state = last.logits(batch.tokens, last.initial_state(B))
    all_logits, all_state = every.logits(batch.tokens, every.initial_state(B))
    assert logits.shape == (B, V)
    np.testing.assert_allclose(logits, all_logits[:, -1], rtol=0, atol=1e-14)
    assert worst(last.dump_state(state), every.dump_state(all_state)) < 1e-14
    # The loss is that of the last unmasked step of each row; the gradient of the initial state comes back.
    ends = batch.mask.sum(1) - 1
    targets = batch.targets[np.arange(B), ends]
    picked = all_logits[np.arange(B), ends]
    nats = np.log(np.exp(picked).sum(1)) - picked[np.arange(B), targets]
    loss, gradients, _ = last.loss_and_gradients(batch._replace(targets=targets), last.initial_state(B))
    assert loss == pytest.approx(nats.mean(), rel=1e-13)
    assert all(np.abs(value).max(1).min() > 0 for value in gradients.initial_state.values())
    scores = last.evaluate(Batch(*(x[None] for x in batch._replace(targets=targets))), last.initial_state(B))
    assert scores.tokens == B
    assert scores.nats == pytest.approx(nats.sum(), rel=1e-13)


def test_the_optimizer_can_be_reset(impl):
    model = make(impl, optimizer="adagrad", initial_accumulator=0.25)
    fresh, _ = model.dump_optimizer()
    assert all(np.all(value == 0.25) for value in fresh.values())
    model.train_steps(make_batch(leading=(2,)), make_state(model), np.array([0.1, 0.1]))
    assert model.dump_optimizer()[1] == 2
    moved = model.dump_parameters()
    model.reset_optimizer()
    slots, step = model.dump_optimizer()
    assert step == 0
    assert worst(slots, fresh) == 0
    assert worst(model.dump_parameters(), moved) == 0


def test_a_layer_that_is_not_there_cannot_be_clipped(impl):
    with pytest.raises(ConfigError, match="no layer l2; this model has embedding, l0, l1, decoder"):
        make(impl, clip_layers=("l2=1",))


def test_float32_stays_float32(impl):
    model = make(impl, runtime=RuntimeConfig(device="cpu", dtype="float32"))
    model.train_steps(make_batch(leading=(2,)), make_state(model), np.array([0.1, 0.1]))
    slots, _ = model.dump_optimizer()
    logits, state = model.logits(make_batch().tokens, model.initial_state(B))
    arrays = [*model.dump_parameters().values(), *slots.values(), *model.dump_state(state).values(), logits]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_the_place_is_told(impl):
    model = make(impl)
    assert (model.device, model.engine) == ("cpu", "fused")
    assert model.kernel


def test_a_missing_gpu_is_said(impl):
    try:
        model = make(impl, runtime=RuntimeConfig(device="cuda:7"))
    except ImplementationError as error:
        assert "cpu" in str(error)  # noqa: PT017 - a machine with eight GPUs is no failure
    else:
        assert model.device.startswith("cuda:7")
