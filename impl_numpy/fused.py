"""The gated cells as fast as NumPy gets them, both ways written by hand, for the same mathematics as `unroll`.

Features stand first here and the batch last, [H, B]: a step is one product [G*H, H] x [H, B], and gates are slabs of
rows, so that one call serves all sigmoids. A sigmoid is (1 + tanh(x / 2)) / 2; the halves of x are in the weights.
Within a step nothing is allocated. What needs no state is computed for many steps in one product.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from impl_numpy.arrays import Array
from impl_numpy.gru import GRUState, GRUWeights
from impl_numpy.lstm import LSTMState, LSTMWeights
from impl_numpy.unroll import Cell, Engine, cell_of, layer_weights, multiply_backward, shortcut
from shared.config import ModelConfig

COLUMNS = 512
"""Steps times rows whose inputs are projected in one product: it is fast from there on, and its result stays cached."""


class LSTMRecord(NamedTuple):
    hidden: Array  # [T + 1, H, B], from the state before the first step on
    cell: Array  # [T + 1, H, B]
    gates: Array  # [T, 4H, B]: input, forget, output, candidate
    squashed: Array  # tanh(cell) after each step [T, H, B]


class GRURecord(NamedTuple):
    hidden: Array  # [T + 1, H, B]
    gates: Array  # [T, 3H, B]: reset, update, candidate
    recurrent: Array  # U h + b_hn of the candidate [T, H, B]


def unroll_fused(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Any]:
    """One layer over time, as `unroll` -> outputs [T, B, H], the state after the last step, and a record of its own."""
    way = WAYS[cell.name]
    kept = way.forward(inputs, state, way.arrange(weights))
    outputs = np.ascontiguousarray(kept.hidden[1:].swapaxes(1, 2))
    after = cell.state(*(np.ascontiguousarray(getattr(kept, field)[-1].T) for field in cell.state._fields))
    return outputs, after, kept if record else None


def unroll_fused_backward(
    cell: Cell, d_outputs: Array, inputs: Array, state: Any, weights: Any, record: Any
) -> tuple[Array | None, Any, dict[str, Array]]:
    """Gradients as `unroll_backward`'s: at the inputs (None for tokens), at the state before, of the weights."""
    return WAYS[cell.name].backward(d_outputs, inputs, weights, record)


FUSED = Engine(unroll_fused, unroll_fused_backward)


