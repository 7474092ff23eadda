"""The differences between the frameworks, one entry each: what differs, what measures it, the option that settles it,
and the test that proves so."""

from collections.abc import Callable
from typing import NamedTuple

from runner.effects.fixtures import LOGITS, MOVED, Effect
from runner.effects.model import (
    cumulative_sum,
    dropout_behind_all,
    float32_training,
    forget_gate,
    from_probabilities,
    fused_orthogonal,
    keras_masked_mean,
    mean_of_means,
    mean_over_padding,
    mean_perplexity,
    nnx_gru,
    one_mask_a_sequence,
    order_of_sums,
    orders_of_gates,
    orientation,
    other_masks,
    packed_padding,
    reset_before,
    samplers,
    silent_float32,
    topk_ties,
    two_biases,
    update_gate,
    wider,
)
from runner.effects.optimizer import (
    adagrad_start,
    adam_default_epsilon,
    adam_epsilon,
    adamw_decay,
    coupled_decay,
    gathered_rows,
    keras_clipnorm,
    keras_constants,
    momentum_rate,
    nesterov_rate,
    rmsprop_decay,
    rmsprop_epsilon,
    rmsprop_momentum,
    rounded_constants,
    torch_clipping,
)


class Difference(NamedTuple):
    """One row: what differs, both formulas, and how large it is."""

    section: str
    what: str
    left: str
    right: str
    unit: str
    option: str
    proof: str
    """What fails where the project does otherwise: FILE::TEST."""
    measure: Callable[[], Effect]
    impl: str = "numpy"
    """The implementation whose framework is measured."""


# The table.

CHECK, CONTRACT = "tests/conformance/test_check.py::", "tests/conformance/test_contract.py::"
NATIVE, EVERY = (
    CHECK + "test_the_native_layer_agrees_or_says_why_it_cannot",
    CHECK + "test_every_quantity_agrees_with_numpy",
)
LIBRARY = "tests/parity/test_library_initializers.py::test_default_layers_are_reproduced_in_distribution"
DIALECTS = "tests/parity/test_library_optimizers.py::test_a_dialect_is_its_library"
TRIED = "tests/reference/test_options.py::test_an_option_of_the_optimizer_changes_the_result"
MASKS = CONTRACT + "test_the_masks_are_the_contracts_bit_for_bit"
CLIPS = "tests/conformance/test_defects.py::test_a_defect_is_caught"
OPENNESS, WIDTH, SHARE, CHANGE = "mean of sigmoid(b_f)", "relative width", "share", "relative change of the loss"

