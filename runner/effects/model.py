"""Effects of cells, initial weights, dropout, losses, sampling and precision: for each difference a function that
returns how large it is before the option that settles it, and after it. `runner.differences` has the table of them;
`optimizer` measures clipping and optimizers.

A framework is imported within the function that measures a layer of its own, which a worker with that framework calls.
"""

import numpy as np

from runner.effects.fixtures import (
    DEEP,
    FLOAT64,
    GRU,
    LSTM,
    RATES,
    SGD,
    STEPS,
    Array,
    Arrays,
    B,
    E,
    Effect,
    H,
    T,
    V,
    apart,
    batches,
    distance,
    logits,
    mistaken,
    mistaken_logits,
    padded,
    random_parameters,
    relative,
    trained,
)
from runner.registry import create_model, formats, import_quietly
from shared.config import Initializer, ModelConfig
from shared.contract import Batch
from shared.initializers import initial_parameters
from shared.layouts import Network, from_layers, to_layers
from shared.random_bits import keep_mask, normals, uniforms

# Cells.


def orders_of_gates() -> Effect:
    parameters = random_parameters(GRU)
    truth, native = logits(GRU, parameters), to_layers("keras", GRU, parameters)
    as_they_are = {
        **parameters,
        "rnn.weight_ih_l0": native["rnn_0.kernel"].T,
        "rnn.weight_hh_l0": native["rnn_0.recurrent_kernel"].T,
        "rnn.bias_l0": native["rnn_0.bias"].sum(0),
    }
    as_they_are["rnn.bias_l0"][2 * H :] -= parameters["rnn.bias_hn_l0"]
    converted = from_layers("keras", GRU, native)
    return apart(logits(GRU, as_they_are), truth), apart(logits(GRU, converted), truth)


def orientation() -> Effect:
    parameters = random_parameters(LSTM)
    truth, native = logits(LSTM, parameters), to_layers("keras", LSTM, parameters)
    kernel = native["rnn_0.recurrent_kernel"].reshape(4 * H, H)  # [H, 4H] poured into [4H, H]: the sizes fit
    poured = apart(logits(LSTM, parameters | {"rnn.weight_hh_l0": kernel}), truth)
    return poured, apart(logits(LSTM, from_layers("keras", LSTM, native)), truth)


def reset_before() -> Effect:
    """The same weights, with bias_hn zero, which the other has not."""
    before = ModelConfig(cell="gru", hidden_size=H, embedding_size=E, gru_reset="before")
    parameters = random_parameters(before)
    after = parameters | {"rnn.bias_hn_l0": np.zeros(H)}
    paper = mistaken_logits(GRU, after, "reset before")
    return apart(logits(GRU, after), paper), apart(logits(before, parameters), paper)


def update_gate() -> Effect:
    """Papers' z is 1 - ours, and sigmoid(-x) = 1 - sigmoid(x)."""
    parameters = random_parameters(GRU)
    paper = mistaken_logits(GRU, parameters, "update inverted")
    signs = np.repeat([1.0, -1.0, 1.0], H)
    turned = {name: (each.T * signs).T if len(each) == 3 * H else each for name, each in parameters.items()}
    return apart(logits(GRU, parameters), paper), apart(logits(GRU, turned), paper)


def two_biases() -> Effect:
    """torch.nn.LSTM under plain descent against ours: with both biases trained, and with the second one frozen."""
    ours = trained(SGD, 0.5)
    return distance(torch_lstm(True), ours), distance(torch_lstm(False), ours)


