"""The LanguageModel in JAX; the rules are in shared.contract."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from impl_jax.arrays import Array, Device, kernel, open_device, to_array, to_dtype, to_numpy
from impl_jax.dropout import Dropout
from impl_jax.embedding import embed
from impl_jax.fused import fold_embedding, fused_kernel, unroll_fused
from impl_jax.generate import asked, generate
from impl_jax.loss import mean_nats, predictions, score, unmasked
from impl_jax.native import native_engine, native_kernel, require_native
from impl_jax.optimizer import clip, init_slots, norms, together, update
from impl_jax.parallel import ALL, ROWS, STACKED, Team, over_workers, total, whole, worker
from impl_jax.unroll import Engine, Record, cell_of, unroll, unroll_layers
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


class Network(NamedTuple):
    """All that decides a program but the shapes; what is compiled for one serves every model that is equal."""

    config: ModelConfig
    names: tuple[str, ...]  # of the parameters, in canonical order
    engine: Engine
    layers: Any  # dtype from the embedding to the logits
    precision: str  # of products of float32; not JAX's global setting, so that models of both kinds can live together
    mesh: Mesh | None  # of the workers that share each batch


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
        self._model, self._optimizer, self._cell, self._team = model, optimizer, cell_of(model), team
        self._place = open_device(runtime)
        self.device, self.engine = self._place.name, engine_of(runtime, model)
        engine, self.kernel = choose_engine(self.engine, model, self._place)
        keys = [dropout_keys(seed, layer) for layer in range(model.num_layers)]
        self._dropout_keys = self._array(np.array(keys, np.uint32))
        self._shapes = parameter_shapes(model, vocabulary_size)
        names, place = tuple(self._shapes), self._place
        self._network = Network(model, names, engine, place.layers, place.precision, team.mesh)
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
        self._slots = {name: self._array(slots[name]) for name in shapes}
        self._step = self._array(np.array(step, np.int32))

    def dump_optimizer(self) -> tuple[dict[str, np.ndarray], int]:
        shapes = slot_shapes(self._optimizer, self._shapes)
        return {name: to_numpy(self._slots[name]) for name in shapes}, int(self._step)

    def reset_optimizer(self) -> None:
        self._slots, self._step = init_slots(self._optimizer, self._parameters), self._array(np.array(0, np.int32))

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
        logits, state = _logits(self._network, self._parameters, self._array(tokens), state)
        return to_numpy(logits), state

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        on_device, rows = self._batches(batch, ROWS), self._rows(batch.mask[None])
        now = None if step is None else self._array(np.array(step, np.int32))
        given = self._parameters, state, on_device, None if rows is None else rows[0], self._dropout_keys, now
        results = _gradients(self._network, *given)
        (loss, state), (gradients, d_state) = results
        parameters = {name: to_numpy(gradients[name]) for name in self._shapes}
        return float(loss), Gradients(parameters, self.dump_state(d_state)), state

    def train_steps(self, batches: Batch, state: State, learning_rates: np.ndarray) -> TrainingSteps:
        given = self._batches(batches, STACKED), self._rows(batches.mask), self._array(learning_rates)
        start = self._parameters, self._slots, self._step, state
        end, reports = _train_steps(self._network, self._optimizer, start, given, self._dropout_keys)
        self._parameters, self._slots, self._step, state = end
        losses, totals, finite, each_norm = map(to_numpy, reports)
        return TrainingSteps(losses.astype(np.float64), totals, finite, state, each_norm)

    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        given = Batch(*map(self._array, batches)), self._rows(batches.mask)
        (nats, tokens, hits), state = _evaluate(self._network, self._parameters, given, state)
        return Evaluation(float(nats), int(tokens), int(hits), state)

    def trace(self, batch: Batch, state: State) -> dict[str, np.ndarray]:
        logits, records = _trace(self._network, self._parameters, Batch(*map(self._array, batch)), state)
        traced = {
            f"{field}_l{k}": value
            for k, record in enumerate(records)
            if record
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
        # Sums are made in float64 whatever the model's precision, so the uniforms are not cast to it.
        draws = jnp.array(uniforms, device=self._place.handle)
        arrays = [self._array(each) for each in (prompt, prompt_lengths)]
        given = (None if each is None else self._array(each) for each in (forced, allowed))
        state = self.initial_state(len(prompt))
        written = _generate(self._network, self._parameters, state, *arrays, draws, asked(rule), *given)
        return to_numpy(written)

    def _array(self, values: np.ndarray, spec: PartitionSpec = ALL) -> Array:
        if self._team.mesh is None:
            return to_array(values, self._place)
        return self._team.put(to_dtype(values, self._place), spec)

    def _batches(self, batches: Batch, spec: PartitionSpec) -> Batch:
        """On the device, or each worker's rows on its own."""
        return Batch(*(self._array(each, spec) for each in batches))

    def _rows(self, mask: np.ndarray) -> Array | None:
        """Of which positions of a stack to compute logits; None for all, and where workers have each their own."""
        alone = self._team.mesh is None and not self._model.many_to_one
        rows = unmasked_rows(mask) if alone else None
        return None if rows is None else self._array(rows)


