"""Two sigmoid layers with a skip through time: the first layer's last state reaches the second one directly."""

from typing import NamedTuple

from impl_numpy.arrays import Array, product, sigmoid


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


def wrnn_step_backward(
    d_after: WRNNState, after: WRNNState, gates: WRNNGates, before: WRNNState, weights: WRNNWeights
) -> tuple[Array, Array, WRNNState]:
    """Gradients at U x + s1 + W a, at the second layer's sum (both [B, H]), and at the state before."""
    d_second = d_after.hidden * after.hidden * (1 - after.hidden)
    d_first = (d_after.first + d_second @ weights.weight_ab) * after.first * (1 - after.first)
    d_before = d_first @ weights.weight_hh + d_second @ weights.weight_skip
    return d_first, d_second, WRNNState(d_second @ weights.weight_bb, d_before)


def wrnn_weights_backward(
    d_projected: Array, d_recurrent: Array, before: WRNNState, after: WRNNState, gates: WRNNGates
) -> dict[str, Array]:
    """Gradients of the recurrent weights, from all steps [T, B, ...] in one product each."""
    return {
        "weight_hh": product(d_projected, before.first),
        "weight_ab": product(d_recurrent, after.first),
        "weight_skip": product(d_recurrent, before.first),
        "weight_bb": product(d_recurrent, before.hidden),
        "bias_b": d_recurrent.sum((0, 1)),
    }