def torch_lstm(second_bias: bool) -> Arrays:
    """Parameters after STEPS steps of torch.nn.LSTM between torch's own embedding and linear layer; biases summed."""
    torch = import_quietly("torch")
    torch.set_num_threads(1)
    layers = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(V, E),
            "rnn": torch.nn.LSTM(E, H, batch_first=True),
            "decoder": torch.nn.Linear(H, V),
        }
    ).double()
    start = to_layers("torch", LSTM, initial_parameters(LSTM, V, 3))
    layers.load_state_dict({name: torch.tensor(each) for name, each in start.items()})
    layers["rnn"].bias_hh_l0.requires_grad_(second_bias)
    descent, state = torch.optim.SGD([each for each in layers.parameters() if each.requires_grad], 0.5), None
    for k in range(STEPS):
        descent.param_groups[0]["lr"] = 0.5 * float(RATES[k])
        tokens, targets = (torch.tensor(each[k]).long() for each in batches()[:2])
        outputs, state = layers["rnn"](layers["embedding"](tokens), state)
        state = tuple(each.detach() for each in state)
        descent.zero_grad()
        torch.nn.functional.cross_entropy(layers["decoder"](outputs).reshape(-1, V), targets.reshape(-1)).backward()
        descent.step()
    return from_layers("torch", LSTM, {name: each.detach().numpy() for name, each in layers.named_parameters()})


def packed_padding() -> Effect:
    """The outputs at padded steps, packed, against computed on; then those at real steps."""
    torch = import_quietly("torch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer, lengths = torch.nn.LSTM(E, H, batch_first=True).double(), padded().mask.sum(1)
    inputs = torch.tensor(normals(7, "packed", B * T * E).reshape(B, T, E))
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        on, (given, _) = layer(inputs)[0].numpy(), torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], True)
    real, got = padded().mask, given.numpy()
    return apart(got[~real], on[~real]), apart(got[real], on[real])


def nnx_gru() -> Effect:
    """The GRU of flax nnx, which has no place for bias_hn, and that of linen, against ours."""
    parameters, flax = random_parameters(GRU), formats("jax")
    tokens = batches().tokens[0]
    ours = create_model("numpy", GRU, SGD, V, FLOAT64)
    ours.load_parameters(parameters)
    batch = Batch(tokens, tokens, np.ones((B, T), bool), np.ones(B, bool))
    truth, found = ours.trace(batch, ours.initial_state(B))["hidden_l0"], []
    for layout, without in (("nnx", {"rnn.bias_hn_l0": np.zeros(H)}), ("linen", {})):
        layers = to_layers(layout, GRU, parameters | without)
        prefix = "rnn_0.cell."
        cell = {name.removeprefix(prefix): each for name, each in layers.items() if name.startswith(prefix)}
        outputs = flax.recurrent(Network(layout, GRU, V, {}), parameters["embedding.weight"][tokens], cell)
        found.append(apart(np.asarray(outputs), truth))
    return found[0], found[1]


# Initial weights.


def spread(initializer: Initializer, name: str, model: ModelConfig = LSTM) -> float:
    """Standard deviation of an initial parameter."""
    options = ModelConfig(hidden_size=H, embedding_size=E, cell=model.cell, initializer=initializer)
    return float(initial_parameters(options, V, 3)[name].std())


def wider(ours: Initializer, library: Initializer, name: str) -> Effect:
    """How much wider or narrower than the library's a parameter starts, and so with the library's rule."""
    exact = EXACT_SPREADS[library, name]
    return abs(spread(ours, name) / exact - 1), abs(spread(library, name) / exact - 1)


EXACT_SPREADS = {
    ("keras", "embedding.weight"): 0.05 / np.sqrt(3),
    ("torch", "embedding.weight"): 1.0,
    ("keras", "rnn.weight_ih_l0"): np.sqrt(2 / (E + 4 * H)),
    ("torch", "rnn.bias_l0"): np.sqrt(2 / (3 * H)),
}
"""What the libraries' documentation says of their default layers."""


def forget_gate() -> Effect:
    """The mean of sigmoid(b_f): Keras against flax, and against flax' rule with --forget-bias 1."""
    options = {
        "keras": ModelConfig(hidden_size=H, embedding_size=E, initializer="keras"),
        "flax": ModelConfig(hidden_size=H, embedding_size=E, initializer="flax"),
        "option": ModelConfig(hidden_size=H, embedding_size=E, initializer="flax", forget_bias=1),
    }
    rows = {name: initial_parameters(each, V, 3)["rnn.bias_l0"][H : 2 * H] for name, each in options.items()}
    open_ = {name: float((1 / (1 + np.exp(-each))).mean()) for name, each in rows.items()}
    return abs(open_["flax"] - open_["keras"]), abs(open_["option"] - open_["keras"])