def choose_engine(engine: str, model: ModelConfig, device: Device) -> tuple[Engine, str]:
    """What unrolls a layer, and what it runs on; ImplementationError where there is no such thing for this model."""
    if engine == "native":
        require_native(model, device)
        return native_engine(model, device), native_kernel(model, device)
    if engine == "fused":
        return unroll_fused, fused_kernel(device)
    return unroll, kernel(device)


def zero_rows(state: State, reset: Array) -> State:
    """The state with the rows zeroed where reset [B] is True."""
    return jax.tree.map(lambda field: jnp.where(reset[:, None], 0, field), state)


# Pure functions of a static configuration: models of equal configuration share what was compiled. No buffer is donated,
# so that an interrupted call leaves the model as it was.


def _weights(network: Network, parameters: dict[str, Array], tokens: int = 0) -> dict[str, Array]:
    """The parameters in the layers' precision, as the engine wants them to read so many tokens."""
    weights = {name: value.astype(network.layers) for name, value in parameters.items()}
    if network.engine is unroll_fused and tokens:
        return fold_embedding(network.config, weights, tokens, network.precision)
    return weights


def _outputs(
    network: Network,
    weights: dict[str, Array],
    tokens: Array,
    state: State,
    dropout: Dropout | None = None,
    record: bool = False,
) -> tuple[Array, State, list[Record | None]]:
    """tokens [T, B] -> outputs of the top layer [T, B, H], state, a record for each layer."""
    before = jax.tree.map(lambda field: field.astype(network.layers), state)
    vectors = embed(tokens, weights, network.config.embedding_activation)
    engine = unroll if record else network.engine
    with jax.default_matmul_precision(network.precision):
        outputs, after, records = unroll_layers(network.config, weights, vectors, before, dropout, record, engine)
    return outputs, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), records


def _decode(network: Network, weights: dict[str, Array], outputs: Array) -> Array:
    """Outputs [..., H] -> logits [..., V]; tied weights: the decoder is the embedding."""
    decoder = weights["embedding.weight" if network.config.tied_weights else "decoder.weight"]
    logits = jnp.einsum("...h,vh->...v", outputs, decoder, precision=network.precision) + weights["decoder.bias"]
    return logits.astype(jnp.promote_types(network.layers, jnp.float32))


def _loss(
    network: Network,
    parameters: dict[str, Array],
    state: State,
    batch: Batch,
    rows: Array | None,
    keys: Array,
    step: Array | None,
    count: Array | None,
) -> tuple[Array, State]:
    """Mean nats of the batch, or what these rows add to those of `count` predictions; the state after."""
    config, weights = network.config, _weights(network, parameters, batch.tokens.size)
    dropping = any(config.dropout_rates) and step is not None
    dropout = Dropout(config.dropout_rates, keys, step, worker(network.mesh)) if dropping else None
    outputs, after, _ = _outputs(network, weights, batch.tokens.T, zero_rows(state, batch.reset), dropout)
    chosen, targets, mask = unmasked(*predictions(outputs, batch, config.many_to_one), rows)
    return mean_nats(_decode(network, weights, chosen), targets, mask, count), zero_rows(after, ~batch.mask[:, -1])


def _worker_gradients(
    network: Network,
    parameters: dict[str, Array],
    state: State,
    batch: Batch,
    rows: Array | None,
    keys: Array,
    step: Array | None,
) -> Any:
    """`_gradients` on each worker: of its own rows only the state after and the gradient of the state before."""
    count = None
    if network.mesh is not None:
        predicting = batch.mask.any(-1) if network.config.many_to_one else batch.mask
        count = total(network.mesh, predicting.sum())
    derive = jax.value_and_grad(_loss, argnums=(1, 2), has_aux=True)
    (loss, after), (gradients, d_state) = derive(network, parameters, state, batch, rows, keys, step, count)
    loss, gradients = total(network.mesh, (loss, gradients))
    return (loss, after), (gradients, d_state)


