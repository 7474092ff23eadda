"""An LSTM cell by hand, forward and backward: `python -m runner check --module docs/examples/my_lstm.py`."""

import numpy as np

CELL = "lstm"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gates(x, state, weights):
    """Input, forget, candidate and output gate, each [B, H]."""
    sums = x @ weights["weight_ih"].T + state["hidden"] @ weights["weight_hh"].T + weights["bias"]
    i, f, g, o = np.split(sums, 4, axis=1)
    return sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)


def forward(x, state, weights):
    """One step: x [B, I], state {"hidden": [B, H], "cell": [B, H]} -> the new state."""
    i, f, g, o = gates(x, state, weights)
    cell = f * state["cell"] + i * g
    return {"hidden": o * np.tanh(cell), "cell": cell}


def backward(d_state, x, state, weights):
    """Gradients at the new state -> at x, at the state before, of the weights."""
    i, f, g, o = gates(x, state, weights)
    tanh_cell = np.tanh(f * state["cell"] + i * g)
    d_cell = d_state["cell"] + d_state["hidden"] * o * (1 - tanh_cell**2)
    d_i = d_cell * g * i * (1 - i)
    d_f = d_cell * state["cell"] * f * (1 - f)
    d_g = d_cell * i * (1 - g**2)
    d_o = d_state["hidden"] * tanh_cell * o * (1 - o)
    d_sums = np.concatenate([d_i, d_f, d_g, d_o], axis=1)
    d_weights = {"weight_ih": d_sums.T @ x, "weight_hh": d_sums.T @ state["hidden"], "bias": d_sums.sum(0)}
    return d_sums @ weights["weight_ih"], {"hidden": d_sums @ weights["weight_hh"], "cell": d_cell * f}, d_weights