def fused_orthogonal() -> Effect:
    """The largest distance from 1 of the singular values: of the gates' blocks, of the whole, as Keras draws them."""
    kernel = initial_parameters(ModelConfig(hidden_size=H, initializer="keras"), V, 3)["rnn.weight_hh_l0"]
    blocks = np.linalg.svd(kernel.reshape(4, H, H), compute_uv=False)
    gates = initial_parameters(ModelConfig(hidden_size=H, initializer="orthogonal"), V, 3)["rnn.weight_hh_l0"]
    each = np.linalg.svd(gates.reshape(4, H, H), compute_uv=False)
    return float(np.abs(blocks - 1).max()), float(np.abs(each - 1).max())


# Dropout.


def other_masks() -> Effect:
    ours = trained(SGD, 0.5, DEEP)
    return distance(trained(SGD, 0.5, DEEP, seed=1), ours), distance(mistaken(DEEP, 0.5), ours)


def dropout_behind_all() -> Effect:
    ours = trained(SGD, 0.5, DEEP)
    return distance(mistaken(DEEP, 0.5, "dropout behind the last layer too"), ours), distance(mistaken(DEEP, 0.5), ours)


def one_mask_a_sequence() -> Effect:
    """Share of the later steps whose mask is not the first step's: of our masks, less of Keras' layer. Its inputs are
    ones, and it hands them on, so that its outputs show what was dropped."""
    keras = import_quietly("keras")
    size, ones = 8, np.ones((B, T, 8))
    layer = keras.layers.SimpleRNN(
        size, "linear", kernel_initializer="identity", recurrent_initializer="zeros", return_sequences=True, dropout=0.3
    )
    kept = np.asarray(layer(ones, training=True)) > 0
    ours = keep_mask(0, 0, 0, (B, T, size), 0.3)
    shares = [float((masks[:, 1:] != masks[:, :1]).mean()) for masks in (kept, ours)]
    return abs(shares[1] - shares[0]), None


# Loss and masking.


def token_nats(batch: Batch) -> Array:
    """Nats of each token by a direct formula [B, T], of random weights."""
    values = logits(LSTM, random_parameters(LSTM))
    top = values.max(-1, keepdims=True)
    whole = np.log(np.exp(values - top).sum(-1)) + top[..., 0]
    return np.asarray(whole - np.take_along_axis(values, batch.targets[..., None], -1)[..., 0])


def our_loss(batch: Batch) -> float:
    """The mean of the contract, of the same weights."""
    ours = create_model("numpy", LSTM, SGD, V, FLOAT64)
    ours.load_parameters(random_parameters(LSTM))
    return ours.loss_and_gradients(batch, ours.initial_state(B))[0]


def mean_over_padding() -> Effect:
    batch = padded()
    nats = token_nats(batch)
    right = (nats * batch.mask).sum() / batch.mask.sum()
    return relative((nats * batch.mask).sum() / batch.mask.size, right), relative(our_loss(batch), right)


def mean_of_means() -> Effect:
    batch = padded()
    nats, count = token_nats(batch) * batch.mask, batch.mask.sum(1)
    right = nats.sum() / count.sum()
    return relative((nats.sum(1) / count).mean(), right), relative(our_loss(batch), right)


def keras_masked_mean() -> Effect:
    """Keras' SparseCategoricalCrossentropy with the mask as sample_weight, by default and told to divide rightly."""
    keras = import_quietly("keras")
    keras.config.set_floatx("float64")
    batch, values, right = padded(), logits(LSTM, random_parameters(LSTM)), our_loss(padded())
    kinds = ("sum_over_batch_size", "mean_with_sample_weight")
    losses = [keras.losses.SparseCategoricalCrossentropy(True, reduction=kind) for kind in kinds]
    found = [float(loss(batch.targets, values, sample_weight=batch.mask.astype(float))) for loss in losses]
    return relative(found[0], right), relative(found[1], right)