@partial(jax.jit, static_argnums=0)
def _gradients(network: Network, *arguments: Any) -> Any:
    """Parameters, state, batch, rows, keys, step -> (loss, state after), the gradients of parameters and state."""
    takes, gives = (ALL, ROWS, ROWS, ALL, ALL, ALL), ((ALL, ROWS), (ALL, ROWS))
    compute = over_workers(network.mesh, partial(_worker_gradients, network), takes, gives)
    return whole(network.mesh, compute(*arguments))


@partial(jax.jit, static_argnums=0)
def _logits(network: Network, parameters: dict[str, Array], tokens: Array, state: State) -> tuple[Array, State]:
    """tokens [B, T] -> logits [B, T, V], or [B, V] of a many-to-one model; state."""
    weights = _weights(network, parameters, tokens.size)
    outputs, state, _ = _outputs(network, weights, tokens.T, state)
    if network.config.many_to_one:
        return _decode(network, weights, outputs[-1:])[0], state
    return _decode(network, weights, outputs).swapaxes(0, 1), state


@partial(jax.jit, static_argnums=(0, 1))
def _train_steps(
    network: Network,
    optimizer: OptimizerConfig,
    start: Any,
    batches: tuple[Batch, Array | None, Array],
    all_keys: Array,
) -> tuple[Any, tuple[Array, ...]]:
    """Parameters, slots, step and state before and after K steps on batches with rows and learning rates; of each step
    its loss, the norm of all gradients, whether finite, and the norms of each."""

    def train_step(keys: Array, before: Any, now: tuple[Batch, Array | None, Array]) -> tuple[Any, tuple[Array, ...]]:
        parameters, slots, step, state = before
        batch, rows, learning_rate = now
        (loss, after), (gradients, _) = _worker_gradients(network, parameters, state, batch, rows, keys, step)
        each = norms({name: gradients[name] for name in network.names})
        norm = together(each)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        clipped = clip(optimizer, gradients, norm)
        parameters, slots = update(optimizer, parameters, clipped, slots, step, finite, learning_rate)
        state = zero_rows(after, ~finite[None])
        return (parameters, slots, step + finite, state), (loss, norm, finite, each)

    def train_steps(start: Any, batches: Any, keys: Array) -> tuple[Any, tuple[Array, ...]]:
        return lax.scan(partial(train_step, keys), start, batches)

    ends = (ALL, ALL, ALL, ROWS)
    compute = over_workers(network.mesh, train_steps, (ends, (STACKED, ALL, ALL), ALL), (ends, ALL))
    return whole(network.mesh, compute(start, batches, all_keys))


@partial(jax.jit, static_argnums=0)
def _evaluate(
    network: Network, parameters: dict[str, Array], batches: tuple[Batch, Array | None], state: State
) -> tuple[tuple[Array, Array, Array], State]:
    """Sums over the batches, and the state after them."""
    weights = _weights(network, parameters, batches[0].tokens.size)

    def evaluate(state: State, now: tuple[Batch, Array | None]) -> tuple[State, tuple[Array, Array, Array]]:
        batch, rows = now
        outputs, after, _ = _outputs(network, weights, batch.tokens.T, zero_rows(state, batch.reset))
        chosen, targets, mask = unmasked(*predictions(outputs, batch, network.config.many_to_one), rows)
        return zero_rows(after, ~batch.mask[:, -1]), score(_decode(network, weights, chosen), targets, mask)

    state, scores = lax.scan(evaluate, state, batches)
    return jax.tree.map(jnp.sum, scores), state


@partial(jax.jit, static_argnums=0)
def _trace(
    network: Network, parameters: dict[str, Array], batch: Batch, state: State
) -> tuple[Array, list[Record | None]]:
    """Logits as `logits`, and the record of each layer with fields [B, T, H]."""
    weights, before = _weights(network, parameters), zero_rows(state, batch.reset)
    outputs, _, records = _outputs(network, weights, batch.tokens.T, before, record=True)
    logits = _decode(network, weights, predictions(outputs, batch, network.config.many_to_one)[0]).swapaxes(0, 1)
    records = jax.tree.map(lambda steps: steps.swapaxes(0, 1), records)
    return logits[:, 0] if network.config.many_to_one else logits, records


@partial(jax.jit, static_argnums=0)
def _generate(
    network: Network,
    parameters: dict[str, Array],
    state: State,
    prompt: Array,
    prompt_lengths: Array,
    uniforms: Array,
    *rest: Any,
) -> Array:
    """`generate` with this model as the function that advances."""
    weights = _weights(network, parameters, prompt.size + uniforms.size)

    def advance(tokens: Array, state: State) -> tuple[Array, State]:
        outputs, state, _ = _outputs(network, weights, tokens[None], state)
        return _decode(network, weights, outputs)[0], state

    return generate(advance, state, prompt, prompt_lengths, uniforms, *rest)
