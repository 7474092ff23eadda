"""Embedding, layers and dropout once more, in plain NumPy, forwards and backwards, with mistakes made on purpose. The
cells are `mistaken_cells`, the words for the mistakes `causes`.

Axes are B T V E H as in the contract; time stands second throughout.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from runner.diagnosis.mistaken_cells import SHAPES, Step
from runner.diagnosis.mistakes import ORDERS
from shared.config import ModelConfig
from shared.parameters import STATES
from shared.random_bits import keep_mask

Array = np.ndarray
Arrays = dict[str, Array]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    **{name: shape for name, (shape, _) in SHAPES.items()},
}
SLOPES: dict[str, Callable[[Array], Array]] = {
    "none": np.ones_like,
    **{name: slope for name, (_, slope) in SHAPES.items()},
}


class Layer(NamedTuple):
    """What the way back needs to know of a layer."""

    inputs: Array  # [B, T, I]
    steps: list[Step]
    factors: Array | None  # of the dropout behind it, [B, T, H]


class MistakenLayers:
    """From tokens to the outputs of the top layer and back, computed with the mistakes `made`."""

    _parameters: Arrays

    def __init__(self, model: ModelConfig, vocabulary_size: int, seed: int, made: Iterable[str]) -> None:
        self._model, self._vocabulary_size, self._seed, self._made = model, vocabulary_size, seed, frozenset(made)
        self._cell = cell_name(model)

    def _start(self, state: Arrays, reset: Array) -> Arrays:
        """The state with the rows zeroed that start anew."""
        if "reset ignored" in self._made:
            return state
        return {name: np.where(reset[:, None], 0, value) for name, value in state.items()}

    def _end(self, after: Arrays, mask: Array) -> Arrays:
        """The state after a batch, with the rows zeroed that have ended."""
        if self._made & {"state of ended rows kept", "mask ignored"}:
            return after
        return {name: np.where(mask[:, -1:], value, 0) for name, value in after.items()}

    def _outputs(self, tokens: Array, state: Arrays, step: int | None = None) -> tuple[Array, Arrays, list[Layer]]:
        """tokens [B, T] -> outputs of the top layer [B, T, H], state after, what happened in each layer."""
        model, made = self._model, self._made
        if model.embedding_size:
            inputs = ACTIVATIONS[self._activation()](self._parameters["embedding.weight"][tokens])
        else:
            inputs = np.eye(self._vocabulary_size)[tokens]
        after, layers = Arrays(), []
        for k in range(model.num_layers):
            source = 0 if "first layer's state for all layers" in made else k
            fields = {field: state[f"{field}_l{source}"] for field in STATES[model.cell]}
            steps = []
            for t in range(tokens.shape[1]):
                steps.append(Step(self._cell, made, inputs[:, t], fields, self._layer_weights(k)))
                fields = {name: node.data for name, node in steps[-1].after.items()}
            last = steps[max(len(steps) - 2, 0)] if "state one step behind" in made else steps[-1]
            after |= {f"{name}_l{k}": node.data for name, node in last.after.items()}
            outputs = np.stack([each.after["hidden"].data for each in steps], 1)
            if model.residual and "residual left out" not in made:
                outputs = outputs + self._shortcut(inputs, k)
            factors = self._dropout(k, outputs.shape, step)
            layers.append(Layer(inputs, steps, factors))
            inputs = outputs if factors is None else outputs * factors
        return inputs, after, layers

    def _activation(self) -> str:
        return "none" if "activation left out" in self._made else self._model.embedding_activation

    def _shortcut(self, inputs: Array, layer: int) -> Array:
        """What a residual connection adds."""
        weight = self._parameters.get(f"rnn.residual_l{layer}")
        return inputs if weight is None else inputs @ weight.T

    def _dropout(self, layer: int, shape: tuple[int, ...], step: int | None) -> Array | None:
        """Factors [B, T, H] of what the next layer reads; None where nothing is dropped."""
        model, made = self._model, self._made
        rate = model.dropout_rates[layer]
        if layer + 1 == model.num_layers and "dropout behind the last layer too" in made:
            rate = model.dropout
        if layer + 1 == model.num_layers and "dropout behind the last layer left out" in made:
            rate = 0.0
        if step is None and "dropout always" in made:
            step = 0
        if not rate or step is None or "dropout left out" in made:
            return None
        step += ("masks of the next step" in made) - ("masks of the step before" in made)
        layer = 0 if "one mask for all layers" in made else layer
        B, T, H = shape
        if "masks laid out by time" in made:
            keep = keep_mask(self._seed, step, layer, (T, B, H), rate).swapaxes(0, 1)
        else:
            keep = keep_mask(self._seed, step, layer, (B, T, H), rate)
        keep = ~keep if "kept and dropped exchanged" in made else keep
        return keep * (1.0 if "kept not scaled up" in made else 1 / (1 - rate))

    def _layer_weights(self, layer: int) -> Arrays:
        """Field -> weight of a layer's cell."""
        suffix = f"_l{layer}"
        fields = {
            name.removeprefix("rnn.").removesuffix(suffix): value
            for name, value in self._parameters.items()
            if name.startswith("rnn.") and name.endswith(suffix)
        }
        fields.pop("residual", None)
        if "bias above missing" in self._made and layer:
            fields["bias"] = np.zeros_like(fields["bias"])
        return {name: value[self._rows(name, len(value))] for name, value in fields.items()}

    def _rows(self, field: str, count: int) -> Array:
        """Which rows stand where, if the gates of one side alone have another order."""
        rows, usual = np.arange(count), ORDERS.get(self._cell, "")
        for side, names in {"inputs": ("weight_ih", "bias"), "recurrent": ("weight_hh",)}.items():
            order = next((each.split()[-1] for each in self._made if each.startswith(f"{side} in order ")), usual)
            if field in names and order != usual:
                rows = np.concatenate([rows.reshape(len(usual), -1)[order.index(gate)] for gate in usual])
        return rows

    def _backward(
        self, layers: list[Layer], d_outputs: Array, start: Arrays, gradients: Arrays
    ) -> tuple[Array, Arrays]:
        """Down the stack -> gradients at the first layer's inputs and at the initial state; of parameters: into
        `gradients`."""
        made, fields, d_start = self._made, STATES[self._model.cell], Arrays()
        for k in reversed(range(len(layers))):
            inputs, steps, factors = layers[k]
            if factors is not None and "dropout left out on the way back" not in made:
                d_outputs = d_outputs * factors
            if "first layer's state on the way back" in made:
                steps[0].before["hidden"].data = start["hidden_l0"]
            d_state = {field: np.zeros_like(start[f"{field}_l{k}"]) for field in fields}
            d_inputs, d_weights = np.zeros_like(inputs), dict[str, Any]()
            for t in reversed(range(len(steps))):
                d_state["hidden"] = d_state["hidden"] + d_outputs[:, t]
                d_inputs[:, t], d_state, more = steps[t].backward(d_state)
                d_weights = {name: d_weights.get(name, 0) + value for name, value in more.items()}
            gradients |= {f"rnn.{name}_l{k}": value for name, value in self._gate_gradients(d_weights).items()}
            d_start |= {f"{name}_l{k}": value for name, value in d_state.items()}
            if self._model.residual:
                d_inputs = d_inputs + self._shortcut_backward(d_outputs, inputs, k, gradients)
            d_outputs = d_inputs
        return d_outputs, {name: d_start[name] for name in start}

    def _gate_gradients(self, found: Arrays) -> Arrays:
        """Back into canonical order; some mixed up by mistake."""
        gradients, made = {}, self._made
        for name, value in found.items():
            gradients[name] = np.zeros_like(value)
            gradients[name][self._rows(name, len(value))] = value
        for k, gate in enumerate(ORDERS.get(self._cell, "")):
            if f"bias_hn's gradient of {gate}" in made:
                gradients["bias_hn"] = np.split(gradients["bias"], len(ORDERS[self._cell]))[k]
        if "weight_skip's gradient sees the new state" in made:
            gradients["weight_skip"] = gradients["weight_ab"]
        return gradients

    def _shortcut_backward(self, d_outputs: Array, inputs: Array, layer: int, gradients: Arrays) -> Array | float:
        """Gradient of a residual connection at its inputs."""
        name, made = f"rnn.residual_l{layer}", self._made
        if name not in self._parameters:
            return 0.0 if made & {"residual left out", "plain residual left out on the way back"} else d_outputs
        gradients[name] = product(d_outputs, inputs) * ("residual left out" not in made)
        left_out = made & {"residual left out", "projected residual left out on the way back"}
        return 0.0 if left_out else d_outputs @ self._parameters[name]

    def _table_gradients(self, tokens: Array, vectors: Array, d_vectors: Array, d_decoder: Array) -> Arrays:
        """Gradients of the embedding and the decoder's weight, which may be one."""
        made, tied = self._made, self._model.tied_weights
        if not self._model.embedding_size:
            return {"decoder.weight": d_decoder}
        slope = "none" if "activation's slope left out" in made else self._activation()
        d_rows = (d_vectors * SLOPES[slope](vectors)).swapaxes(0, 1).reshape(tokens.size, -1)
        d_table, rows = np.zeros_like(self._parameters["embedding.weight"]), tokens.T.reshape(-1)
        if "repeated tokens not added up" in made:
            d_table[rows] = d_rows
        else:
            np.add.at(d_table, rows, d_rows)
        if not tied:
            return {"embedding.weight": d_table, "decoder.weight": d_decoder}
        if "tied gradient of the decoder alone" in made:
            return {"embedding.weight": d_decoder}
        return {"embedding.weight": d_table + (0 if "tied gradient of the embedding alone" in made else d_decoder)}


def cell_name(model: ModelConfig) -> str:
    """The cell of `mistaken_cells` that the options describe."""
    variants = {("rnn", "relu"): "rnn-relu", ("gru", "before"): "gru-before"}
    return variants.get((model.cell, model.nonlinearity if model.cell == "rnn" else model.gru_reset), model.cell)


def product(left: Array, right: Array) -> Array:
    """Outer products summed over rows and steps: [B, T, M], [B, T, N] -> [M, N]."""
    return np.asarray(np.einsum("btm,btn->mn", left, right))
