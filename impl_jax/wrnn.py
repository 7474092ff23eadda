"""Two sigmoid layers with a skip through time: the first layer's last state reaches the second one directly."""

from typing import NamedTuple

from jax.nn import sigmoid

from impl_jax.arrays import Array


class WRNNState(NamedTuple):
    hidden: Array  # [B, H], b: the second layer
    first: Array  # [B, H], a: the first layer


class WRNNWeights(NamedTuple):
    weight_ih: Array  # [H, I], U: inputs to the first layer
    weight_hh: Array  # [H, H], W: first layer, through time
    bias: Array  # [H]
    weight_ab: Array  # [H, H], V: first to second layer
    weight_skip: Array  # [H, H], R: first layer to second, through time
    weight_bb: Array  # [H, H], T: second layer, through time
    bias_b: Array  # [H]


class WRNNGates(NamedTuple):
    pass


def wrnn_step(projected: Array, state: WRNNState, weights: WRNNWeights) -> tuple[WRNNState, WRNNGates]:
    """One time step; projected [B, H] is U x + s1.

    a' = sigmoid(U x + s1 + W a)     b' = sigmoid(V a' + R a + T b + s2)
    """
    first = sigmoid(projected + state.first @ weights.weight_hh.T)
    through_time = state.first @ weights.weight_skip.T + state.hidden @ weights.weight_bb.T
    hidden = sigmoid(first @ weights.weight_ab.T + through_time + weights.bias_b)
    return WRNNState(hidden, first), WRNNGates()