def projections(inputs: Array, weight: Array, bias: Array) -> Iterator[Array]:
    """W x + b of one step after the other, [G*H, B]: inputs [T, B, I], or tokens [T, B] for one-hot vectors."""
    steps = max(1, COLUMNS // inputs.shape[1])
    table = weight + bias[:, None] if inputs.ndim == 2 else weight
    for start in range(0, len(inputs), steps):
        some = inputs[start : start + steps]
        if inputs.ndim == 2:
            block = np.take(table, some.reshape(-1), axis=1)
        else:
            block = table @ some.reshape(-1, some.shape[2]).T
            block += bias[:, None]
        yield from block.reshape(len(bias), *some.shape[:2]).swapaxes(0, 1)


def inputs_backward(d_sums: Array, inputs: Array, weight: Array) -> tuple[Array | None, Array]:
    """Gradients at the inputs (None for tokens) and of their weight, from those at W x + b [G*H, T, B]."""
    flat = d_sums.reshape(len(d_sums), -1)
    if inputs.ndim == 3:
        d_inputs = (weight.T @ flat).reshape(-1, *inputs.shape[:2])
        return d_inputs.transpose(1, 2, 0), flat @ inputs.reshape(-1, inputs.shape[2])
    if weight.shape[1] > len(weight):
        return multiply_backward(d_sums.transpose(1, 2, 0), inputs, weight)
    tokens = np.arange(weight.shape[1], like=weight)[:, None] == inputs.reshape(-1)
    return None, flat @ tokens.astype(flat.dtype).T


def recurrent_backward(d_sums: Array, hidden: Array) -> Array:
    """Gradient of U from those at U h [G*H, T, B], all steps in one product; hidden [T + 1, H, B]."""
    before = hidden[:-1].swapaxes(0, 1).reshape(hidden.shape[1], -1)
    return d_sums.reshape(len(d_sums), -1) @ before.T


def room(like: Array, *shape: int) -> Array:
    """An array of the same kind, not yet written."""
    return np.empty_like(like, shape=shape)


def sigmoid_of_half(x: Array) -> None:
    """From tanh(x / 2) to the sigmoid of x, in place."""
    x *= 0.5
    x += 0.5


# --- LSTM. Its sigmoids stand together: input, forget, output, candidate. ---------------------------------------------


def together(blocks: Array) -> Array:
    """Blocks of rows input, forget, candidate, output -> input, forget, output, candidate; and the same back."""
    i, f, g, o = np.split(blocks, 4)
    return np.concatenate([i, f, o, g])


def halved(blocks: Array, sigmoids: int) -> Array:
    """The rows of so many sigmoids, which stand first, halved, in place."""
    blocks[:sigmoids] *= 0.5
    return blocks


def lstm_arrange(weights: LSTMWeights) -> LSTMWeights:
    """The weights as the ways forward take them."""
    return LSTMWeights(*(halved(together(each), len(each) // 4 * 3) for each in weights))


def lstm_advance(projected: Array, state: LSTMState, weights: LSTMWeights) -> LSTMState:
    """One step alone, for sampling; projected [4H, B]."""
    gate = weights.weight_hh @ state.hidden.T
    gate += projected
    np.tanh(gate, out=gate)
    i, f, o, g = gate.reshape(4, -1, gate.shape[1])
    sigmoid_of_half(gate[: 3 * len(i)])
    cell = f * state.cell.T
    cell += i * g
    return LSTMState((o * np.tanh(cell)).T, cell.T)


def lstm_forward(inputs: Array, state: LSTMState, weights: LSTMWeights) -> LSTMRecord:
    """All steps of a layer."""
    weight_ih, weight_hh, bias = weights
    (T, B), H = inputs.shape[:2], weight_hh.shape[1]
    hidden, cell, gates = room(bias, T + 1, H, B), room(bias, T + 1, H, B), room(bias, T, 4 * H, B)
    squashed, added = room(bias, T, H, B), room(bias, H, B)
    hidden[0], cell[0] = state.hidden.T, state.cell.T
    for t, projected in enumerate(projections(inputs, weight_ih, bias)):
        gate, c = gates[t], cell[t + 1]
        i, f, o, g = gate.reshape(4, H, B)
        np.matmul(weight_hh, hidden[t], out=gate)
        gate += projected
        np.tanh(gate, out=gate)
        sigmoid_of_half(gate[: 3 * H])
        np.multiply(f, cell[t], out=c)
        c += np.multiply(i, g, out=added)
        np.tanh(c, out=squashed[t])
        np.multiply(o, squashed[t], out=hidden[t + 1])
    return LSTMRecord(hidden, cell, gates, squashed)


def lstm_backward(
    d_outputs: Array, inputs: Array, weights: LSTMWeights, record: LSTMRecord
) -> tuple[Array | None, LSTMState, dict[str, Array]]:
    """All steps back."""
    hidden, cell, gates, squashed = record
    T, H, B = squashed.shape
    weight_ih, weight_hh = together(weights.weight_ih), together(weights.weight_hh)
    d_sums, d_gate, slopes, some = (room(gates, *shape) for shape in ((4 * H, T, B), (4 * H, B), (3 * H, B), (H, B)))
    d_hidden, d_cell = np.zeros_like(hidden[0]), np.zeros_like(hidden[0])
    d_i, d_f, d_o, d_g = d_gate.reshape(4, H, B)
    for t in reversed(range(T)):
        sigmoids = gates[t, : 3 * H]
        i, f, o, g = gates[t].reshape(4, H, B)
        d_hidden += d_outputs[t].T
        np.multiply(d_hidden, squashed[t], out=d_o)
        # o (1 - tanh(c)^2) = o - h tanh(c)
        d_cell += np.multiply(d_hidden, o, out=some)
        d_cell -= np.multiply(d_o, hidden[t + 1], out=some)
        np.multiply(d_cell, g, out=d_i)
        np.multiply(d_cell, cell[t], out=d_f)
        np.subtract(1, sigmoids, out=slopes)
        slopes *= sigmoids
        d_gate[: 3 * H] *= slopes
        np.multiply(g, g, out=some)
        np.subtract(1, some, out=some)
        some *= i
        np.multiply(some, d_cell, out=d_g)
        d_cell *= f
        np.matmul(weight_hh.T, d_gate, out=d_hidden)
        d_sums[:, t] = d_gate
    d_inputs, d_weight_ih = inputs_backward(d_sums, inputs, weight_ih)
    found = d_weight_ih, recurrent_backward(d_sums, hidden), d_sums.sum((1, 2))
    d_weights = dict(zip(weights._fields, map(together, found), strict=True))
    return d_inputs, LSTMState(d_hidden.T, d_cell.T), d_weights


# --- GRU, the reset gate behind the product. --------------------------------------------------------------------------


def gru_arrange(weights: GRUWeights) -> GRUWeights:
    """The weights as the ways forward take them."""
    weight_ih, weight_hh, bias = (halved(each.copy(), len(each) // 3 * 2) for each in weights[:3])
    return GRUWeights(weight_ih, weight_hh, bias, weights.bias_hn)


def gru_advance(projected: Array, state: GRUState, weights: GRUWeights) -> GRUState:
    """One step alone, for sampling; projected [3H, B]."""
    h, H = state.hidden.T, len(weights.bias_hn)
    sums = weights.weight_hh @ h
    gate = np.tanh(sums[: 2 * H] + projected[: 2 * H])
    sigmoid_of_half(gate)
    n = np.tanh(projected[2 * H :] + gate[:H] * (sums[2 * H :] + weights.bias_hn[:, None]))
    return GRUState((n + gate[H:] * (h - n)).T)


def gru_forward(inputs: Array, state: GRUState, weights: GRUWeights) -> GRURecord:
    """All steps of a layer."""
    weight_ih, weight_hh, bias, bias_hn = weights
    (T, B), H = inputs.shape[:2], weight_hh.shape[1]
    hidden, gates, recurrent = room(bias, T + 1, H, B), room(bias, T, 3 * H, B), room(bias, T, H, B)
    sums, added = room(bias, 3 * H, B), room(bias, H, B)
    hidden[0] = state.hidden.T
    for t, projected in enumerate(projections(inputs, weight_ih, bias)):
        gate, h = gates[t], hidden[t + 1]
        r, z, n = gate.reshape(3, H, B)
        np.matmul(weight_hh, hidden[t], out=sums)
        np.add(projected[: 2 * H], sums[: 2 * H], out=gate[: 2 * H])
        np.tanh(gate[: 2 * H], out=gate[: 2 * H])
        sigmoid_of_half(gate[: 2 * H])
        np.add(sums[2 * H :], bias_hn[:, None], out=recurrent[t])
        np.multiply(r, recurrent[t], out=n)
        n += projected[2 * H :]
        np.tanh(n, out=n)
        # (1 - z) n + z h = n + z (h - n)
        np.subtract(hidden[t], n, out=added)
        added *= z
        np.add(n, added, out=h)
    return GRURecord(hidden, gates, recurrent)


def gru_backward(
    d_outputs: Array, inputs: Array, weights: GRUWeights, record: GRURecord
) -> tuple[Array | None, GRUState, dict[str, Array]]:
    """All steps back. The candidate's sum is split: its part of U h stands before reset and update, W x + b behind."""
    hidden, gates, recurrent = record
    T, H, B = recurrent.shape
    last_first = np.concatenate([weights.weight_hh[2 * H :], weights.weight_hh[: 2 * H]])
    d_sums, d_gate, slopes, some = (room(gates, *shape) for shape in ((4 * H, T, B), (4 * H, B), (2 * H, B), (H, B)))
    d_hidden, d_u, product = np.zeros_like(hidden[0]), d_gate[: 3 * H], room(hidden, H, B)
    d_recurrent, d_r, d_z, d_n = d_gate.reshape(4, H, B)
    for t in reversed(range(T)):
        sigmoids = gates[t, : 2 * H]
        r, z, n = gates[t].reshape(3, H, B)
        d_hidden += d_outputs[t].T
        np.subtract(hidden[t], n, out=d_z)
        d_z *= d_hidden
        np.multiply(n, n, out=some)
        np.subtract(1, some, out=d_n)
        d_hidden_z = np.multiply(d_hidden, z, out=some)
        d_hidden -= some
        d_n *= d_hidden
        np.multiply(d_n, recurrent[t], out=d_r)
        np.multiply(d_n, r, out=d_recurrent)
        np.subtract(1, sigmoids, out=slopes)
        slopes *= sigmoids
        d_gate[H : 3 * H] *= slopes
        np.matmul(last_first.T, d_u, out=product)
        np.add(product, d_hidden_z, out=d_hidden)
        d_sums[:, t] = d_gate
    d_inputs, d_weight_ih = inputs_backward(d_sums[H:], inputs, weights.weight_ih)
    d_weight_hh = recurrent_backward(d_sums[: 3 * H], hidden)
    biases = d_sums.sum((1, 2))
    d_weight_hh = np.concatenate([d_weight_hh[H:], d_weight_hh[:H]])
    d_weights = dict(zip(weights._fields, (d_weight_ih, d_weight_hh, biases[H:], biases[:H]), strict=True))
    return d_inputs, GRUState(d_hidden.T), d_weights


class Way(NamedTuple):
    """How a cell is computed here."""

    arrange: Callable[[Any], Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    advance: Callable[..., Any]


WAYS = {
    "lstm": Way(lstm_arrange, lstm_forward, lstm_backward, lstm_advance),
    "gru-after": Way(gru_arrange, gru_forward, gru_backward, gru_advance),
}


def stepper(model: ModelConfig, parameters: Mapping[str, Array]) -> Callable[[Array, Any], tuple[Array, Any]]:
    """What advances all layers by one step, with weights that are arranged once: vectors [B, I], or tokens [B] for
    one-hot vectors, and the state -> outputs [B, H], the state after."""
    cell = cell_of(model)
    way = WAYS[cell.name]
    layers = [way.arrange(layer_weights(cell, parameters, k)) for k in range(model.num_layers)]
    columns = layers[0].weight_ih + layers[0].bias[:, None]
    rows = np.ascontiguousarray(columns.T)

    def project(inputs: Array, weights: Any) -> Array:
        if inputs.ndim == 2:
            return weights.weight_ih @ inputs.T + weights.bias[:, None]
        return rows[inputs].T if len(inputs) == 1 else np.take(columns, inputs, axis=1)

    def advance(inputs: Array, states: Any) -> tuple[Array, Any]:
        after = []
        for k, (weights, state) in enumerate(zip(layers, states, strict=True)):
            after.append(way.advance(project(inputs, weights), state, weights))
            added = shortcut(inputs[None], parameters.get(f"rnn.residual_l{k}"))[0] if model.residual else 0
            inputs = after[-1].hidden + added if model.residual else after[-1].hidden
        return inputs, tuple(after)

    return advance
