"""The LanguageModel in TensorFlow; the rules are in shared.contract."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from impl_tf.arrays import Array, Device, cast, compiled, kernel, open_device, scan, swap_axes, to_array, to_numpy
from impl_tf.dropout import Dropout
from impl_tf.embedding import embed
from impl_tf.fused import fold_embedding, unroll_fused
from impl_tf.generate import asked, generate
from impl_tf.loss import mean_nats, predictions, score, unmasked
from impl_tf.native import native_engine, native_kernel, require_native, unroll_cudnn
from impl_tf.optimizer import Arrays as Parameters
from impl_tf.optimizer import clip, init_slots, norms, together, update
from impl_tf.parallel import Team
from impl_tf.unroll import Engine, cell_of, times, unroll, unroll_layers
from shared.batching import unmasked_rows
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Arrays, Batch, Evaluation, Gradients, LanguageModel, State, TrainingSteps
from shared.engines import engine_of
from shared.optimizers import clipped_layers, slot_shapes
from shared.parameters import check_arrays, parameter_shapes, state_shapes
from shared.random_bits import dropout_keys
from shared.sampling import SamplingRule


def create_model(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    vocabulary_size: int,
    runtime: RuntimeConfig,
    seed: int = 0,
    team: Team | None = None,
) -> LanguageModel:
    """The model with all parameters zero."""
    return Model(model, optimizer, vocabulary_size, runtime, seed, team or Team())


class Model:
    device: str
    engine: str
    kernel: str

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        vocabulary_size: int,
        runtime: RuntimeConfig,
        seed: int,
        team: Team,
    ) -> None:
        self._model, self._optimizer, self._cell = model, optimizer, cell_of(model)
        self._place = open_device(runtime)
        engine: Engine = unroll
        self.device, self.engine, self.kernel = self._place.name, engine_of(runtime, model), kernel(self._place)
        if self.engine == "fused":
            engine, self.kernel = unroll_fused, f"backward by hand, {self.kernel}"
        if self.engine == "native":
            require_native(model, self._place)
            engine, self.kernel = native_engine(model, self._place), native_kernel(model, self._place)
        self._dropout_keys = self._array(np.array([dropout_keys(seed, k) for k in range(model.num_layers)], np.uint32))
        self._shapes = parameter_shapes(model, vocabulary_size)
        names = tuple(self._shapes)
        self._setup = Setup(model, names, optimizer, self._place, engine, team, xla=engine is not unroll_cudnn)
        clipped_layers(optimizer, self._shapes)  # an unknown layer is said now
        self.load_parameters({name: np.zeros(shape) for name, shape in self._shapes.items()})

    def load_parameters(self, parameters: Arrays) -> None:
        check_arrays("The parameters", parameters, self._shapes)
        self._parameters = {name: self._array(parameters[name]) for name in self._shapes}
        self.reset_optimizer()

    def dump_parameters(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(self._parameters[name]) for name in self._shapes}

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        shapes = slot_shapes(self._optimizer, self._shapes)
        check_arrays("The optimizer's slots", slots, shapes)
        self._slots, self._step = {name: self._array(slots[name]) for name in shapes}, self._array(np.array(step))

    def dump_optimizer(self) -> tuple[dict[str, np.ndarray], int]:
        shapes = slot_shapes(self._optimizer, self._shapes)
        return {name: to_numpy(self._slots[name]) for name in shapes}, int(self._step)

    def reset_optimizer(self) -> None:
        with tf.device(self._place.handle):
            self._slots, self._step = init_slots(self._optimizer, self._parameters), self._array(np.array(0))

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
        logits, state = self._run(_logits, self._parameters, tokens, state)
        return to_numpy(logits), state

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        rows, dropout = self._rows(batch.mask[None]), None if step is None else self._dropout(np.array(step))
        given = state, batch, None if rows is None else rows[0], dropout
        loss, (gradients, d_state), state = self._run(_shared_gradients, self._parameters, *given)
        parameters = {name: to_numpy(gradients[name]) for name in self._shapes}
        return float(loss), Gradients(parameters, self.dump_state(d_state)), state

    def train_steps(self, batches: Batch, state: State, learning_rates: np.ndarray) -> TrainingSteps:
        start, dropout = (self._parameters, self._slots, self._step, state), self._dropout(self._step)
        stacks = batches, self._rows(batches.mask), learning_rates
        end, reports = self._run(_scan, _train_step, start, stacks, dropout)
        self._parameters, self._slots, self._step, state = end
        losses, totals, finite, *each_norm = to_numpy(reports).T.copy()
        return TrainingSteps(losses, totals, finite > 0, state, np.stack(each_norm, 1))

    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        state, reports = self._run(_scan, _score, state, (batches, self._rows(batches.mask)), self._parameters)
        nats, tokens, hits = to_numpy(reports).sum(0)
        return Evaluation(float(nats), int(tokens), int(hits), state)

    def trace(self, batch: Batch, state: State) -> dict[str, np.ndarray]:
        logits, records = self._run(_trace, self._parameters, batch, state)
        traced = {
            f"{field}_l{k}": to_numpy(value)
            for k, record in enumerate(records)
            for field, value in {**record.gates._asdict(), **record.states._asdict()}.items()
        }
        return traced | {"logits": to_numpy(logits)}

    def generate(
        self,
        prompt: np.ndarray,
        prompt_lengths: np.ndarray,
        uniforms: np.ndarray,
        rule: SamplingRule,
        forced: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray:
        # Sums are made in float64 whatever the model's precision, so the uniforms are not cast to it.
        draws = tf.constant(uniforms)
        arguments = self.initial_state(len(prompt)), prompt, prompt_lengths, draws, asked(rule), forced, allowed
        return to_numpy(self._run(_generate, self._parameters, *arguments, xla=self._setup.xla))

    def _array(self, values: np.ndarray) -> Array:
        return to_array(values, self._place)

    def _rows(self, mask: np.ndarray) -> np.ndarray | None:
        """Of which positions of a stack to compute logits; None for all, and where workers have each their own."""
        alone = self._setup.team.alone and not self._model.many_to_one
        return unmasked_rows(mask) if alone else None

    def _dropout(self, step: Any) -> Dropout | None:
        """What the masks of a step depend on; None where nothing is dropped."""
        rates = self._model.dropout_rates
        return Dropout(rates, self._dropout_keys, step) if any(rates) else None

    def _run(self, function: Callable[..., Any], *arguments: Any, xla: bool = False) -> Any:
        """A compiled function's results, on this model's device and in its precision; takes NumPy's arrays, too."""
        tensors = tf.nest.map_structure(lambda x: self._array(x) if isinstance(x, np.ndarray) else x, arguments)
        tf.config.experimental.enable_tensor_float_32_execution(self._place.tf32)  # a setting of the process
        with tf.device(self._place.handle):
            return compiled(function, self._setup, xla)(*tensors)


