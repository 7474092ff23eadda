"""The gated cells as fast as NumPy gets them, both ways written by hand, for the same mathematics as `unroll`.

Features stand first here and the batch last, [H, B]: a step is one product [G*H, H] x [H, B], and gates are slabs of
rows, so that one call serves all sigmoids. A sigmoid is (1 + tanh(x / 2)) / 2; the halves of x are in the weights.
Within a step nothing is allocated. What needs no state is computed for many steps in one product.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from impl_numpy.arrays import Array, pieces
from impl_numpy.gru import GRUState, GRUWeights
from impl_numpy.lstm import LSTMState, LSTMWeights
from impl_numpy.unroll import Cell, Engine, cell_of, layer_weights, multiply_backward, shortcut
from shared.batching import Stretch
from shared.config import ModelConfig

COLUMNS = 512
"""Steps times rows whose inputs are projected in one product: it is fast from there on, and its result stays cached."""
UNPACKED = 10**6
"""Multiplications of a product up to which OpenBLAS has kernels that read matrices where they lie. Of larger ones it
copies both first, which costs a fifth where one of them is a step's few columns."""


class LSTMRecord(NamedTuple):
    hidden: Array  # [T + 1, H, B], from the state before the first step on
    cell: Array  # [T + 1, H, B]
    gates: Array  # [T, 4H, B]: input, forget, output, candidate
    squashed: Array  # tanh(cell) after each step [T, H, B]


class GRURecord(NamedTuple):
    hidden: Array  # [T + 1, H, B]
    gates: Array  # [T, 4H, B]: reset, update, U h + b_hn of the candidate, candidate


class Kept(NamedTuple):
    """A stretch that was computed."""

    steps: slice
    rows: slice
    record: Any


def unroll_fused(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Any]:
    """One layer over time, as `unroll` -> outputs [T, B, H], the state after the last step, and a record of its own."""
    return unroll_stretches(((0, *inputs.shape[:2]),), cell, inputs, state, weights, record)


def unroll_stretches(
    stretches: Sequence[Stretch], cell: Cell, inputs: Array, state: Any, weights: Any, record: bool
) -> tuple[Array, Any, Any]:
    """As `unroll_fused`, but only the steps and rows of these stretches (`shared.batching.stretches`) are computed.
    Outputs of the others are zero, and so is the state of the rows that have none in the last."""
    way, (T, B) = WAYS[cell.name], inputs.shape[:2]
    arranged, after, kept = way.arrange(weights), state, []
    outputs = room(weights.bias, T, B, weights.weight_hh.shape[1])
    for start, stop, count in stretches:
        steps, rows = slice(start, stop), slice(count)
        some = way.forward(inputs[steps, rows], cell.state(*(field[rows] for field in after)), arranged)
        after = cell.state(*(getattr(some, field)[-1].T for field in cell.state._fields))
        outputs[steps, rows], outputs[steps, count:] = some.hidden[1:].swapaxes(1, 2), 0
        kept.append(Kept(steps, rows, some))
    outputs[stop:] = 0
    ends = cell.state(*(np.ascontiguousarray(widened(field, B).T) for field in after))
    return outputs, ends, kept if record else None


def unroll_fused_backward(
    cell: Cell, d_outputs: Array, inputs: Array, state: Any, weights: Any, record: Any
) -> tuple[Array | None, Any, dict[str, Array]]:
    """Gradients as `unroll_backward`'s: at the inputs (None for tokens), at the state before, of the weights."""
    way, B = WAYS[cell.name], d_outputs.shape[1]
    turned, d_state = way.turn(weights), cell.state(*(field[:0] for field in state))
    d_inputs, gradients = None, dict[str, Array]()
    for steps, rows, kept in reversed(record):
        given = d_outputs[steps, rows], inputs[steps, rows], weights, turned, kept, d_state
        d_some, d_state, found = way.backward(*given)
        for name, value in found.items():
            gradients[name] = np.add(value, gradients[name], out=value) if name in gradients else value
        if d_some is None or d_some.shape == inputs.shape:
            d_inputs = d_some
            continue
        if d_inputs is None:
            d_inputs = np.zeros_like(inputs.transpose(2, 0, 1), order="C").transpose(1, 2, 0)
        d_inputs[steps, rows] = d_some
    return d_inputs, cell.state(*(widened(field, B).T for field in d_state)), gradients


