"""The one contract that impl_numpy, impl_torch, impl_jax and impl_tf fulfil. Start reading here.

Axes: B batch, T time, V vocabulary, E embedding, H hidden units, I inputs of a layer, G gates, K stacked batches, P
prompt, N generated tokens. NumPy arrays cross this border, framework arrays never do. A recurrent state is opaque: the
runner carries it from call to call and looks inside only through `dump_state`. Losses are in nats (natural logarithms).
Every function is deterministic: the same call on the same device gives the same bits.

Time runs to the right and so does padding: `mask` is False only at the end of a row. A padded step weighs nothing: no
real step ever sees it, its gradient is exactly zero, and neither its states nor its logits need be computed. A row that
ends in padding has ended, so its state after the batch is zero. A many-to-one model predicts at the last unmasked step
of a row only; a row that is all padding weighs nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.sampling import SamplingRule

Array = np.ndarray
Arrays = Mapping[str, np.ndarray]
"""Canonical names to arrays, in the order of `shared.parameters.parameter_shapes`."""
State = Any
"""The recurrent state of every layer and row, on the device; opaque."""


class Batch(NamedTuple):
    """One training batch; stacked batches have one more leading axis K. NumPy arrays at the border; behind it, an
    implementation keeps its own arrays in the same tuple."""

    tokens: Any  # int32 [B, T]
    targets: Any  # int32 [B, T], or [B] for many-to-one
    mask: Any  # bool [B, T], False where padded
    reset: Any  # bool [B], True where the row starts from the zero state


class Gradients(NamedTuple):
    """Derivatives of the mean loss of one batch; exactly zero where a row was reset or a token was not used (with tied
    weights every token is used)."""

    parameters: dict[str, Array]  # as the parameters
    initial_state: dict[str, Array]  # as `dump_state`


class TrainingSteps(NamedTuple):
    """What K training steps report, and the state after the last one."""

    losses: Array  # float64 [K], nats per prediction, before each update
    gradient_norms: Array  # float64 [K], global, before clipping
    finite: Array  # bool [K]: loss and norm are finite numbers; otherwise the step was left out, as `train_steps` says
    state: State
    parameter_norms: Array = np.empty((0, 0))  # float64 [K, P], of each gradient alone, in canonical order


class Evaluation(NamedTuple):
    """Sums over the predictions of the batches, and the state after the last one."""

    nats: float
    tokens: int  # predictions: unmasked tokens, or rows of a many-to-one model
    hits: int  # those whose target had the greatest logit
    state: State


class LanguageModel(Protocol):
    """A recurrent language model with its optimizer, in one framework, on one device.

    Errors: `ParameterError` where given arrays do not fit. Batches are the caller's duty: `shared.batching` makes
    them valid, and a token outside 0..V-1 is undefined.
    """

    device: str  # "cpu", or "cuda:0 (NVIDIA H200)"
    engine: str  # what runs: "scratch", "fused" or "native" (`shared.engines`), never "auto"
    kernel: str  # what multiplies and loops, e.g. "lax.scan, XLA", or "torch.nn.LSTM, cuDNN"

    def load_parameters(self, parameters: Arrays) -> None:
        """Copy in, cast to the model's dtype. `ParameterError` names what is missing, unexpected, misshapen."""

    def dump_parameters(self) -> dict[str, Array]:
        """Copy out, canonical and contiguous; a round trip changes nothing."""

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        """Take over an optimizer's state after `step` updates: names are "<slot>.<parameter>"."""

    def dump_optimizer(self) -> tuple[dict[str, Array], int]:
        """The optimizer's slots and the number of updates made: a run can change framework and not notice."""

    def reset_optimizer(self) -> None:
        """Slots as they start, no update made; `load_parameters` does the same."""

    def initial_state(self, batch_size: int) -> State:
        """The zero state for `batch_size` rows."""

    def load_state(self, arrays: Arrays) -> State:
        """A state from "hidden_l0" [B, H], "cell_l0" [B, H], ..."""

    def dump_state(self, state: State) -> dict[str, Array]:
        """The inverse of `load_state`."""

    def logits(self, tokens: Array, state: State) -> tuple[Array, State]:
        """tokens [B, T] -> unnormalised log-probabilities [B, T, V], [B, V] of a many-to-one model, and the state after
        them."""

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        """Mean cross-entropy in nats per prediction, its gradients (not clipped; truncated at the batch's border), and
        the state after the batch. `step`, the number of updates made before, chooses the dropout masks
        (`shared.random_bits.keep_mask`); None: no dropout."""

    def train_steps(self, batches: Batch, state: State, learning_rates: Array) -> TrainingSteps:
        """K steps without leaving the device: gradients with dropout, clipping, update (`shared.optimizers`); the state
        is carried, not its gradient. batches: stacked [K, B, T]; learning_rates: float64 [K].

        A step that is not finite leaves parameters, slots and the number of updates as they were, and the state after
        it is zero in every row: what produced such numbers is not carried on. The steps behind it are made as usual.
        """

    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        """Sums over stacked batches, accumulated in float64; no parameter changes."""

    def trace(self, batch: Batch, state: State) -> dict[str, Array]:
        """Every gate and state of every layer and step, "<field>_l<k>" [B, T, H], and "logits" as `logits`, computed
        by the scratch engine: with the fields of the cell's State and Gates."""

    def generate(
        self,
        prompt: Array,
        prompt_lengths: Array,
        uniforms: Array,
        rule: SamplingRule,
        forced: Array | None = None,
        allowed: Array | None = None,
    ) -> Array:
        """Read the prompts from the zero state, then write; the loop runs on the device.

        prompt int32 [B, P], right-padded; prompt_lengths int32 [B], at least 1; uniforms float64 [B, N] in [0, 1);
        forced int32 [B, N], -1 where free; allowed bool [N, V], at least one True a row. A row repeats `rule.end`
        once it has written it. Returns int32 [B, N]; the rule is `shared.sampling`.
        """


