"""The LanguageModel in NumPy; the rules are in shared.contract."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from impl_numpy.arrays import Array, kernel, open_device, to_array, to_numpy
from impl_numpy.dropout import Dropout
from impl_numpy.embedding import embed, embed_backward, fold, fold_backward
from impl_numpy.fused import FUSED, over, stepper
from impl_numpy.generate import Advance, generate
from impl_numpy.loss import (
    mean_nats_backward,
    predictions,
    predictions_backward,
    score,
    unmasked,
    unmasked_backward,
)
from impl_numpy.native import require_native
from impl_numpy.optimizer import clip, init_slots, norms, together, update
from impl_numpy.parallel import Each, Threads, dealt, interleaved
from impl_numpy.unroll import SCRATCH, Engine, cell_of, unroll_layers, unroll_layers_backward
from shared.batching import stretches
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig
from shared.contract import Arrays, Batch, Evaluation, Gradients, LanguageModel, State, Team, TrainingSteps
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
    """The model with all parameters zero. There is never a team: impl_numpy.parallel says why."""
    return Model(model, optimizer, vocabulary_size, runtime, seed)


QUIET = np.errstate(over="ignore", invalid="ignore")
"""NumPy alone would warn of overflow; that a step or a loss is not finite is told by the results."""


class Model:
    device: str
    engine: str
    kernel: str

    def __init__(
        self, model: ModelConfig, optimizer: OptimizerConfig, vocabulary_size: int, runtime: RuntimeConfig, seed: int
    ) -> None:
        self._model, self._optimizer, self._cell = model, optimizer, cell_of(model)
        self._place = open_device(runtime)
        self.device, self.engine, self.kernel = self._place.name, engine_of(runtime, model), kernel(self._place)
        if self.engine == "native":
            require_native(model, self._place)
        self._engine = FUSED if self.engine == "fused" else SCRATCH
        self._threads = Threads(self._place)
        self._dropout_keys = tuple(dropout_keys(seed, layer) for layer in range(model.num_layers))
        self._shapes = parameter_shapes(model, vocabulary_size)
        self._sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        clipped_layers(optimizer, self._shapes)  # an unknown layer is said now
        self.load_parameters({name: np.zeros(shape) for name, shape in self._shapes.items()})

    def load_parameters(self, parameters: Arrays) -> None:
        check_arrays("The parameters", parameters, self._shapes)
        self._parameters = {name: self._array(parameters[name]) for name in self._shapes}
        self.reset_optimizer()

    def dump_parameters(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(value) for name, value in self._parameters.items()}

    def load_optimizer(self, slots: Arrays, step: int) -> None:
        shapes = slot_shapes(self._optimizer, self._shapes)
        check_arrays("The optimizer's slots", slots, shapes)
        self._slots, self._step = {name: self._array(slots[name]) for name in shapes}, step

    def dump_optimizer(self) -> tuple[dict[str, np.ndarray], int]:
        return {name: to_numpy(value) for name, value in self._slots.items()}, self._step

    def reset_optimizer(self) -> None:
        self._slots, self._step = init_slots(self._optimizer, self._parameters), 0

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
        outputs, state = self._outputs(self._array(tokens).T, state, self._engine)
        if self._model.many_to_one:
            return to_numpy(self._decode(outputs[-1])), state
        return to_numpy(self._decode(outputs).swapaxes(0, 1)), state

    def loss_and_gradients(self, batch: Batch, state: State, step: int | None = None) -> tuple[float, Gradients, State]:
        on_device = Batch(*map(self._array, batch))
        with self._share(len(batch.reset)) as each:
            loss, gradients, d_state, state = self._gradients(on_device, state, self._dropout(step), each)
        parameters = {name: to_numpy(gradients[name]) for name in self._shapes}
        return float(loss), Gradients(parameters, self.dump_state(d_state)), state

    @QUIET
    def train_steps(self, batches: Batch, state: State, learning_rates: np.ndarray) -> TrainingSteps:
        stacked = Batch(*map(self._array, batches))
        steps = []
        with self._share(batches.reset.shape[1]) as each:
            for k, rate in enumerate(learning_rates):
                single, loss, norm, finite, state = self._train_step(at(stacked, k), state, float(rate), each)
                steps.append((loss, norm, finite, to_numpy(single)))
        losses, totals, finites, each_norm = (np.array(column) for column in zip(*steps, strict=True))
        return TrainingSteps(losses, totals, finites, state, each_norm)

    @QUIET
    def evaluate(self, batches: Batch, state: State) -> Evaluation:
        stacked = Batch(*map(self._array, batches))
        sums = np.zeros(3)
        with self._share(batches.reset.shape[1]) as each:
            for k in range(len(batches.tokens)):
                scores, state = self._scores(at(stacked, k), state, each)
                sums += scores
        return Evaluation(float(sums[0]), int(sums[1]), int(sums[2]), state)

    def trace(self, batch: Batch, state: State) -> dict[str, np.ndarray]:
        on_device = Batch(*map(self._array, batch))
        before = zero_rows(state, on_device.reset)
        vectors = embed(on_device.tokens.T, self._parameters, self._model.embedding_activation)
        outputs, _, layers = unroll_layers(self._model, self._parameters, vectors, before, None, True, SCRATCH)
        logits = self._decode(predictions(outputs, on_device, self._model.many_to_one)[0])
        traced = {
            f"{field}_l{k}": to_numpy(value.swapaxes(0, 1))
            for k, layer in enumerate(layers)
            for field, value in {**layer.record.gates._asdict(), **layer.record.states._asdict()}.items()
        }
        return traced | {"logits": to_numpy(logits[0] if self._model.many_to_one else logits.swapaxes(0, 1))}

    @QUIET
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
        draws = self._place.module.array(uniforms)
        first, lengths = self._array(prompt), self._array(prompt_lengths)
        given, chosen_from = (None if each is None else self._array(each) for each in (forced, allowed))
        advance = self._advance(len(prompt), prompt.size + uniforms.size)

        def write(rows: slice) -> Array:
            state, own = self.initial_state(len(prompt[rows])), None if given is None else given[rows]
            return generate(advance, state, first[rows], lengths[rows], draws[rows], rule, own, chosen_from)

        with self._share(len(prompt)) as each:
            return to_numpy(interleaved(each(write)))

    def _array(self, values: np.ndarray) -> Array:
        return to_array(values, self._place)

    def _share(self, rows: int) -> AbstractContextManager[Each[Any]]:
        """Threads for so many rows. The scratch engine, which is written to be read, gives all to one."""
        return self._threads.share(rows, self._model.hidden_size if self._engine is FUSED else 0)

    def _dealt(self, hand: slice) -> list[str]:
        """The parameters of one thread, that which has these rows of a batch."""
        return dealt(self._sizes, hand.step)[hand.start]

    def _dropout(self, step: int | None) -> Dropout | None:
        """What the masks of a step depend on; None where nothing is dropped."""
        rates = self._model.dropout_rates
        return Dropout(rates, self._dropout_keys, step) if any(rates) and step is not None else None

    def _decode(self, outputs: Array) -> Array:
        """Outputs [..., H] -> logits [..., V]."""
        rows = outputs.reshape(-1, outputs.shape[-1])  # one product: of three axes, NumPy makes one for each step
        logits = rows @ self._decoder().T
        logits += self._parameters["decoder.bias"]
        return logits.reshape(*outputs.shape[:-1], logits.shape[1])

    def _decoder(self) -> Array:
        """[V, H]; tied weights: the embedding."""
        return self._parameters["embedding.weight" if self._model.tied_weights else "decoder.weight"]

    def _folds(self, count: int) -> bool:
        """Whether the embedding goes into the first layer's weights for so many tokens: in the fused engine, where
        multiplying all of the vocabulary's vectors is less work than multiplying all of the tokens'."""
        model = self._model
        few = model.embedding_size and len(self._parameters["decoder.bias"]) < count
        return bool(self._engine is FUSED and few and not model.residual)

    def _inputs(self, tokens: Array) -> tuple[Array, dict[str, Array]]:
        """What the first layer reads, vectors or tokens, and the parameters of the layers."""
        activation = self._model.embedding_activation
        if self._folds(tokens.size):
            return tokens, fold(self._parameters, activation)
        return embed(tokens, self._parameters, activation), self._parameters

    def _engine_for(self, mask: Array) -> Engine:
        """The engine; the fused one leaves out padded steps, mask [B, T], where rows stand longest first. A GPU gains
        nothing by it, and would have to be waited for."""
        leaves_out = self._engine is FUSED and self._place.module is np
        return over(stretches(mask)) if leaves_out else self._engine

    def _outputs(self, tokens: Array, state: State, engine: Engine) -> tuple[Array, State]:
        """tokens [T, B] -> outputs of the top layer [T, B, H], state."""
        inputs, parameters = self._inputs(tokens)
        return unroll_layers(self._model, parameters, inputs, state, None, False, engine)[:2]

    def _advance(self, batch_size: int, count: int) -> Advance:
        """tokens [B] -> logits [B, V], state; for so many rows, and tokens in all."""
        activation, folds = self._model.embedding_activation, self._folds(count)
        parameters = fold(self._parameters, activation) if folds else self._parameters
        step = stepper(self._model, parameters, batch_size) if self._engine is FUSED else self._step_plainly
        # Laid out anew once: the product of some rows is then up to a third faster.
        decoder, bias = np.ascontiguousarray(self._decoder().T), self._parameters["decoder.bias"]

        def advance(tokens: Array, state: State) -> tuple[Array, State]:
            inputs = tokens if folds else embed(tokens, parameters, activation)
            outputs, state = step(inputs, state)
            logits = outputs @ decoder
            logits += bias
            return logits, state

        return advance

    def _step_plainly(self, inputs: Array, state: State) -> tuple[Array, State]:
        """One step of all layers: inputs [B, I], or tokens [B], -> outputs [B, H], state."""
        outputs, state, _ = unroll_layers(self._model, self._parameters, inputs[None], state, None, False, SCRATCH)
        return outputs[0], state

    def _scores(self, batch: Batch, state: State, each: Each[Any]) -> tuple[np.ndarray, State]:
        """Summed nats, predictions and hits of a batch, and the state after."""

        def share(rows: slice) -> tuple[list[float], State]:
            some = at(batch, rows)
            before, engine = zero_rows(rows_of(state, rows), some.reset), self._engine_for(some.mask)
            outputs, after = self._outputs(some.tokens.T, before, engine)
            chosen, targets, mask = unmasked(*predictions(outputs, some, self._model.many_to_one))
            scores = [float(number) for number in score(self._decode(chosen), targets, mask)]
            return scores, zero_rows(after, ~some.mask[:, -1])

        scores, afters = zip(*each(share), strict=True)
        return np.sum(scores, 0), joined(afters)

    def _gradients(
        self, batch: Batch, state: State, dropout: Dropout | None, each: Each[Any]
    ) -> tuple[Array, dict[str, Array], State, State]:
        """Loss, gradients of the parameters and of the given state, state after the batch."""
        count = (batch.mask.any(1) if self._model.many_to_one else batch.mask).sum()

        def share(rows: slice) -> tuple[Array, dict[str, Array], State, State]:
            own = dropout and dropout._replace(rows=rows)
            return self._share_gradients(at(batch, rows), rows_of(state, rows), own, count)

        losses, (gradients, *others), d_states, afters = zip(*each(share), strict=True)

        def add(hand: slice) -> None:
            for name in self._dealt(hand):
                for other in others:
                    gradients[name] += other[name]

        each(add)
        return sum(losses), gradients, joined(d_states), joined(afters)

    def _share_gradients(
        self, batch: Batch, state: State, dropout: Dropout | None, count: Array
    ) -> tuple[Array, dict[str, Array], State, State]:
        """The part that some rows have in them, of so many predictions in all."""
        model, engine, before = self._model, self._engine_for(batch.mask), zero_rows(state, batch.reset)
        inputs, parameters = self._inputs(batch.tokens.T)
        outputs, after, layers = unroll_layers(model, parameters, inputs, before, dropout, True, engine)
        loss, d_outputs, decoder = self._loss(outputs, batch, count)
        d_inputs, d_states, gradients = unroll_layers_backward(model, parameters, d_outputs, before, layers, engine)
        if model.embedding_size and d_inputs is None:
            gradients |= fold_backward(gradients["rnn.weight_ih_l0"], self._parameters, model.embedding_activation)
        elif model.embedding_size:
            tokens, table = batch.tokens.T, self._parameters["embedding.weight"]
            d_table = embed_backward(d_inputs, inputs, tokens, table, model.embedding_activation)
            gradients["embedding.weight"] = d_table
        for name, gradient in decoder.items():
            gradients[name] = gradient + gradients[name] if name in gradients else gradient
        return loss, gradients, zero_rows(d_states, batch.reset), zero_rows(after, ~batch.mask[:, -1])

    def _loss(self, outputs: Array, batch: Batch, count: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Loss, gradients at the outputs [T, B, H] and of the decoder's parameters, for so many predictions in all."""
        many_to_one = self._model.many_to_one
        chosen, targets, mask = predictions(outputs, batch, many_to_one)
        rows, wanted, _ = unmasked(chosen, targets, mask)
        loss, d_logits = mean_nats_backward(self._decode(rows), wanted, count)
        d_rows = (self._decoder().T @ d_logits.T).T
        d_outputs = predictions_backward(unmasked_backward(d_rows, mask), outputs, batch, many_to_one)
        name = "embedding.weight" if self._model.tied_weights else "decoder.weight"
        return loss, d_outputs, {name: d_logits.T @ rows, "decoder.bias": d_logits.sum(0)}

    def _train_step(
        self, batch: Batch, state: State, learning_rate: float, threads: Each[Any]
    ) -> tuple[Array, float, float, bool, State]:
        """Norms of the gradients, each and together; loss, whether finite, state after."""
        loss, gradients, _, after = self._gradients(batch, state, self._dropout(self._step), threads)
        each = norms({name: gradients[name] for name in self._shapes})
        norm = together(each)
        finite = bool(np.isfinite(loss) & np.isfinite(norm))
        clipped = clip(self._optimizer, gradients, norm)

        def update_some(hand: slice) -> None:
            some = {name: self._parameters[name] for name in self._dealt(hand)}
            update(self._optimizer, some, clipped, self._slots, self._step, finite, learning_rate)

        threads(update_some)
        self._step += finite
        return each, float(loss), float(norm), finite, after if finite else self.initial_state(len(batch.reset))


def zero_rows(state: State, reset: Array) -> State:
    """The state with the rows zeroed where reset [B] is True."""
    return tuple(type(layer)(*(np.where(reset[:, None], 0, field) for field in layer)) for layer in state)


def rows_of(state: State, rows: slice) -> State:
    """The state of some rows."""
    return tuple(type(layer)(*(field[rows] for field in layer)) for layer in state)


def joined(states: Sequence[State]) -> State:
    """The state of all rows, from those of each thread's."""
    return tuple(
        type(shares[0])(*(interleaved(field) for field in zip(*shares, strict=True)))
        for shares in zip(*states, strict=True)
    )


def at(batches: Batch, k: int | slice) -> Batch:
    """One batch out of a stack, or some rows of a batch."""
    return Batch(*(each[k] for each in batches))