def over(stretches: Sequence[Stretch]) -> Engine:
    """The engine that computes these stretches only."""
    return Engine(partial(unroll_stretches, stretches), unroll_fused_backward)


FUSED = Engine(unroll_fused, unroll_fused_backward)


def widened(field: Array, columns: int) -> Array:
    """Of some rows [n, H] -> of so many [H, columns]: zero in the others."""
    wide = np.zeros_like(field, shape=(field.shape[1], columns))
    wide[:, : len(field)] = field.T
    return wide


def projections(inputs: Array, weight: Array, bias: Array) -> Iterator[Array]:
    """W x + b of one step after the other, [G*H, B]: inputs [T, B, I], or tokens [T, B] for one-hot vectors."""
    if inputs.ndim == 2:
        table = weight + bias[:, None]
        yield from (table.take(tokens, axis=1) for tokens in inputs)
        return
    steps = max(1, COLUMNS // inputs.shape[1])
    for start in range(0, len(inputs), steps):
        some = inputs[start : start + steps]
        block = weight @ some.reshape(-1, some.shape[2]).T
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


def blocks(weight: Array, columns: int) -> Array:
    """A weight [M, K] that is to be multiplied with so many columns, as a stack of blocks of rows, [N, M / N, K], as
    large as they may be for products without copies; where no number of rows is right, one block."""
    M, K = weight.shape
    most = min(M, UNPACKED // (K * columns)) if isinstance(weight, np.ndarray) else 0
    rows = next((rows for rows in range(most - most % 8, 0, -8) if M % rows == 0), M)
    return np.ascontiguousarray(weight).reshape(-1, rows, K)


def multiply_blocks(weight: Array, columns: Array, out: Array) -> None:
    """A weight in blocks, times [K, B], into out [M, B]."""
    np.matmul(weight, columns, out=out.reshape(*weight.shape[:2], -1))


def room(like: Array, *shape: int) -> Array:
    """An array of the same kind, not yet written."""
    return np.empty_like(like, shape=shape)


def backwards(steps: Array) -> Iterator[slice]:
    """As many steps [T, ...] at a time as the cache holds, the last ones first."""
    return reversed(list(pieces(steps)))


def sigmoid_of_half(x: Array) -> None:
    """From tanh(x / 2) to the sigmoid of x, in place."""
    x *= 0.5
    x += 0.5


# --- LSTM. Its sigmoids stand together: input, forget, output, candidate. ---------------------------------------------


def together(blocks: Array) -> Array:
    """Blocks of rows input, forget, candidate, output -> input, forget, output, candidate."""
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
    """One step alone, for sampling; projected [4H, B], weights of the state in blocks."""
    gate = (weights.weight_hh @ state.hidden.T).reshape(projected.shape)
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
    squashed, added, weight = room(bias, T, H, B), room(bias, H, B), blocks(weight_hh, B)
    hidden[0], cell[0] = state.hidden.T, state.cell.T
    for t, projected in enumerate(projections(inputs, weight_ih, bias)):
        gate, c = gates[t], cell[t + 1]
        i, f, o, g = gate.reshape(4, H, B)
        multiply_blocks(weight, hidden[t], gate)
        gate += projected
        np.tanh(gate, out=gate)
        sigmoid_of_half(gate[: 3 * H])
        np.multiply(f, cell[t], out=c)
        c += np.multiply(i, g, out=added)
        np.tanh(c, out=squashed[t])
        np.multiply(o, squashed[t], out=hidden[t + 1])
    return LSTMRecord(hidden, cell, gates, squashed)


def lstm_slopes(hidden: Array, cell: Array, gates: Array, squashed: Array) -> tuple[Array, Array, Array]:
    """Of some steps, the cells being those before them: forget gates [t, H, B]; slopes of the hidden state by the cell;
    slopes of the sums [t, 4, H, B] as the contract stacks them, the first three by the cell, the last by the hidden."""
    T, H, B = squashed.shape
    i, f, o, g = gates.reshape(T, 4, H, B).swapaxes(0, 1)
    slopes = room(gates, T, 4, H, B)
    by_i, by_f, by_g, by_o = slopes.swapaxes(0, 1)
    # o (1 - tanh(c)^2) = o - h tanh(c)
    through = hidden * squashed
    np.subtract(o, through, out=through)
    # i (1 - i) g and i (1 - g^2)
    np.multiply(i, g, out=by_i)
    np.multiply(by_i, g, out=by_g)
    np.subtract(i, by_g, out=by_g)
    by_i -= by_i * i
    # f (1 - f) c
    np.multiply(f, cell, out=by_f)
    by_f -= by_f * f
    # o (1 - o) tanh(c) = h (1 - o)
    np.multiply(hidden, o, out=by_o)
    np.subtract(hidden, by_o, out=by_o)
    return f, through, slopes


def lstm_turn(weights: LSTMWeights) -> Array:
    """The recurrent weight as the way back multiplies with it."""
    return np.ascontiguousarray(weights.weight_hh.T)


def lstm_backward(
    d_outputs: Array, inputs: Array, weights: LSTMWeights, turned: Array, record: LSTMRecord, d_after: LSTMState
) -> tuple[Array | None, LSTMState, dict[str, Array]]:
    """All steps back, from the gradient at the state after them, of all rows or of the first ones."""
    hidden, cell, gates, squashed = record
    T, H, B = squashed.shape
    weight = blocks(turned, B)
    d_sums, some = room(gates, 4 * H, T, B), room(gates, H, B)
    d_hidden, d_cell = (widened(field, B) for field in d_after)
    for steps in backwards(gates):
        forget, through, slopes = lstm_slopes(hidden[1:][steps], cell[:-1][steps], gates[steps], squashed[steps])
        for t in reversed(range(len(slopes))):
            d_hidden += d_outputs[steps][t].T
            d_cell += np.multiply(d_hidden, through[t], out=some)
            slopes[t, :3] *= d_cell
            slopes[t, 3] *= d_hidden
            d_cell *= forget[t]
            multiply_blocks(weight, slopes[t].reshape(4 * H, B), d_hidden)
        d_sums[:, steps] = slopes.reshape(-1, 4 * H, B).swapaxes(0, 1)
    d_inputs, d_weight_ih = inputs_backward(d_sums, inputs, weights.weight_ih)
    found = d_weight_ih, recurrent_backward(d_sums, hidden), d_sums.sum((1, 2))
    return d_inputs, LSTMState(d_hidden.T, d_cell.T), dict(zip(weights._fields, found, strict=True))


# --- GRU, the reset gate behind the product. --------------------------------------------------------------------------


def gru_arrange(weights: GRUWeights) -> GRUWeights:
    """The weights as the ways forward take them."""
    weight_ih, weight_hh, bias = (halved(each.copy(), len(each) // 3 * 2) for each in weights[:3])
    return GRUWeights(weight_ih, weight_hh, bias, weights.bias_hn)


def gru_advance(projected: Array, state: GRUState, weights: GRUWeights) -> GRUState:
    """One step alone, for sampling; projected [3H, B], weights of the state in blocks."""
    h, H = state.hidden.T, len(weights.bias_hn)
    sums = (weights.weight_hh @ h).reshape(projected.shape)
    gate = np.tanh(sums[: 2 * H] + projected[: 2 * H])
    sigmoid_of_half(gate)
    n = np.tanh(projected[2 * H :] + gate[:H] * (sums[2 * H :] + weights.bias_hn[:, None]))
    return GRUState((n + gate[H:] * (h - n)).T)


def gru_forward(inputs: Array, state: GRUState, weights: GRUWeights) -> GRURecord:
    """All steps of a layer."""
    weight_ih, weight_hh, bias, bias_hn = weights
    (T, B), H = inputs.shape[:2], weight_hh.shape[1]
    hidden, gates = room(bias, T + 1, H, B), room(bias, T, 4 * H, B)
    added, weight = room(bias, H, B), blocks(weight_hh, B)
    hidden[0] = state.hidden.T
    for t, projected in enumerate(projections(inputs, weight_ih, bias)):
        gate, h = gates[t], hidden[t + 1]
        r, z, recurrent, n = gate.reshape(4, H, B)
        sigmoids = gate[: 2 * H]
        multiply_blocks(weight, hidden[t], gate[: 3 * H])
        sigmoids += projected[: 2 * H]
        np.tanh(sigmoids, out=sigmoids)
        sigmoid_of_half(sigmoids)
        recurrent += bias_hn[:, None]
        np.multiply(r, recurrent, out=n)
        n += projected[2 * H :]
        np.tanh(n, out=n)
        # (1 - z) n + z h = n + z (h - n)
        np.subtract(hidden[t], n, out=added)
        added *= z
        np.add(n, added, out=h)
    return GRURecord(hidden, gates)


def gru_slopes(hidden: Array, gates: Array) -> tuple[Array, Array]:
    """Of some steps, the hidden states being those before them: update gates [t, H, B]; slopes of the sums by the
    hidden state [t, 4, H, B]: the candidate's U h + b_hn, reset, update, and the candidate's W x + b."""
    T, H, B = hidden.shape
    r, z, recurrent, n = gates.reshape(T, 4, H, B).swapaxes(0, 1)
    slopes = room(gates, T, 4, H, B)
    by_recurrent, by_r, by_z, by_n = slopes.swapaxes(0, 1)
    # (1 - z) (1 - n^2)
    np.subtract(1, z, out=by_r)
    np.multiply(n, n, out=by_n)
    np.subtract(1, by_n, out=by_n)
    by_n *= by_r
    # z (1 - z) (h - n)
    np.subtract(hidden, n, out=by_z)
    by_z *= z
    by_z *= by_r
    # that of n, times r, and times r (1 - r) recurrent
    np.multiply(by_n, r, out=by_recurrent)
    np.multiply(by_recurrent, recurrent, out=by_r)
    by_r -= by_r * r
    return z, slopes


def gru_turn(weights: GRUWeights) -> Array:
    """The recurrent weight as the way back multiplies with it: the candidate's before those of reset and update."""
    H = len(weights.bias_hn)
    return np.ascontiguousarray(np.concatenate([weights.weight_hh[2 * H :], weights.weight_hh[: 2 * H]]).T)


def gru_backward(
    d_outputs: Array, inputs: Array, weights: GRUWeights, turned: Array, record: GRURecord, d_after: GRUState
) -> tuple[Array | None, GRUState, dict[str, Array]]:
    """All steps back, from the gradient at the state after them, of all rows or of the first ones. The candidate's sum
    is split: its part of U h stands before reset and update, W x + b behind."""
    hidden, gates = record
    T, (H, B) = len(gates), hidden.shape[1:]
    weight = blocks(turned, B)
    d_sums, product, d_hidden = room(gates, 4 * H, T, B), room(gates, H, B), widened(d_after.hidden, B)
    for steps in backwards(gates):
        update, slopes = gru_slopes(hidden[:-1][steps], gates[steps])
        for t in reversed(range(len(slopes))):
            d_hidden += d_outputs[steps][t].T
            slopes[t] *= d_hidden
            d_hidden *= update[t]
            multiply_blocks(weight, slopes[t, :3].reshape(3 * H, B), product)
            d_hidden += product
        d_sums[:, steps] = slopes.reshape(-1, 4 * H, B).swapaxes(0, 1)
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
    turn: Callable[[Any], Array]
    backward: Callable[..., Any]
    advance: Callable[..., Any]


WAYS = {
    "lstm": Way(lstm_arrange, lstm_forward, lstm_turn, lstm_backward, lstm_advance),
    "gru-after": Way(gru_arrange, gru_forward, gru_turn, gru_backward, gru_advance),
}


def stepper(
    model: ModelConfig, parameters: Mapping[str, Array], batch_size: int
) -> Callable[[Array, Any], tuple[Array, Any]]:
    """What advances all layers by one step, with weights that are arranged once: vectors [B, I], or tokens [B] for
    one-hot vectors, and the state -> outputs [B, H], the state after; for so many rows, or fewer."""
    cell = cell_of(model)
    way = WAYS[cell.name]
    layers = [way.arrange(layer_weights(cell, parameters, k)) for k in range(model.num_layers)]
    layers = [each._replace(weight_hh=blocks(each.weight_hh, batch_size)) for each in layers]
    columns = layers[0].weight_ih + layers[0].bias[:, None]
    rows = np.ascontiguousarray(columns.T)

    def project(inputs: Array, weights: Any) -> Array:
        if inputs.ndim == 2:
            return weights.weight_ih @ inputs.T + weights.bias[:, None]
        return rows.take(inputs, axis=0).T if len(inputs) < len(rows) else columns.take(inputs, axis=1)

    def advance(inputs: Array, states: Any) -> tuple[Array, Any]:
        after = []
        for k, (weights, state) in enumerate(zip(layers, states, strict=True)):
            after.append(way.advance(project(inputs, weights), state, weights))
            added = shortcut(inputs[None], parameters.get(f"rnn.residual_l{k}"))[0] if model.residual else 0
            inputs = after[-1].hidden + added if model.residual else after[-1].hidden
        return inputs, tuple(after)

    return advance