DIFFERENCES = {
    "gate-order": Difference(
        "cells", "order of a GRU's gates", "Keras: z r n", "PyTorch, cuDNN, flax: r z n", LOGITS,
        "convert", "tests/conformance/test_engine_tf.py::test_the_blocks_of_a_gru_stand_in_keras_order",
        orders_of_gates,
    ),
    "kernel-orientation": Difference(
        "cells", "orientation of kernels", "Keras, flax: x K, K [in, out]", "PyTorch: W x, W [out, in]", LOGITS,
        "convert", NATIVE, orientation,
    ),
    "gru-reset": Difference(
        "cells", "where the reset gate acts", "the paper: n = tanh(W x + b + U (r h))",
        "PyTorch, cuDNN, flax, Keras: n = tanh(W x + b + r (U h + b_hn))", LOGITS,
        "--gru-reset before", EVERY, reset_before,
    ),
    "update-gate": Difference(
        "cells", "what the update gate keeps", "some papers: h = (1 - z) h' + z n",
        "all libraries: h = (1 - z) n + z h'",
        LOGITS, "negate the z rows", EVERY, update_gate,
    ),
    "two-biases": Difference(
        "cells", "biases that are trained", "PyTorch: b_ih and b_hh, each by lr dL/db", "Keras, flax: one b", MOVED,
        "b_hh.requires_grad_(False)", NATIVE, two_biases, "torch",
    ),
    "nnx-gru": Difference(
        "cells", "bias in the reset product", "flax nnx: n = tanh(W x + b + r U h)",
        "flax linen, PyTorch, Keras: n = tanh(W x + b + r (U h + b_hn))", "of the outputs",
        "convert --layout linen", "tests/shared/test_layouts.py::test_nnx_has_no_bias_within_the_reset_product",
        nnx_gru, "jax",
    ),
    "packed-padding": Difference(
        "cells", "outputs at padded steps", "PyTorch, packed: 0", "flax: computed on", "of the outputs",
        "weigh them with 0", CONTRACT + "test_padding_changes_nothing", packed_padding, "torch",
    ),
    "forget-bias": Difference(
        "initialisation", "forget gate at the start", "Keras: b_f = 1", "flax: b_f = 0; PyTorch: U + U around 0",
        OPENNESS,
        "--forget-bias 1",
        "tests/shared/test_initializers.py::test_the_forget_bias_is_added_to_the_forget_gate_alone", forget_gate,
    ),
    "embedding-width": Difference(
        "initialisation", "embedding, in widths of Keras'", "PyTorch: N(0, 1)", "Keras: U(-0.05, 0.05)", WIDTH,
        "--initializer keras", LIBRARY, lambda: wider("torch", "keras", "embedding.weight"),
    ),
    "fused-fan": Difference(
        "initialisation", "Glorot's fan", "Keras: sqrt(6 / (I + 4 H))", "each gate alone: sqrt(6 / (I + H))", WIDTH,
        "--initializer keras", LIBRARY, lambda: wider("xavier", "keras", "rnn.weight_ih_l0"),
    ),
    "fused-orthogonal": Difference(
        "initialisation", "what is orthogonal", "Keras: the stack of all gates [4H, H]",
        "flax: each gate's block [H, H]",
        "largest |s - 1| of a gate", "--initializer orthogonal",
        "tests/parity/test_library_initializers.py::test_recurrent_weights_have_the_singular_values_of_the_library",
        fused_orthogonal,
    ),
    "summed-biases": Difference(
        "initialisation", "bias at the start", "PyTorch: U(±1/sqrt(H)) + U(±1/sqrt(H))", "one U(±1/sqrt(H))", WIDTH,
        "--initializer torch", LIBRARY, lambda: wider("uniform", "torch", "rnn.bias_l0"),
    ),
    "dropout-generator": Difference(
        "dropout", "the random generator", "Mersenne Twister, Philox, threefry", "hash(seed, step, layer, place)",
        MOVED,
        "--seed, the same", MASKS, other_masks,
    ),
    "dropout-last-layer": Difference(
        "dropout", "behind the last layer", "a Dropout behind every layer: dropped, too", "PyTorch: not dropped", MOVED,
        "always as PyTorch", EVERY, dropout_behind_all,
    ),
    "dropout-through-time": Difference(
        "dropout", "masks through time", "Keras LSTM(dropout=): one for all steps", "PyTorch: a new one each step",
        "share of masks that change", "", MASKS, one_mask_a_sequence, "tf",
    ),
    "mean-over-padding": Difference(
        "loss", "what the sum is divided by", "sum(nats mask) / (B T)", "sum(nats mask) / sum(mask)", CHANGE,
        "always sum(mask)", CONTRACT + "test_padding_changes_nothing", mean_over_padding,
    ),
    "keras-masked-mean": Difference(
        "loss", "Keras' sample_weight", "default: sum(nats w) / (B T)", "sum(nats w) / sum(w)", CHANGE,
        'reduction="mean_with_sample_weight"', EVERY, keras_masked_mean, "tf",
    ),
    "mean-of-means": Difference(
        "loss", "mean of the rows' means", "mean_b(sum_t nats / T_b)", "sum(nats) / sum(T_b)", CHANGE,
        "always over tokens", CONTRACT + "test_evaluation_adds_up_the_losses", mean_of_means,
    ),
    "mean-perplexity": Difference(
        "loss", "perplexities averaged", "mean(exp(loss_k))", "exp(sum nats / sum tokens)", "relative change",
        "evaluate", CONTRACT + "test_evaluation_adds_up_the_losses", mean_perplexity,
    ),
    "from-probabilities": Difference(
        "loss", "loss from probabilities", "Keras: -ln(clip(p, 1e-7, 1 - 1e-7))", "from logits: ln sum exp(z) - z_y",
        "nats of a token at logit -50", "always from logits", EVERY, from_probabilities,
    ),
    "clip-epsilon": Difference(
        "clipping", "1e-6 in the norm", "PyTorch: g min(1, c / (n + 1e-6))", "optax, TensorFlow: g c / max(n, c)",
        MOVED,
        "--clip-norm 0.1", CLIPS, torch_clipping,
    ),
    "clip-per-variable": Difference(
        "clipping", "whose norm is clipped", "Keras clipnorm: each variable's", "over all parameters", MOVED,
        "--clip-norm 0.1", CLIPS, keras_clipnorm,
    ),
    "gathered-rows": Difference(
        "clipping", "norm of an embedding's gradient", "TensorFlow: each occurrence a row",
        "rows of a token summed first",
        "relative error of the norm", "tf.convert_to_tensor(gradient)",
        CONTRACT + "test_unused_embedding_rows_have_no_gradient", gathered_rows, "tf",
    ),
    "momentum-rate": Difference(
        "optimizers", "rate and momentum", "Keras: v = m v - lr g; p += v", "PyTorch, optax: v = m v + g; p -= lr v",
        MOVED, "--dialect keras", DIALECTS, momentum_rate,
    ),
    "nesterov-rate": Difference(
        "optimizers", "rate and Nesterov's momentum", "Keras: v = m v - lr g; p += m v - lr g",
        "PyTorch, optax: v = m v + g; p -= lr (g + m v)", MOVED, "--dialect keras", DIALECTS, nesterov_rate,
    ),
    "rmsprop-epsilon": Difference(
        "optimizers", "RMSprop's epsilon", "Keras, optax: g / sqrt(s + e)", "PyTorch: g / (sqrt(s) + e)", MOVED,
        "--dialect keras", DIALECTS, rmsprop_epsilon,
    ),
    "rmsprop-momentum": Difference(
        "optimizers", "RMSprop's momentum", "optax, Keras: v = m v + lr d; p -= v",
        "PyTorch: v = m v + d; p -= lr v", MOVED,
        "--dialect optax", DIALECTS, rmsprop_momentum,
    ),
    "rmsprop-decay": Difference(
        "optimizers", "RMSprop's default decay", "Keras, optax: 0.9", "PyTorch: 0.99", MOVED, "--alpha 0.9", TRIED,
        rmsprop_decay,
    ),
    "adagrad-start": Difference(
        "optimizers", "Adagrad's default start", "Keras, optax: s = 0.1", "PyTorch: s = 0", MOVED,
        "--initial-accumulator 0.1 --dialect keras", DIALECTS, adagrad_start,
    ),
    "adam-epsilon": Difference(
        "optimizers", "Adam's epsilon", "Keras: lr sqrt(c2) / c1 m / (sqrt(s) + e)",
        "PyTorch, optax: lr (m / c1) / (sqrt(s / c2) + e)", MOVED, "--dialect keras", DIALECTS, adam_epsilon,
    ),
    "adam-default-epsilon": Difference(
        "optimizers", "Adam's default epsilon", "Keras: 1e-7", "PyTorch, optax: 1e-8", MOVED, "--epsilon 1e-7", TRIED,
        adam_default_epsilon,
    ),
    "adamw-default-decay": Difference(
        "optimizers", "AdamW's default decay", "Keras: 0.004 (optax: 0.0001)", "PyTorch: 0.01", MOVED,
        "--weight-decay 0.01", TRIED, adamw_decay,
    ),
    "coupled-decay": Difference(
        "optimizers", "weight_decay of Adam", "PyTorch Adam: g += w p", "AdamW, Keras' Adam: p -= lr w p", MOVED,
        "--optimizer adamw", DIALECTS, coupled_decay,
    ),
    "float32-constants": Difference(
        "optimizers", "constants rounded to float32", "Keras' way: 0.9 -> 0.89999998", "PyTorch: float64", MOVED,
        "always float64", DIALECTS, rounded_constants,
    ),
    "keras-constants": Difference(
        "optimizers", "Python floats in Keras", "SGD(momentum=0.9) in float64: 0.89999998", "0.9",
        "of the way, 50 steps", "constants that float32 holds, as 0.875", DIALECTS, keras_constants, "tf",
    ),
    "cumulative-sum": Difference(
        "sampling", "precision of the sums", "float32 sums of 50,000 probabilities", "float64", "largest error",
        "always float64", CONTRACT + "test_sampling_follows_the_rule", cumulative_sum,
    ),
    "samplers": Difference(
        "sampling", "the sampler", "each library its own generator", "inverse CDF of shared uniforms",
        "share of other tokens, V = 41", "--seed, the same",
        "tests/parity/test_same_texts.py::test_all_four_write_the_same_ten_thousand_characters", samplers,
    ),
    "topk-ties": Difference(
        "sampling", "ties", "torch.topk: any order", "stable sort: the lowest token first", "share of other choices",
        "torch.sort(stable=True)", CONTRACT + "test_ties_go_to_the_lowest_token", topk_ties, "torch",
    ),
    "float32": Difference(
        "precision", "rounding in training", "float32", "float64", MOVED, "--dtype float64",
        CHECK + "test_rounding_explains_what_float32_differs", float32_training,
    ),
    "order-of-sums": Difference(
        "precision", "order of a sum", "one by one in float32", "in float64, rounded once",
        "ulp, 100,000 numbers", "--dtype float64",
        CHECK + "test_rounding_explains_what_float32_differs", order_of_sums,
    ),
    "silent-float32": Difference(
        "precision", "float64 in JAX", "by default: float32, silently", "jax_enable_x64: float64",
        "of an array", "always on", CONTRACT + "test_float32_stays_float32", silent_float32, "jax",
    ),
}  # fmt: skip
SECTIONS = tuple(dict.fromkeys(each.section for each in DIFFERENCES.values()))
