"""The LanguageModel in NumPy; the rules are in shared.contract."""

from typing import Any

import numpy as np

from impl_numpy.arrays import Array, add_rows, kernel, open_device, to_array, to_numpy
from impl_numpy.generate import generate
from impl_numpy.loss import mean_nats, mean_nats_backward, score
from impl_numpy.optimizer import clip_by_global_norm, global_norm, init_slots, update
from impl_numpy.unroll import CELLS, Record, layer_weights, product, unroll_backward, unroll_layers
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Arrays, Batch, Evaluation, Gradients, LanguageModel, State, TrainingSteps
from shared.optimizers import slot_shapes
from shared.parameters import check_arrays, parameter_shapes, state_shapes
from shared.sampling import SamplingRule


def create_model(
    model: ModelConfig, optimizer: OptimizerConfig, vocabulary_size: int, runtime: RuntimeConfig
) -> LanguageModel:
    """The model with all parameters zero."""
    return Model(model, optimizer, vocabulary_size, runtime)


class Model:
    device: str
    engine: str
    kernel: str

    def __init__(
        self, model: ModelConfig, optimizer: OptimizerConfig, vocabulary_size: int, runtime: RuntimeConfig
    ) -> None:
        self._model, self._optimizer, self._cell = model, optimizer, CELLS[model.cell]
        self._place = open_device(runtime)
        self.device, self.engine, self.kernel = self._place.name, runtime.engine, kernel(self._place)
        self._shapes = parameter_shapes(model, vocabulary_size)
        self.load_parameters({name: np.zeros(shape) for name, shape in self._shapes.items()})

    def load_parameters(self, parameters: Arrays) -> None:
        check_arrays("The parameters", parameters, self._shapes)
        self._parameters = {name: self._array(parameters[name]) for name in self._shapes}
        self._slots, self._step = init_slots(self._optimizer, self._parameters), 0

    def dump_parameters(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(value) for name, value in self._parameters.items()}

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        shapes = slot_shapes(self._optimizer, self._shapes)
        check_arrays("The optimizer's slots", slots, shapes)
        self._slots, self._step = {name: self._array(slots[name]) for name in shapes}, step

    def dump_optimizer(self) -> tuple[dict[str, np.ndarray], int]:
        return {name: to_numpy(value) for name, value in self._slots.items()}, self._step

    def initial_state(self, batch_size: int) -> State:
        shapes = state_shapes(self._model, batch_size)
        return self.load_state({name: np.zeros(shape) for name, shape in shapes.items()})

    def load_state(self, arrays: Arrays) -> State:
        batch_size = len(next(iter(arrays.values()), ()))
        check_arrays("The state", arrays, state_shapes(self._model, batch_size))
        fields, layers = self._cell.state._fields, range(self._model.num_layers)
        return tuple(self._cell.state(*(self._array(arrays[f"{field}_l{k}"]) for field in fields)) for k in layers)

    def dump_state(self, state: State) -> dict[str, np.ndarray]:
        return {f"{f}_l{k}": to_numpy(v) for k, layer in enumerate(state) for f, v in layer._asdict().items()}

    def logits(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        logits, state, _ = self._forward(self._array(tokens).T, state, record=False)
        return to_numpy(logits.swapaxes(0, 1)), state

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        loss, gradients, d_state, state = self._gradients(Batch(*map(self._array, batch)), state)
        parameters = {name: to_numpy(gradients[name]) for name in self._shapes}
        return float(loss), Gradients(parameters, self.dump_state(d_state)), state

    def train_steps(self, batches: Batch, state: State, learning_rates: np.ndarray) -> TrainingSteps:
        stacked = Batch(*map(self._array, batches))
        steps = []
        for k, learning_rate in enumerate(learning_rates):
            with np.errstate(over="ignore", invalid="ignore"):  # `finite` tells
                loss, norm, finite, state = self._train_step(at(stacked, k), state, float(learning_rate))
            steps.append((loss, norm, finite))
        losses, norms, finites = (np.array(column) for column in zip(*steps, strict=True))
        return TrainingSteps(losses, norms, finites, state)

    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        stacked = Batch(*map(self._array, batches))
        sums = np.zeros(3)
        for k in range(len(batches.tokens)):
            batch = at(stacked, k)
            logits, state, _ = self._forward(batch.tokens.T, zero_rows(state, batch.reset), record=False)
            sums += [float(each) for each in score(logits, batch.targets.T, batch.mask.T)]
        return Evaluation(float(sums[0]), int(sums[1]), int(sums[2]), state)

    def trace(self, batch: Batch, state: State) -> dict[str, np.ndarray]:
        tokens, _, _, reset = map(self._array, batch)
        logits, _, records = self._forward(tokens.T, zero_rows(state, reset), record=True)
        traced = {
            f"{field}_l{k}": value.swapaxes(0, 1)
            for k, record in enumerate(records)
            for field, value in {**record.gates._asdict(), **record.states._asdict()}.items()
        }
        return {name: to_numpy(value) for name, value in {**traced, "logits": logits.swapaxes(0, 1)}.items()}

    def generate(
        self,
        prompt: np.ndarray,
        prompt_lengths: np.ndarray,
        uniforms: np.ndarray,
        rule: SamplingRule,
        forced: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray:
        free = np.full(uniforms.shape, -1, np.int32) if forced is None else forced
        # The rule is computed in float64 whatever the model's precision, so the uniforms are not cast to it.
        draws = self._place.module.array(uniforms)
        arrays = self._array(prompt), self._array(prompt_lengths)
        permitted = None if allowed is None else self._array(allowed)
        state = self.initial_state(len(prompt))
        return to_numpy(generate(self._advance, state, *arrays, draws, rule, self._array(free), permitted))

    def _array(self, values: np.ndarray) -> Array:
        return to_array(values, self._place)

    def _inputs(self, tokens: Array) -> Array:
        embedding = self._parameters.get("embedding.weight")
        return tokens if embedding is None else embedding[tokens]

    def _weights(self) -> list[Any]:
        return [layer_weights(self._cell, self._parameters, k) for k in range(self._model.num_layers)]

    def _forward(self, tokens: Array, state: State, record: bool) -> tuple[Array, State, list[Record]]:
        """tokens [T, B] -> logits [T, B, V], state, a record for each layer."""
        outputs, state, records = unroll_layers(self._cell, self._inputs(tokens), state, self._weights(), record)
        return outputs @ self._parameters["decoder.weight"].T + self._parameters["decoder.bias"], state, records

    def _advance(self, tokens: Array, state: State) -> tuple[Array, State]:
        """tokens [B] -> logits [B, V], state."""
        logits, state, _ = self._forward(tokens[None], state, record=False)
        return logits[0], state

    def _gradients(self, batch: Batch, state: State) -> tuple[Array, dict[str, Array], State, State]:
        """Loss, gradients of the parameters and of the given state, state after the batch."""
        tokens, targets, mask = batch.tokens.T, batch.targets.T, batch.mask.T
        before = zero_rows(state, batch.reset)
        logits, after, records = self._forward(tokens, before, record=True)
        d_logits = mean_nats_backward(logits, targets, mask)
        gradients = {
            "decoder.weight": product(d_logits, records[-1].states.hidden),
            "decoder.bias": d_logits.sum((0, 1)),
        }
        d_states = self._backward(d_logits @ self._parameters["decoder.weight"], tokens, before, records, gradients)
        return mean_nats(logits, targets, mask), gradients, zero_rows(d_states, batch.reset), after

    def _backward(
        self, d_outputs: Array, tokens: Array, states: State, records: list[Record], gradients: dict[str, Array]
    ) -> State:
        """Down the stack: adds the layers' and the embedding's gradients, returns those of the state."""
        embedded, weights = self._inputs(tokens), self._weights()
        d_states = []
        for k in reversed(range(len(records))):
            inputs = records[k - 1].states.hidden if k else embedded
            backward = unroll_backward(self._cell, d_outputs, inputs, states[k], weights[k], records[k])
            d_outputs, d_state, d_weights = backward
            d_states.append(d_state)
            gradients.update({f"rnn.{field}_l{k}": value for field, value in d_weights._asdict().items()})
        if self._model.embedding_size:
            gradients["embedding.weight"] = np.zeros_like(self._parameters["embedding.weight"])
            add_rows(gradients["embedding.weight"], tokens.reshape(-1), d_outputs.reshape(-1, d_outputs.shape[-1]))
        return tuple(reversed(d_states))

    def _train_step(self, batch: Batch, state: State, learning_rate: float) -> tuple[float, float, bool, State]:
        loss, gradients, _, after = self._gradients(batch, state)
        norm = global_norm(gradients)
        finite = bool(np.isfinite(loss) & np.isfinite(norm))
        clipped = clip_by_global_norm(gradients, norm, self._optimizer.clip_norm)
        update(self._optimizer, self._parameters, clipped, self._slots, self._step, finite, learning_rate)
        self._step += finite
        return float(loss), float(norm), finite, after if finite else state


def zero_rows(state: State, reset: Array) -> State:
    """The state with the rows zeroed where reset [B] is True."""
    return tuple(type(layer)(*(np.where(reset[:, None], 0, field) for field in layer)) for layer in state)


def at(batches: Batch, k: int) -> Batch:
    """One batch out of a stack."""
    return Batch(*(each[k] for each in batches))
