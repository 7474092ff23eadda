"""The LanguageModel in PyTorch; the rules are in shared.contract."""

from functools import partial
from typing import Any

import numpy as np
import torch

from impl_torch.arrays import Array, kernel, open_device, to_array, to_numpy
from impl_torch.dropout import Dropout
from impl_torch.embedding import embed
from impl_torch.fused import dense, fold, fused_kernel, unroll_fused, unroll_stretches
from impl_torch.generate import Advance, generate, stepper
from impl_torch.loss import mean_nats, predictions, score, unmasked
from impl_torch.native import native_kernel, require_native, unroll_native
from impl_torch.optimizer import clip, init_slots, norms, together, update
from impl_torch.parallel import Team
from impl_torch.unroll import Engine, Record, cell_of, unroll, unroll_layers
from shared.batching import stretches
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
        self._model, self._optimizer, self._cell, self._team = model, optimizer, cell_of(model), team
        self._place = open_device(team.place(runtime))
        self.device, self.engine = self._place.name, engine_of(runtime, model)
        self._unroll, self.kernel = unroll, kernel(self._place)
        if self.engine == "native":
            require_native(model, self._place)
            self._unroll, self.kernel = unroll_native, native_kernel(model, self._place)
        elif self.engine == "fused":
            self._unroll, self.kernel = unroll_fused, fused_kernel(model, self._place)
        self._dropout_keys = self._array(np.array([dropout_keys(seed, layer) for layer in range(model.num_layers)]))
        self._shapes = parameter_shapes(model, vocabulary_size)
        clipped_layers(optimizer, self._shapes)  # an unknown layer is said now
        self.load_parameters({name: np.zeros(shape) for name, shape in self._shapes.items()})

    def load_parameters(self, parameters: Arrays) -> None:
        check_arrays("The parameters", parameters, self._shapes)
        self._parameters = {name: self._array(parameters[name]).requires_grad_() for name in self._shapes}
        self.reset_optimizer()

    def dump_parameters(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(value) for name, value in self._parameters.items()}

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        shapes = slot_shapes(self._optimizer, self._shapes)
        check_arrays("The optimizer's slots", slots, shapes)
        self._slots = {name: self._array(slots[name]) for name in shapes}
        self._step.fill_(step)

    def dump_optimizer(self) -> tuple[dict[str, np.ndarray], int]:
        return {name: to_numpy(value) for name, value in self._slots.items()}, int(self._step)

    def reset_optimizer(self) -> None:
        self._slots = init_slots(self._optimizer, self._parameters)
        self._step = torch.zeros((), dtype=torch.float64, device=self._place.handle)

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

    @torch.no_grad()
    def logits(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        weights = self._weights()
        outputs, state, _ = self._outputs(weights, self._array(tokens).T, state, None, self._unroll)
        if self._model.many_to_one:
            return to_numpy(self._decode(weights, outputs[-1])), state
        return to_numpy(self._decode(weights, outputs).transpose(0, 1)), state

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        start = map_state(lambda field: self._team.rows(field).detach().clone().requires_grad_(), state)
        mine, count = self._share(batch, axis=0)
        loss, after = self._loss(mine, start, self._dropout(step), self._places(self._team.rows(batch.mask)), count)
        fields = [field for layer in start for field in layer]
        gradients = torch.autograd.grad(loss, [*self._parameters.values(), *fields])
        loss, *totals = self._team.total([loss, *gradients[: len(self._shapes)]])
        parameters = dict(zip(self._shapes, map(to_numpy, totals), strict=True))
        d_fields = iter(gradients[len(self._shapes) :])
        d_state = map_state(lambda _: self._team.whole(next(d_fields)), start)
        return loss.item(), Gradients(parameters, self.dump_state(d_state)), map_state(self._team.whole, after)

    def train_steps(self, batches: Batch, state: State, learning_rates: np.ndarray) -> TrainingSteps:
        stacked, counts = self._share(batches, axis=1)
        places = [self._places(self._team.rows(mask)) for mask in batches.mask]
        state, steps = map_state(self._team.rows, state), []
        for k, learning_rate in enumerate(learning_rates):
            given = at(stacked, k), places[k], None if counts is None else counts[k]
            each, loss, norm, finite, state = self._train_step(*given, state, float(learning_rate))
            steps.append((loss, norm, finite, each))
        losses, totals, finites, each_norm = (to_numpy(torch.stack(column)) for column in zip(*steps, strict=True))
        state = map_state(self._team.whole, state)
        return TrainingSteps(losses.astype(np.float64), totals, finites, state, each_norm)

    @torch.no_grad()
    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        stacked, places = Batch(*map(self._array, batches)), [self._places(mask) for mask in batches.mask]
        weights, sums = self._weights(), torch.zeros(3, dtype=torch.float64, device=self._place.handle)
        for k in range(len(batches.tokens)):
            batch = at(stacked, k)
            before, (rows, engine) = zero_rows(state, batch.reset), places[k]
            outputs, after, _ = self._outputs(weights, batch.tokens.T, before, None, engine)
            state = zero_rows(after, ~batch.mask[:, -1])
            outputs, targets, mask = unmasked(*predictions(outputs, batch, self._model.many_to_one), rows)
            sums += torch.stack([each.double() for each in score(self._decode(weights, outputs), targets, mask)])
        nats, tokens, hits = sums.tolist()
        return Evaluation(nats, int(tokens), int(hits), state)

    @torch.no_grad()
    def trace(self, batch: Batch, state: State) -> dict[str, np.ndarray]:
        weights, on_device = self._weights(), Batch(*map(self._array, batch))
        before = zero_rows(state, on_device.reset)
        outputs, _, records = self._outputs(weights, on_device.tokens.T, before, None, unroll, record=True)
        logits = self._decode(weights, predictions(outputs, on_device, self._model.many_to_one)[0])
        traced = {
            f"{field}_l{k}": to_numpy(value.transpose(0, 1))
            for k, record in enumerate(records)
            if record
            for field, value in {**record.gates._asdict(), **record.states._asdict()}.items()
        }
        return traced | {"logits": to_numpy(logits[0] if self._model.many_to_one else logits.transpose(0, 1))}

    @torch.inference_mode()
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
        draws = torch.tensor(uniforms, device=self._place.handle)
        arrays = self._array(prompt), self._array(prompt_lengths)
        given = (None if each is None else self._array(each) for each in (forced, allowed))
        weights, state = self._weights(), cast(self.initial_state(len(prompt)), self._place.layers)
        if self.engine == "native":
            advance: Advance = partial(self._advance, weights)
        else:
            advance = stepper(self._model, weights, partial(self._decode, weights), prompt.size + uniforms.size)
        return to_numpy(generate(advance, state, *arrays, draws, rule, *given))

    def _array(self, values: np.ndarray) -> Array:
        return to_array(values, self._place)

    def _places(self, mask: np.ndarray) -> tuple[Array | None, Engine]:
        """Where a batch's mask [B, T] is True in [T, B], flat, None where everywhere; and the engine: the fused one
        leaves out padded steps where rows stand longest first, which a GPU has no gain of. Found here on the host, as
        a GPU would have to be waited for."""
        if mask.all():
            return None, self._unroll
        rows = None if self._model.many_to_one else self._array(np.flatnonzero(mask.T))
        leaves_out = self._unroll is unroll_fused and self._place.handle.type == "cpu"
        return rows, partial(unroll_stretches, stretches(mask)) if leaves_out else self._unroll

    def _weights(self) -> dict[str, Array]:
        """The parameters in the layers' precision, inside the graph."""
        return {name: value.to(self._place.layers) for name, value in self._parameters.items()}

    def _dropout(self, step: Array | int | None) -> Dropout | None:
        """What the masks of a step depend on; None where nothing is dropped."""
        rates = self._model.dropout_rates
        return Dropout(rates, self._dropout_keys, step, self._team.rank) if any(rates) and step is not None else None

    def _share(self, batch: Batch, axis: int) -> tuple[Batch, Array | None]:
        """The rows of this worker, on the device, and how much the whole batch predicts, if there are others."""
        whole = Batch(*map(self._array, batch))
        return Batch(*(self._team.rows(each, axis) for each in whole)), self._team.count(whole, self._model.many_to_one)

    def _decode(self, weights: dict[str, Array], outputs: Array) -> Array:
        """Outputs [..., H] -> logits [..., V]; tied weights: the decoder is the embedding."""
        decoder = weights["embedding.weight" if self._model.tied_weights else "decoder.weight"]
        fast = self.engine == "fused" and torch.is_grad_enabled()
        multiply = dense if fast else torch.nn.functional.linear
        return multiply(outputs, decoder, weights["decoder.bias"]).to(self._place.dtype)

    def _outputs(
        self,
        weights: dict[str, Array],
        tokens: Array,
        state: State,
        dropout: Dropout | None,
        engine: Engine,
        record: bool = False,
    ) -> tuple[Array, State, list[Record | None]]:
        """tokens [T, B] -> outputs of the top layer [T, B, H], state, a record for each layer."""
        if self._unroll is unroll_fused and not record:
            weights = fold(self._model, weights, tokens.numel())
        vectors = embed(tokens, weights, self._model.embedding_activation)
        before = cast(state, self._place.layers)
        outputs, after, records = unroll_layers(self._model, weights, vectors, before, dropout, record, engine)
        return outputs, cast(after, self._place.dtype), records

    def _advance(self, weights: dict[str, Array], tokens: Array, state: State) -> tuple[Array, State]:
        """tokens [B] -> logits [B, V], state."""
        outputs, state, _ = self._outputs(weights, tokens[None], state, None, self._unroll)
        return self._decode(weights, outputs[0]), state

    def _loss(
        self,
        batch: Batch,
        state: State,
        dropout: Dropout | None,
        places: tuple[Array | None, Engine],
        count: Array | None,
    ) -> tuple[Array, State]:
        """Mean nats of the batch, of which `_places` has told, or what these rows add to those of `count` predictions;
        the state after, detached."""
        weights, before, (rows, engine) = self._weights(), zero_rows(state, batch.reset), places
        outputs, after, _ = self._outputs(weights, batch.tokens.T, before, dropout, engine)
        outputs, targets, mask = unmasked(*predictions(outputs, batch, self._model.many_to_one), rows)
        after = zero_rows(map_state(torch.Tensor.detach, after), ~batch.mask[:, -1])
        return mean_nats(self._decode(weights, outputs), targets, mask, count), after

    def _train_step(
        self,
        batch: Batch,
        places: tuple[Array | None, Engine],
        count: Array | None,
        state: State,
        learning_rate: float,
    ) -> tuple[Array, Array, Array, Array, State]:
        """Norms of the gradients, each and together; loss, whether finite, state after."""
        loss, after = self._loss(batch, state, self._dropout(self._step), places, count)
        grads = torch.autograd.grad(loss, list(self._parameters.values()))
        with torch.no_grad():
            loss, *totals = self._team.total([loss, *grads])
            gradients = dict(zip(self._shapes, totals, strict=True))
            each = norms(gradients)
            norm = together(each)
            finite = loss.isfinite() & norm.isfinite()
            clipped = clip(self._optimizer, gradients, norm)
            update(self._optimizer, self._parameters, clipped, self._slots, self._step, finite, learning_rate)
            self._step += finite
        return each, loss.detach(), norm, finite, zero_rows(after, ~finite[None])


def map_state(function: Any, state: State) -> State:
    """A function of every field of every layer's state."""
    return tuple(type(layer)(*map(function, layer)) for layer in state)


def cast(state: State, dtype: torch.dtype) -> State:
    """The state in a precision; as it is where it has it."""
    return state if state[0].hidden.dtype == dtype else map_state(lambda field: field.to(dtype), state)


def zero_rows(state: State, reset: Array) -> State:
    """The state with the rows zeroed where reset [B] is True."""
    return map_state(lambda field: field.masked_fill(reset[:, None], 0), state)


def at(batches: Batch, k: int) -> Batch:
    """One batch out of a stack."""
    return Batch(*(each[k] for each in batches))
