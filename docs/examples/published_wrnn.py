"""The WRNN with its backward pass as it was once published: WRONG. It takes the derivative of tanh on sigmoid units and
forgets time: no gradient goes from a step to the one before. (The state's two fields are the paper's a and b.)"""

import numpy as np

CELL = "wrnn"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward(x, state, weights):
    """a' = sigmoid(U x + W a + s1)     b' = sigmoid(V a' + R a + T b + s2)"""
    a, b = state["first"], state["hidden"]
    new_a = sigmoid(x @ weights["weight_ih"].T + a @ weights["weight_hh"].T + weights["bias"])
    through_time = a @ weights["weight_skip"].T + b @ weights["weight_bb"].T
    new_b = sigmoid(new_a @ weights["weight_ab"].T + through_time + weights["bias_b"])
    return {"hidden": new_b, "first": new_a}


def backward(d_state, x, state, weights):
    """The published gradients of one step: those of the weights are added up over time, nothing else is handed on."""
    a, b = state["first"], state["hidden"]
    after = forward(x, state, weights)
    new_a, new_b = after["first"], after["hidden"]
    d_b = d_state["hidden"] * (1 - new_b**2)
    d_a = (d_b @ weights["weight_ab"]) * (1 - new_a**2)
    d_weights = {
        "weight_ih": d_a.T @ x,
        "weight_hh": d_a.T @ a,
        "bias": d_a.sum(0),
        "weight_ab": d_b.T @ new_a,
        "weight_skip": d_b.T @ a,
        "weight_bb": d_b.T @ b,
        "bias_b": d_b.sum(0),
    }
    return d_a @ weights["weight_ih"], {"hidden": np.zeros_like(b), "first": np.zeros_like(a)}, d_weights