def from_probabilities() -> Effect:
    """Nats of a token with logit -50 beside zeros: Keras clips probabilities to [1e-7, 1 - 1e-7]."""
    values = np.zeros(V)
    values[1] = -50
    right = np.log(np.exp(values).sum()) + 50
    clipped = -np.log(np.clip(np.exp(-right), 1e-7, 1 - 1e-7))
    ours = create_model("numpy", LSTM, SGD, V, FLOAT64)
    ours.load_parameters(ours.dump_parameters() | {"decoder.bias": values})
    batch = padded()
    loss, _, _ = ours.loss_and_gradients(batch._replace(targets=np.ones_like(batch.targets)), ours.initial_state(B))
    return float(right - clipped), relative(loss, float(right))


def mean_perplexity() -> Effect:
    """The mean of the rows' perplexities against that of all tokens, and ours, from the sums of `evaluate`."""
    batch = padded()
    nats, count = token_nats(batch) * batch.mask, batch.mask.sum(1)
    right = np.exp(nats.sum() / count.sum())
    ours = create_model("numpy", LSTM, SGD, V, FLOAT64)
    ours.load_parameters(random_parameters(LSTM))
    found = ours.evaluate(Batch(*(each[None] for each in batch)), ours.initial_state(B))
    return relative(float(np.exp(nats.sum(1) / count).mean()), right), relative(
        np.exp(found.nats / found.tokens), right
    )


# Sampling.


def cumulative_sum() -> Effect:
    """The largest error of a sequential sum of 50,000 probabilities, in float32 and in float64."""
    drawn = -np.log1p(-uniforms(9, "probabilities", 50_000))
    probabilities = drawn / drawn.sum()
    exact = np.cumsum(probabilities.astype(np.longdouble))
    errors = [np.abs(np.cumsum(probabilities.astype(d), dtype=d) - exact).max() for d in (np.float32, np.float64)]
    return float(errors[0]), float(errors[1])


def samplers() -> Effect:
    """Share of tokens that differ, of two generators with equal seeds over equal probabilities: NumPy's legacy Mersenne
    Twister and PCG64; then of two draws from the same uniforms."""
    odds = np.full(V, 1 / V)
    legacy, modern = (
        np.random.RandomState(0).choice(V, 20_000, p=odds),
        np.random.default_rng(0).choice(V, 20_000, p=odds),
    )
    ours = [np.searchsorted(np.cumsum(odds), uniforms(0, "sample.0", 20_000)) for _ in range(2)]
    return float((legacy != modern).mean()), float((ours[0] != ours[1]).mean())


def topk_ties() -> Effect:
    """Share of the rows whose torch.topk, and then whose stable sort, is not the lowest tokens."""
    torch = import_quietly("torch")
    torch.set_num_threads(1)
    values = np.floor(8 * uniforms(10, "ties", 500 * V)).reshape(500, V)  # 8 different logits: ties everywhere
    lowest = np.argsort(-values, axis=1, kind="stable")[:, :5]
    top = torch.topk(torch.tensor(values), 5).indices.numpy()
    stable = torch.sort(torch.tensor(values), descending=True, stable=True).indices.numpy()[:, :5]
    return float((top != lowest).any(1).mean()), float((stable != lowest).any(1).mean())


# Precision and order.


def float32_training() -> Effect:
    """Float32 against float64; then float64 against the second reference in float64."""
    ours = trained(SGD, 0.5)
    return distance(trained(SGD, 0.5, dtype="float32"), ours), distance(mistaken(LSTM, 0.5), ours)


def order_of_sums() -> Effect:
    """A float32 sum of 100,000 numbers, one by one, in units in the last place; then in float64, rounded once."""
    values = uniforms(12, "sums", 100_000).astype(np.float32)
    exact = np.float64(values).sum()
    unit = float(np.spacing(np.float32(exact)))
    in_order, rounded = np.cumsum(values)[-1], np.float32(np.cumsum(np.float64(values))[-1])
    return abs(float(in_order) - exact) / unit, abs(float(rounded) - np.float64(np.float32(exact))) / unit


def silent_float32() -> Effect:
    """jax.numpy.asarray of float64, without x64 and with it."""
    jax = import_quietly("jax")
    values, found = normals(13, "x64", 1000), []
    for switch in (False, True):
        jax.config.update("jax_enable_x64", switch)
        found.append(apart(np.asarray(jax.numpy.asarray(values)).astype(np.float64), values))
    return found[0], found[1]