# Pure functions of a static configuration: models of equal configuration share what was compiled.


class Setup(NamedTuple):
    """The configuration."""

    model: ModelConfig
    names: tuple[str, ...]  # of the parameters, in canonical order
    optimizer: OptimizerConfig
    place: Device
    engine: Engine
    team: Team  # that shares each batch
    xla: bool  # whether XLA can compile it


def _outputs(
    setup: Setup, weights: Parameters, tokens: Array, state: State, dropout: Dropout | None, record: bool
) -> tuple[Array, State, list[Any]]:
    """tokens [T, B] -> outputs of the top layer [T, B, H], state, a record for each layer."""
    model, place = setup.model, setup.place
    engine = unroll if record else setup.engine
    if engine is unroll_fused:
        weights = fold_embedding(model, weights, tokens.shape.num_elements())
    before, inputs = cast(state, place.layers), embed(tokens, weights, model.embedding_activation)
    outputs, after, records = unroll_layers(model, weights, inputs, before, dropout, record, engine)
    return outputs, cast(after, place.dtype), records


def _decode(setup: Setup, weights: Parameters, outputs: Array) -> Array:
    """Outputs [..., H] -> logits [..., V]; tied weights: the decoder is the embedding."""
    decoder = weights["embedding.weight" if setup.model.tied_weights else "decoder.weight"]
    logits = times(outputs, decoder) + weights["decoder.bias"]
    return tf.cast(logits, setup.place.dtype)


def _predict(
    setup: Setup,
    parameters: Parameters,
    batch: Batch,
    rows: Array | None,
    state: State,
    dropout: Dropout | None,
    record: bool = False,
) -> tuple[tuple[Array, Array, Array], State, list[Any]]:
    """Logits, targets and mask of what the batch predicts, time first, or of its rows; the state after it, a record for
    each layer."""
    weights, before = cast(parameters, setup.place.layers), zero_rows(state, batch.reset)
    outputs, after, records = _outputs(setup, weights, tf.transpose(batch.tokens), before, dropout, record)
    chosen, targets, mask = unmasked(*predictions(outputs, batch, setup.model.many_to_one), rows)
    return (_decode(setup, weights, chosen), targets, mask), zero_rows(after, ~batch.mask[:, -1]), records


def _logits(setup: Setup, parameters: Parameters, tokens: Array, state: State) -> tuple[Array, State]:
    """tokens [B, T] -> logits as in the contract, and the state after them."""
    weights = cast(parameters, setup.place.layers)
    outputs, state, _ = _outputs(setup, weights, tf.transpose(tokens), state, None, record=False)
    return _decode(setup, weights, outputs[-1] if setup.model.many_to_one else swap_axes(outputs)), state


