"""Engine "fused": the scratch engine's step over time, with the way back written by hand. Its loop computes only what
must wait for the step behind it; the gradient of each weight is one product over all steps. Autodiff would make that
product step by step and add up."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from impl_jax.arrays import Array, Device, kernel
from impl_jax.embedding import ACTIVATIONS
from impl_jax.gru import GRUState, GRUWeights
from impl_jax.lstm import LSTMState, LSTMWeights
from impl_jax.unroll import CELLS, Cell, Record, multiply
from shared.config import ModelConfig


class Kept(NamedTuple):
    """What the way back needs of the way there, each [T, B, H]."""

    before: Any  # the state before each step
    gates: Any
    squashed: Any  # tanh(c') of the lstm, else None


class Steps(NamedTuple):
    """Derivatives of each step's sums."""

    projected: Array  # [T, B, G*H], of W x + b
    recurrent: Array | None  # [T, B, G*H], of U h; None where those are the same


def fused_kernel(device: Device) -> str:
    """What multiplies and loops here."""
    return f"{kernel(device)}, written-out gradient"


def fold_embedding(
    model: ModelConfig, parameters: Mapping[str, Array], tokens: int, precision: str
) -> dict[str, Array]:
    """The parameters of the same network without an embedding, W act(E)^T [G*H, V] in place of the first layer's W,
    where fewer products make it than are saved over so many tokens; where not, as they are."""
    table = parameters.get("embedding.weight")
    if table is None or model.residual or model.tied_weights or tokens <= len(table):
        return dict(parameters)
    vectors, weight = ACTIVATIONS[model.embedding_activation](table), parameters["rnn.weight_ih_l0"]
    folded = jnp.einsum("oi,vi->ov", weight, vectors, precision=precision)
    others = {name: each for name, each in parameters.items() if name != "embedding.weight"}
    return others | {"rnn.weight_ih_l0": folded}


def unroll_fused(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """One layer over time, as `unroll.unroll`; nothing is recorded."""
    # The way back is traced when no context is left, so the precision is said outright.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    recurrent = weights._replace(weight_ih=None, bias=None)
    outputs, state = over_time(cell.name, precision, project(inputs, weights), state, recurrent)
    return outputs, state, None


def project(inputs: Array, weights: Any) -> Array:
    """W x + b of every step: inputs [T, B, I], or tokens [T, B] for one-hot vectors, -> [T, B, G*H]."""
    if inputs.ndim == 2:
        rows = weights.weight_ih.T + weights.bias  # V, not T * B
        return rows[inputs.ravel()].reshape(*inputs.shape, -1)  # with two indices the way back would be slower
    return multiply(inputs, weights.weight_ih) + weights.bias


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def over_time(name: str, precision: str, projected: Array, state: Any, weights: Any) -> tuple[Array, Any]:
    """Outputs [T, B, H] and the last state; `weights` without those of the input."""
    return there(name, precision, projected, state, weights)[0]


def there(name: str, precision: str, projected: Array, state: Any, weights: Any) -> tuple[tuple[Array, Any], Any]:
    """The same, and what the way back needs."""

    def advance(before: Any, projected: Array) -> tuple[Any, tuple[Array, Kept]]:
        after, gates = CELLS[name].step(projected, before, weights)
        squashed = jnp.tanh(after.cell) if name == "lstm" else None
        return after, (after.hidden, Kept(before, gates, squashed))

    with jax.default_matmul_precision(precision):
        final, (outputs, kept) = lax.scan(advance, state, projected)
    return (outputs, final), (kept, weights)


def back(name: str, precision: str, before: tuple[Kept, Any], above: tuple[Array, Any]) -> tuple[Array, Any, Any]:
    """From derivatives of outputs and last state to those of projected, first state and weights."""
    kept, weights = before
    d_outputs, d_final = above

    def retreat(d_after: Any, now: tuple[Array, Kept]) -> tuple[Any, Steps]:
        d_output, kept = now
        return BACKWARD[name](d_after._replace(hidden=d_after.hidden + d_output), kept, weights)

    with jax.default_matmul_precision(precision):
        d_state, steps = lax.scan(retreat, d_final, (d_outputs, kept), reverse=True)
        sums = steps.projected if steps.recurrent is None else steps.recurrent
        over_steps = (((0, 1), (0, 1)), ((), ()))
        d_weights = weights._replace(weight_hh=lax.dot_general(sums, kept.before.hidden, over_steps))
    if name == "gru-after":
        d_weights = d_weights._replace(bias_hn=jnp.split(sums, 3, axis=-1)[2].sum((0, 1)))
    return steps.projected, d_state, d_weights


over_time.defvjp(there, back)


def lstm_step_back(d_after: LSTMState, kept: Kept, weights: LSTMWeights) -> tuple[LSTMState, Steps]:
    """One step back through `lstm.lstm_step`."""
    i, f, g, o = kept.gates
    tanh = kept.squashed
    d_cell = d_after.cell + d_after.hidden * o * (1 - tanh * tanh)
    d_sums = jnp.concatenate(
        [
            d_cell * g * i * (1 - i),
            d_cell * kept.before.cell * f * (1 - f),
            d_cell * i * (1 - g * g),
            d_after.hidden * tanh * o * (1 - o),
        ],
        axis=-1,
    )
    return LSTMState(d_sums @ weights.weight_hh, d_cell * f), Steps(d_sums, None)


def gru_step_back(d_after: GRUState, kept: Kept, weights: GRUWeights) -> tuple[GRUState, Steps]:
    """One step back through `gru.gru_step`."""
    r, z, n, recurrent = kept.gates
    d_hidden = d_after.hidden
    d_n = d_hidden * (1 - z) * (1 - n * n)
    d_r = d_n * recurrent * r * (1 - r)
    d_z = d_hidden * (kept.before.hidden - n) * z * (1 - z)
    d_projected, d_recurrent = (jnp.concatenate([d_r, d_z, last], axis=-1) for last in (d_n, d_n * r))
    return GRUState(d_recurrent @ weights.weight_hh + d_hidden * z), Steps(d_projected, d_recurrent)


BACKWARD: dict[str, Callable[..., tuple[Any, Steps]]] = {"lstm": lstm_step_back, "gru-after": gru_step_back}
