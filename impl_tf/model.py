"""The LanguageModel in TensorFlow; the rules are in shared.contract."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import tensorflow as tf

from impl_tf.arrays import Array, kernel, open_device, to_array, to_numpy
from impl_tf.generate import generate
from impl_tf.loss import mean_nats, score
from impl_tf.optimizer import Arrays as Parameters
from impl_tf.optimizer import clip_by_global_norm, global_norm, init_slots, update
from impl_tf.unroll import CELLS, Record, layer_weights, unroll_layers
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
        self._slots = self._run(init_slots, self._optimizer, self._parameters)
        self._step = self._array(np.array(0, np.int32))

    def dump_parameters(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(self._parameters[name]) for name in self._shapes}

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        shapes = slot_shapes(self._optimizer, self._shapes)
        check_arrays("The optimizer's slots", slots, shapes)
        self._slots = {name: self._array(slots[name]) for name in shapes}
        self._step = self._array(np.array(step, np.int32))

    def dump_optimizer(self) -> tuple[dict[str, np.ndarray], int]:
        shapes = slot_shapes(self._optimizer, self._shapes)
        return {name: to_numpy(self._slots[name]) for name in shapes}, int(self._step)

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
        logits, state = self._run(compiled(_logits, self._model), self._parameters, self._array(tokens), state)
        return to_numpy(logits), state

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        on_device = Batch(*map(self._array, batch))
        results = self._run(compiled(_gradients, self._model), self._parameters, state, on_device)
        loss, (gradients, d_state), state = results
        parameters = {name: to_numpy(gradients[name]) for name in self._shapes}
        return float(loss), Gradients(parameters, self.dump_state(d_state)), state

    def train_steps(self, batches: Batch, state: State, learning_rates: np.ndarray) -> TrainingSteps:
        stacked = Batch(*map(self._array, batches))
        start = self._parameters, self._slots, self._step, state
        program = compiled(_train_steps, self._model, self._optimizer)
        end, reports = self._run(program, start, stacked, self._array(learning_rates))
        self._parameters, self._slots, self._step, state = end
        losses, norms, finite = map(to_numpy, reports)
        return TrainingSteps(losses, norms, finite, state)

    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        stacked = Batch(*map(self._array, batches))
        program = compiled(_evaluate, self._model)
        (nats, tokens, hits), state = self._run(program, self._parameters, stacked, state)
        return Evaluation(float(nats), int(tokens), int(hits), state)

    def trace(self, batch: Batch, state: State) -> dict[str, np.ndarray]:
        on_device = Batch(*map(self._array, batch))
        logits, records = self._run(compiled(_trace, self._model), self._parameters, on_device, state)
        traced = {
            f"{field}_l{k}": value
            for k, record in enumerate(records)
            for field, value in {**record.gates._asdict(), **record.states._asdict()}.items()
        }
        return {name: to_numpy(value) for name, value in {**traced, "logits": logits}.items()}

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
        arrays = [self._array(each) for each in (prompt, prompt_lengths)]
        # The rule is computed in float64 whatever the model's precision, so the uniforms are not cast to it.
        draws, numbers = tf.constant(uniforms), SamplingRule(*map(tf.constant, rule, RULE_DTYPES))
        permitted = None if allowed is None else self._array(allowed)
        arguments = *arrays, draws, numbers, self._array(free), permitted
        state = self.initial_state(len(prompt))
        return to_numpy(self._run(compiled(_generate, self._model, xla=True), self._parameters, state, *arguments))

    def _array(self, values: np.ndarray) -> Array:
        return to_array(values, self._place)

    def _run(self, program: Callable[..., Any], *arguments: Any) -> Any:
        """A compiled function's results, on this model's device."""
        with tf.device(self._place.handle):
            return program(*arguments)


def zero_rows(state: State, reset: Array) -> State:
    """The state with the rows zeroed where reset [B] is True."""
    return tf.nest.map_structure(lambda field: tf.where(reset[:, None], tf.zeros_like(field), field), state)


# Pure functions of a static configuration: models of equal configuration share what was compiled.


RULE_DTYPES = (tf.float64, tf.int32, tf.float64, tf.int32)
"""Of the fields of SamplingRule."""


@cache
def compiled(function: Callable[..., Any], *configuration: Any, xla: bool = False) -> Callable[..., Any]:
    """A function of tensors whose first arguments, the configuration, are fixed."""
    return tf.function(partial(function, *configuration), jit_compile=xla, autograph=False)


def _forward(
    model: ModelConfig, parameters: Parameters, tokens: Array, state: State, record: bool
) -> tuple[Array, State, list[Record | None]]:
    """tokens [T, B] -> logits [T, B, V], state, a record for each layer."""
    cell = CELLS[model.cell]
    inputs = tf.gather(parameters["embedding.weight"], tokens) if model.embedding_size else tokens
    weights = [layer_weights(cell, parameters, k) for k in range(model.num_layers)]
    outputs, state, records = unroll_layers(cell, inputs, state, weights, record)
    logits = tf.linalg.matmul(outputs, parameters["decoder.weight"], transpose_b=True) + parameters["decoder.bias"]
    return logits, state, records


def _logits(model: ModelConfig, parameters: Parameters, tokens: Array, state: State) -> tuple[Array, State]:
    """tokens [B, T] -> logits [B, T, V], state."""
    logits, state, _ = _forward(model, parameters, tf.transpose(tokens), state, record=False)
    return swap_axes(logits), state


def _gradients(
    model: ModelConfig, parameters: Parameters, state: State, batch: Batch
) -> tuple[Array, tuple[Parameters, State], State]:
    """Mean nats of the batch, its gradients, the state after it."""
    with tf.GradientTape() as tape:
        tape.watch((parameters, state))
        before, tokens = zero_rows(state, batch.reset), tf.transpose(batch.tokens)
        logits, after, _ = _forward(model, parameters, tokens, before, record=False)
        loss = mean_nats(logits, tf.transpose(batch.targets), tf.transpose(batch.mask))
    gradients = tape.gradient(loss, (parameters, state))
    # A gathered table's gradient comes as slices, a row an occurrence, whose norm is not the gradient's.
    return loss, tf.nest.map_structure(tf.convert_to_tensor, gradients), after


def _train_steps(
    model: ModelConfig, optimizer: OptimizerConfig, start: Any, batches: Batch, learning_rates: Array
) -> tuple[Any, tuple[Array, Array, Array]]:
    """Parameters, slots, step and state before and after K steps; losses, gradient norms and finite of each."""
    count = tf.shape(learning_rates)[0]
    # XLA compiles one step, not the loop, so that another K compiles nothing anew.
    train_step = compiled(_train_step, model, optimizer, xla=True)

    def advance(k: Array, before: Any, reports: tuple[tf.TensorArray, ...]) -> tuple[Array, Any, Any]:
        after, report = train_step(before, at(batches, k), learning_rates[k])
        return k + 1, after, tuple(column.write(k, value) for column, value in zip(reports, report, strict=True))

    reports = tuple(tf.TensorArray(dtype, count) for dtype in (tf.float64, tf.float64, tf.bool))
    _, end, reports = tf.while_loop(lambda k, *_: k < count, advance, (tf.constant(0), start, reports))
    return end, tuple(column.stack() for column in reports)


def _train_step(
    model: ModelConfig, optimizer: OptimizerConfig, before: Any, batch: Batch, learning_rate: Array
) -> tuple[Any, tuple[Array, Array, Array]]:
    """One of the K steps."""
    parameters, slots, step, state = before
    loss, (gradients, _), after = _gradients(model, parameters, state, batch)
    norm = global_norm(gradients)
    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
    clipped = clip_by_global_norm(gradients, norm, optimizer.clip_norm)
    parameters, slots = update(optimizer, parameters, clipped, slots, step, finite, learning_rate)
    state = tf.nest.map_structure(partial(tf.where, finite), after, state)
    return (parameters, slots, step + tf.cast(finite, step.dtype), state), (tf.cast(loss, tf.float64), norm, finite)


def _evaluate(
    model: ModelConfig, parameters: Parameters, batches: Batch, state: State
) -> tuple[tuple[Array, Array, Array], State]:
    """Sums over the batches, and the state after them."""
    count = tf.shape(batches.reset)[0]
    score_batch = compiled(_score, model, xla=True)

    def advance(k: Array, sums: Any, state: State) -> tuple[Array, Any, State]:
        scores, state = score_batch(parameters, at(batches, k), state)
        return k + 1, tf.nest.map_structure(tf.add, sums, scores), state

    zeros = tuple(tf.zeros((), dtype) for dtype in (tf.float64, tf.int64, tf.int64))
    return tf.while_loop(lambda k, *_: k < count, advance, (tf.constant(0), zeros, state))[1:]


def _score(
    model: ModelConfig, parameters: Parameters, batch: Batch, state: State
) -> tuple[tuple[Array, Array, Array], State]:
    """Sums over one batch, and the state after it."""
    before = zero_rows(state, batch.reset)
    logits, state, _ = _forward(model, parameters, tf.transpose(batch.tokens), before, record=False)
    return score(logits, tf.transpose(batch.targets), tf.transpose(batch.mask)), state


def _trace(model: ModelConfig, parameters: Parameters, batch: Batch, state: State) -> tuple[Array, list[Record]]:
    """Logits [B, T, V], and the record of each layer with fields [B, T, H]."""
    before = zero_rows(state, batch.reset)
    logits, _, records = _forward(model, parameters, tf.transpose(batch.tokens), before, record=True)
    return tf.nest.map_structure(swap_axes, (logits, records))


def _generate(model: ModelConfig, parameters: Parameters, *arguments: Any) -> Array:
    """`generate` with this model as the function that advances."""

    def advance(tokens: Array, state: State) -> tuple[Array, State]:
        logits, state, _ = _forward(model, parameters, tokens[None], state, record=False)
        return logits[0], state

    return generate(advance, *arguments)


def swap_axes(steps: Array) -> Array:
    """[T, B, ...] to [B, T, ...]."""
    return tf.transpose(steps, (1, 0, 2))


def at(batches: Batch, k: Array) -> Batch:
    """One batch out of a stack."""
    return Batch(*(each[k] for each in batches))
