"""The reference once more, in plain NumPy, with mistakes made on purpose: what a wrong program computes can so be
computed itself. Its layers are `mistaken_layers`, the words for the mistakes `causes`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from runner.diagnosis import mistaken_optimizers
from runner.diagnosis.mistaken_layers import Array, Arrays, MistakenLayers, product
from shared.config import ModelConfig, OptimizerConfig
from shared.contract import Batch, Evaluation, Gradients, TrainingSteps
from shared.parameters import STATES, parameter_shapes
from shared.sampling import SamplingRule

UNMASKED = frozenset({"mask ignored", "mask ignored in the loss"})
"""With these, padding weighs as much as any other step."""


class Chosen(NamedTuple):
    """The outputs that predict: M = T, or 1 of a many-to-one model."""

    outputs: Array  # [B, M, H]
    places: Array  # [B, M], their steps
    targets: Array  # [B, M]
    mask: Array  # [B, M]


class MistakenModel(MistakenLayers):
    """What the examination asks of a `LanguageModel`, computed with the mistakes `made`."""

    def __init__(
        self, model: ModelConfig, optimizer: OptimizerConfig, vocabulary_size: int, seed: int, made: Iterable[str] = ()
    ) -> None:
        super().__init__(model, vocabulary_size, seed, made)
        self._optimizer, self._names = optimizer, list(parameter_shapes(model, vocabulary_size))

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        self._parameters = {name: parameters[name].copy() for name in self._names}
        self._slots = mistaken_optimizers.slots_of(self._optimizer, self._parameters, self._made)
        self._step = 0

    def dump_parameters(self) -> Arrays:
        return {name: value.copy() for name, value in self._parameters.items()}

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        self._slots = {name: value.copy() for name, value in slots.items()}
        if "slots lost between calls" in self._made:
            self._slots = mistaken_optimizers.slots_of(self._optimizer, self._parameters, self._made)
        self._step = 0 if "count of updates lost between calls" in self._made else step

    def dump_optimizer(self) -> tuple[Arrays, int]:
        return {name: value.copy() for name, value in self._slots.items()}, self._step

    def load_state(self, arrays: Mapping[str, Array]) -> Arrays:
        return dict(arrays)

    def dump_state(self, state: Arrays) -> Arrays:
        return state

    def logits(self, tokens: Array, state: Arrays) -> tuple[Array, Arrays]:
        outputs, after, _ = self._outputs(tokens, state)
        logits = self._decode(outputs)
        after = state if "state lost between calls" in self._made else after
        return logits[:, -1] if self._model.many_to_one else logits, after

    def evaluate(self, batches: Batch, state: Arrays) -> Evaluation:
        sums = np.zeros(3)
        for k in range(len(batches.tokens)):
            batch = Batch(*(each[k] for each in batches))
            outputs, after, _ = self._outputs(batch.tokens, self._start(state, batch.reset))
            state = state if "state not carried in evaluation" in self._made else self._end(after, batch.mask)
            chosen = self._choose(outputs, batch)
            logits = self._decode(chosen.outputs)
            weights = np.ones_like(chosen.mask) if self._made & UNMASKED else chosen.mask
            hit = logits.argmax(-1) == chosen.targets
            right = hit.sum() if "hits on padding" in self._made else (hit & weights).sum()
            sums += [(nats(logits, chosen.targets) * weights).sum(), weights.sum(), right]
        return Evaluation(float(sums[0]), int(sums[1]), int(sums[2]), state)

    def loss_and_gradients(
        self, batch: Batch, state: Arrays, step: int | None = None
    ) -> tuple[float, Gradients, Arrays]:
        """As in the contract."""
        made, before = self._made, self._start(state, batch.reset)
        outputs, after, layers = self._outputs(batch.tokens, before, step)
        chosen = self._choose(outputs, batch)
        logits = self._decode(chosen.outputs)
        weights = self._weights_of(chosen.mask)
        back = np.ones_like(weights) / chosen.mask.sum() if "mask ignored on the way back" in made else weights
        d_logits = softmax(logits)
        d_logits[(*np.indices(chosen.targets.shape), chosen.targets)] -= 1
        d_logits *= back[..., None]
        gradients = {"decoder.bias": d_logits.sum((0, 1))}
        d_outputs = np.zeros_like(outputs)
        d_outputs[np.arange(len(outputs))[:, None], chosen.places] = d_logits @ self._decoder()
        d_vectors, d_state = self._backward(layers, d_outputs, before, gradients)
        gradients |= self._table_gradients(batch.tokens, layers[0].inputs, d_vectors, product(d_logits, chosen.outputs))
        if "gradient of a reset row kept" not in made:
            d_state = {name: np.where(batch.reset[:, None], 0, value) for name, value in d_state.items()}
        loss = float((nats(logits, chosen.targets) * weights).sum())
        return loss, Gradients({name: gradients[name] for name in self._names}, d_state), self._end(after, batch.mask)

    def train_steps(self, batches: Batch, state: Arrays, learning_rates: Array) -> TrainingSteps:
        made, losses, norms = self._made, [], []
        for k, rate in enumerate(learning_rates):
            step = 0 if "the same masks at every step" in made else self._step
            loss, gradients, after = self.loss_and_gradients(Batch(*(each[k] for each in batches)), state, step)
            losses.append(loss)
            norms.append(mistaken_optimizers.norm_of(gradients.parameters))
            clipped = mistaken_optimizers.clip(self._optimizer, gradients.parameters, made)
            rate = float(learning_rates[0] if "one learning rate for all steps" in made else rate)
            number = self._step + 1
            mistaken_optimizers.update(self._optimizer, self._parameters, clipped, self._slots, number, rate, made)
            self._step = self._step if "updates not counted" in made else number
            state = state if "state not carried in training" in made else after
        return TrainingSteps(np.array(losses), np.array(norms), np.isfinite(losses), state)

    def generate(
        self,
        prompt: Array,
        prompt_lengths: Array,
        uniforms: Array,
        rule: SamplingRule,
        forced: Array | None = None,
        allowed: Array | None = None,
    ) -> Array:
        made, B = self._made, len(prompt)
        size = self._model.hidden_size
        fields = [f"{field}_l{k}" for k in range(self._model.num_layers) for field in STATES[self._model.cell]]
        state = {name: np.zeros((B, size)) for name in fields}
        lengths = prompt_lengths + ("one token too many read" in made)
        if "padding of the prompt read" in made:
            lengths = np.full(B, prompt.shape[1])
        logits = np.zeros((B, self._vocabulary_size))
        for p in range(prompt.shape[1]):
            more = (p < np.maximum(lengths, 1))[:, None]
            new_logits, new_state = self._advance(prompt[:, p], state)
            logits = np.where(more, new_logits, logits)
            state = {name: np.where(more, new_state[name], value) for name, value in state.items()}
        written, ended = np.zeros(uniforms.shape), np.zeros(B, bool)
        for n in range(uniforms.shape[1]):
            permitted = None if allowed is None or "forbidden tokens drawn" in made else allowed[n]
            token = draw(logits, uniforms[:, n], rule, permitted, made)
            if forced is not None and "forced tokens ignored" not in made:
                token = np.where(forced[:, n] >= 0, forced[:, n], token)
            token = np.where(ended & ("ended rows go on" not in made), rule.end, token)
            ended |= token == rule.end
            written[:, n] = token
            logits, state = self._advance(token, state)
        return written

    def _advance(self, tokens: Array, state: Arrays) -> tuple[Array, Arrays]:
        """tokens [B] -> logits [B, V], state."""
        outputs, state, _ = self._outputs(tokens[:, None], state)
        return self._decode(outputs[:, 0]), state

    def _choose(self, outputs: Array, batch: Batch) -> Chosen:
        """The outputs that predict, their targets and mask."""
        B, T, _ = outputs.shape
        if not self._model.many_to_one:
            return Chosen(outputs, np.tile(np.arange(T), (B, 1)), batch.targets, batch.mask)
        last = np.maximum(batch.mask.sum(1) - 1, 0)
        if "the window's last step predicts" in self._made:
            last = np.full(B, T - 1)
        mask = np.ones(B, bool) if "empty rows counted" in self._made else batch.mask.any(1)
        return Chosen(outputs[np.arange(B), last][:, None], last[:, None], batch.targets[:, None], mask[:, None])

    def _weights_of(self, mask: Array) -> Array:
        """What each prediction weighs in the loss."""
        made, count = self._made, mask.sum()
        mask = np.ones_like(mask) if made & UNMASKED else mask
        if made & {*UNMASKED, "mean over padding"}:
            count = mask.size
        if "mean over rows" in made:
            count = len(mask)
        return mask / (1 if "sum for mean" in made else count)

    def _decode(self, outputs: Array) -> Array:
        """Outputs [..., H] -> logits [..., V]."""
        bias = 0.0 if "decoder's bias left out" in self._made else self._parameters["decoder.bias"]
        return outputs @ self._decoder().T + bias

    def _decoder(self) -> Array:
        """[V, H]; tied weights: the embedding."""
        return self._parameters["embedding.weight" if self._model.tied_weights else "decoder.weight"]


def softmax(logits: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def nats(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target]: [B, M, V], [B, M] -> [B, M]."""
    return -np.log(np.take_along_axis(softmax(logits), targets[..., None], -1)[..., 0])