def _gradients(
    setup: Setup,
    parameters: Parameters,
    state: State,
    batch: Batch,
    rows: Array | None,
    dropout: Dropout | None,
    count: Array | None = None,
) -> tuple[Array, tuple[Parameters, State], State]:
    """Mean nats of the batch, or what these rows add to those of `count` predictions; gradients; the state after."""
    with tf.GradientTape() as tape:
        tape.watch((parameters, state))
        predicted, after, _ = _predict(setup, parameters, batch, rows, state, dropout)
        loss = mean_nats(*predicted, count)
    return loss, tape.gradient(loss, (parameters, state)), after


def _shared_gradients(
    setup: Setup, parameters: Parameters, state: State, batch: Batch, rows: Array | None, dropout: Dropout | None
) -> tuple[Array, tuple[Parameters, State], State]:
    """`_gradients` of the whole batch, computed by all workers."""
    derive = _program(setup, _gradients)
    if setup.team.alone:
        return derive(parameters, state, batch, rows, dropout)  # type: ignore[no-any-return]
    return setup.team.share(derive, parameters, state, batch, dropout, setup.model.many_to_one)  # type: ignore[no-any-return]


def _program(setup: Setup, function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a step: of XLA's program for a single worker; of several, a program of its own, since XLA's have no
    place for what they tell each other."""
    return partial(function, setup) if setup.team.alone else compiled(function, setup, setup.xla)


def _train_step(
    setup: Setup, before: Any, batch: Batch, rows: Array | None, learning_rate: Array, dropout: Dropout | None
) -> tuple[Any, tuple[Array, ...]]:
    """Parameters, slots, step and state before and after one step; its loss, the norm of all gradients, whether finite,
    and the norm of each."""
    parameters, slots, step, state = before
    masks = dropout and dropout._replace(step=step)
    loss, (gradients, _), after = _shared_gradients(setup, parameters, state, batch, rows, masks)
    return _program(setup, _update)(parameters, slots, step, loss, gradients, after, learning_rate)  # type: ignore[no-any-return]


def _update(
    setup: Setup,
    parameters: Parameters,
    slots: Parameters,
    step: Array,
    loss: Array,
    gradients: Parameters,
    after: State,
    learning_rate: Array,
) -> tuple[Any, tuple[Array, ...]]:
    """What `_train_step` returns, from the loss, the gradients and the state after the batch."""
    each = norms({name: gradients[name] for name in setup.names})
    norm = together(each)
    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
    clipped = clip(setup.optimizer, gradients, norm)
    parameters, slots = update(setup.optimizer, parameters, clipped, slots, step, finite, learning_rate)
    state = zero_rows(after, ~finite[None])
    return (parameters, slots, step + tf.cast(finite, step.dtype), state), (loss, norm, finite, *tf.unstack(each))


def _score(
    setup: Setup, state: State, batch: Batch, rows: Array | None, parameters: Parameters
) -> tuple[State, tuple[Array, ...]]:
    """The state after one batch; its nats, predictions, hits."""
    predicted, state, _ = _predict(setup, parameters, batch, rows, state, None)
    return state, score(*predicted)


def _scan(setup: Setup, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Array]:
    """A function along a stack. XLA compiles one step, not the loop, so that another K compiles nothing anew."""
    xla = setup.xla and (setup.team.alone or function is not _train_step)
    return scan(compiled(function, setup, xla), *arguments)


def _trace(setup: Setup, parameters: Parameters, batch: Batch, state: State) -> tuple[Array, list[Any]]:
    """Logits as in the contract, and the record of each layer with fields [B, T, H]."""
    (logits, _, _), _, records = _predict(setup, parameters, batch, None, state, None, record=True)
    return logits[0] if setup.model.many_to_one else swap_axes(logits), tf.nest.map_structure(swap_axes, records)


def _generate(
    setup: Setup, parameters: Parameters, state: State, prompt: Array, lengths: Array, uniforms: Array, *how: Any
) -> Array:
    """`generate` with this model as the function that advances."""
    weights = layers = cast(parameters, setup.place.layers)
    if setup.engine in (unroll, unroll_fused):
        # What layer 0 makes of a token is then a row of a table that is made once.
        layers = fold_embedding(setup.model, weights, prompt.shape.num_elements() + uniforms.shape.num_elements())

    def advance(tokens: Array, state: State) -> tuple[Array, State]:
        outputs, state, _ = _outputs(setup, layers, tokens[None], state, None, record=False)
        return _decode(setup, weights, outputs[0]), state

    return generate(advance, state, prompt, lengths, uniforms, *how)


def zero_rows(state: State, reset: Array) -> State:
    """The state with the rows zeroed where reset [B] is True."""
    return tf.nest.map_structure(lambda field: tf.where(reset[:, None], tf.zeros_like(field), field), state)