class Team(Protocol):
    """N workers that share each batch: worker k computes rows k B/N to (k + 1) B/N - 1. They may be processes, which
    then all make the same calls of their models with the same whole batches and states, or devices of one process.
    Either way a call returns what one worker would return, in every process."""

    def first(self, content: bytes) -> bytes:
        """What the first process gives, in every process."""

    def close(self) -> None:
        """The end of what the processes share: each waits until all call it. Models of the team are of no use then."""


CreateModel = Callable[[ModelConfig, OptimizerConfig, int, RuntimeConfig, int, Team | None], LanguageModel]
"""What each implementation exports: create_model(model, optimizer, vocabulary_size, runtime, seed, team), with
parameters all zero and the seed of the dropout masks; `team` is what its parallel.open_team gave, or None: one worker.
ImplementationError: what the engine, device or precision cannot do here."""

CONVENTIONS = """
Canonical names, shapes and conventions. G is 1 for rnn and wrnn, 4 for lstm, 3 for gru. Layer k reads I inputs: E (or V
for one-hot input) at layer 0, H above. A weight [out, in] multiplies from the left, as in PyTorch. ' = the step before.

name                    shape       exists for            convention
embedding.weight        [V, E]      embedding_size > 0    row = token; the PAD row is a row like any other
rnn.weight_ih_l{k}      [G*H, I]    rnn lstm gru          gates stacked along axis 0: lstm i f g o; gru r z n.
                                                          One-hot input: I = V, a token picks a column
rnn.weight_hh_l{k}      [G*H, H]    rnn lstm gru          same order
rnn.bias_l{k}           [G*H]       rnn lstm gru          one bias; libraries with two hold it in the first
rnn.bias_hn_l{k}        [H]         gru, reset after      inside the reset product: n = tanh(W x + b + r (U h' + b_hn))
(none)                              gru, reset before     n = tanh(W x + b + U (r h')): no bias_hn
rnn.weight_ih_l{k}      [H, I]      wrnn                  U: inputs to the first half, a = s(U x + W a' + s1)
rnn.weight_hh_l{k}      [H, H]      wrnn                  W: a' to a
rnn.bias_l{k}           [H]         wrnn                  s1
rnn.weight_ab_l{k}      [H, H]      wrnn                  V: a to b,  b = s(V a + R a' + T b' + s2)
rnn.weight_skip_l{k}    [H, H]      wrnn                  R: a' to b
rnn.weight_bb_l{k}      [H, H]      wrnn                  T: b' to b
rnn.bias_b_l{k}         [H]         wrnn                  s2
rnn.residual_l{k}       [H, I]      residual              layer k adds its input, projected by this; where I = H, and
                                                          the input is no token, as it is: no array
decoder.weight          [V, H]      not tied              tied weights: embedding.weight serves (E = H)
decoder.bias            [V]         always

state                   "hidden_l{k}" [B, H]; lstm also "cell_l{k}"; wrnn "hidden_l{k}" (b) and "first_l{k}" (a)
rnn                     h = tanh(W x + b + U h'), or relu
lstm                    c = f c' + i g, h = o tanh(c)
gru                     h = (1 - z) n + z h': the update gate z keeps
embedding activation    between the embedding and layer 0; tied weights stay as they are
a layer's output        h, plus its input if residual; times keep / (1 - rate) in training, the rate of the last layer
                        being output_dropout: what is carried as state h is never dropped
many-to-one             logits [B, V] of the last unmasked step, targets [B]
loss                    sum(nats) / count over all predictions of the batch
clipping, optimizers    shared.optimizers; slots are "<slot>.<parameter>", with PyTorch's slot names
"""
