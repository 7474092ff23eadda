"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000), as torch.nn.LSTM."""

from typing import NamedTuple

import tensorflow as tf

from impl_tf.arrays import Array


class LSTMState(NamedTuple):
    hidden: Array  # [B, H]
    cell: Array  # [B, H]


class LSTMWeights(NamedTuple):
    weight_ih: Array  # [4H, I], row blocks: input, forget, candidate, output
    weight_hh: Array  # [4H, H]
    bias: Array  # [4H]


class LSTMGates(NamedTuple):
    input_gate: Array  # each [B, H]
    forget_gate: Array
    candidate: Array
    output_gate: Array


def lstm_step(projected: Array, state: LSTMState, weights: LSTMWeights) -> tuple[LSTMState, LSTMGates]:
    """One time step; projected [B, 4H] is W x + b.

    i, f, o = sigmoid(W x + b + U h)     g = tanh(W x + b + U h)
    c' = f * c + i * g                   h' = o * tanh(c')
    """
    i, f, g, o = tf.split(projected + tf.linalg.matmul(state.hidden, weights.weight_hh, transpose_b=True), 4, axis=-1)
    gates = LSTMGates(tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o))
    cell = gates.forget_gate * state.cell + gates.input_gate * gates.candidate
    return LSTMState(gates.output_gate * tf.tanh(cell), cell), gates