def draw(logits: Array, uniforms: Array, rule: SamplingRule, allowed: Array | None, made: frozenset[str]) -> Array:
    """One token a row, by the rule of `shared.sampling`."""
    scores = logits if allowed is None else np.where(allowed, logits, -np.inf)
    if rule.temperature == 0 or "always the likeliest" in made:
        return np.asarray(scores.argmax(-1))
    if "temperature ignored" not in made:
        scores = scores * rule.temperature if "temperature multiplies" in made else scores / rule.temperature
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    weights = np.exp(ranked - ranked[:, :1])
    if rule.top_k and "top-k ignored" not in made:
        weights[:, rule.top_k + ("top-k keeps one more" in made) - ("top-k keeps one less" in made) :] = 0
    if rule.top_p < 1 and "top-p ignored" not in made:
        before = np.cumsum(weights, -1) - (0 if "top-p on the sum after" in made else weights)
        weights = np.where(before < rule.top_p * weights.sum(-1, keepdims=True), weights, 0)
    if "drawn from the likeliest down" not in made:
        weights, order = (
            np.take_along_axis(weights, np.argsort(order), -1),
            np.tile(np.arange(len(logits[0])), (len(logits), 1)),
        )
    sums = np.cumsum(weights, -1)
    rank = (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1, keepdims=True)
    last = np.where(weights > 0, np.arange(weights.shape[1]), 0).max(-1, keepdims=True)
    return np.asarray(np.take_along_axis(order, np.minimum(rank, last), -1)[:, 0])
