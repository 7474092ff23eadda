"""The framework's own layers: flax linen's cells under its RNN, on a GPU also cuDNN's LSTM. Canonical weights are
mapped within the differentiated function, so gradients and optimizer stay canonical. flax is loaded only when asked
for."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from impl_jax.arrays import Array, Device
from impl_jax.unroll import Cell, Engine, Record, cell_of
from shared.config import ModelConfig
from shared.errors import ImplementationError

LAYERS = {"rnn-tanh": "SimpleCell", "rnn-relu": "SimpleCell", "lstm": "OptimizedLSTMCell", "gru-after": "GRUCell"}
MISSING = {
    "gru-before": "flax' GRU resets after the product: use --gru-reset after, or --engine scratch.",
    "wrnn": "No framework has a layer for --cell wrnn: use --engine scratch.",
}


def require_native(model: ModelConfig, device: Device) -> None:
    """ImplementationError with the reason where the framework has no such layer."""
    if (name := cell_of(model).name) in MISSING:
        raise ImplementationError(MISSING[name])
    try:
        import flax  # noqa: F401
    except ImportError:
        raise ImplementationError(
            "JAX itself has no recurrent layers; flax, which has, is not installed here. Install with: pip install "
            "'rosetta-rnn[jax]', or use --engine scratch."
        ) from None


def native_kernel(model: ModelConfig, device: Device) -> str:
    """What multiplies and loops here."""
    if on_cudnn(model, device):
        return f"jax.experimental.rnn.lstm, cuDNN (jax {jax.__version__})"
    layer = LAYERS[cell_of(model).name]
    versions = f"jax {jax.__version__}, flax {version('flax')}"
    return f"flax.linen.{layer} under linen.RNN, XLA {device.handle.platform.upper()} ({versions})"


def native_engine(model: ModelConfig, device: Device) -> Engine:
    """cuDNN's LSTM, which computes in float32, where there is a GPU; else flax."""
    return CUDNN[device.precision] if on_cudnn(model, device) else unroll_native


def on_cudnn(model: ModelConfig, device: Device) -> bool:
    """Whether cuDNN's LSTM can run."""
    return model.cell == "lstm" and device.handle.platform == "gpu" and device.layers == jnp.float32


def unroll_native(
    cell: Cell, inputs: Array, state: Any, weights: Any, record: bool
) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and no record: there is none."""
    from flax import linen

    dtype = weights.weight_ih.dtype
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype}
    if cell.name == "rnn-relu":
        options["activation_fn"] = jax.nn.relu
    layer = getattr(linen, LAYERS[cell.name])(state.hidden.shape[-1], **options)
    stack: Any = linen.RNN(layer, time_major=True, return_carry=True)
    lstm = cell.name == "lstm"
    variables = {"params": {"cell": TREES[cell.name](weights)}}
    carry = (state.cell, state.hidden) if lstm else state.hidden
    after, outputs = stack.apply(variables, vectors(inputs, weights), initial_carry=carry)
    return outputs, cell.state(after[1], after[0]) if lstm else cell.state(after), None


def vectors(inputs: Array, weights: Any) -> Array:
    """Inputs [T, B, I]; tokens [T, B] as one-hot vectors."""
    size, dtype = weights.weight_ih.shape[1], weights.weight_ih.dtype
    return jax.nn.one_hot(inputs, size, dtype=dtype) if inputs.ndim == 2 else inputs


def simple_tree(weights: Any) -> dict[str, Any]:
    """linen.SimpleCell's parameters: kernels are [in, out]."""
    return {"i": {"kernel": weights.weight_ih.T, "bias": weights.bias}, "h": {"kernel": weights.weight_hh.T}}


def lstm_tree(weights: Any) -> dict[str, Any]:
    """linen.OptimizedLSTMCell's: a kernel for each gate, biases on the hidden side."""
    parts = zip(
        "ifgo", *(jnp.split(weight, 4) for weight in (weights.weight_ih, weights.weight_hh, weights.bias)), strict=True
    )
    return {
        name: entry
        for gate, w, u, b in parts
        for name, entry in ((f"i{gate}", {"kernel": w.T}), (f"h{gate}", {"kernel": u.T, "bias": b}))
    }


def gru_tree(weights: Any) -> dict[str, Any]:
    """linen.GRUCell's: biases on the input side, and on the hidden side for the candidate, within the reset product."""
    parts = zip(
        "rzn", *(jnp.split(weight, 3) for weight in (weights.weight_ih, weights.weight_hh, weights.bias)), strict=True
    )
    tree = {
        name: entry
        for gate, w, u, b in parts
        for name, entry in ((f"i{gate}", {"kernel": w.T, "bias": b}), (f"h{gate}", {"kernel": u.T}))
    }
    return tree | {"hn": {**tree["hn"], "bias": weights.bias_hn}}


TREES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "rnn-tanh": simple_tree,
    "rnn-relu": simple_tree,
    "lstm": lstm_tree,
    "gru-after": gru_tree,
}


def unroll_cudnn(
    cell: Cell, inputs: Array, state: Any, weights: Any, record: bool, precision: str
) -> tuple[Array, Any, Record | None]:
    """The same by cuDNN: batch first, all weights in one vector."""
    from jax.experimental import rnn

    return lstm_through(partial(rnn.lstm, precision=precision), cell, inputs, state, weights)


# The precision is said outright: the backward pass is traced when no context is left, and would allow TF32. An engine
# is one object for each precision, so that equal models share what was compiled.
CUDNN: dict[str, Engine] = {name: partial(unroll_cudnn, precision=name) for name in ("highest", "tensorfloat32")}


def lstm_through(
    lstm: Callable[..., Any], cell: Cell, inputs: Array, state: Any, weights: Any
) -> tuple[Array, Any, None]:
    """`lstm` is jax.experimental.rnn.lstm, or lstm_ref, which runs everywhere."""
    x = vectors(inputs, weights).swapaxes(0, 1)
    rows, steps, size = x.shape
    flat = jnp.concatenate([each.ravel() for each in (*weights, jnp.zeros_like(weights.bias))])
    options = {"input_size": size, "hidden_size": state.hidden.shape[-1], "num_layers": 1, "dropout": 0.0}
    lengths = jnp.full(rows, steps, jnp.int32)
    outputs, hidden, memory = lstm(
        x, state.hidden[None], state.cell[None], flat, lengths, **options, bidirectional=False
    )
    return outputs.swapaxes(0, 1), cell.state(hidden[0], memory[0]), None
