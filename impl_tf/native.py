"""The framework's own layers, Keras'. They are called with the canonical weights as arguments, inside the
differentiated function, so gradients and optimizer stay canonical. Keras loads only where it is asked for."""

import os
from functools import cache
from typing import Any

import tensorflow as tf

from impl_tf.arrays import Array, Device, swap_axes
from impl_tf.gru import GRUWeights, ResetBeforeWeights
from impl_tf.unroll import Cell, Engine, Record, cell_of
from shared.config import ModelConfig
from shared.errors import ImplementationError

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn-tanh": ("SimpleRNN", {"activation": "tanh"}),
    "rnn-relu": ("SimpleRNN", {"activation": "relu"}),
    "lstm": ("LSTM", {"unit_forget_bias": False}),
    "gru-after": ("GRU", {"reset_after": True}),
    "gru-before": ("GRU", {"reset_after": False}),
}
"""Class and options of each cell's layer."""
CUDNN = ("lstm", "gru-after")
"""Cells that cuDNN has, for Keras."""


def require_native(model: ModelConfig, device: Device) -> None:
    """ImplementationError with the reason where the framework has no such layer."""
    if model.cell == "wrnn":
        raise ImplementationError("No framework has a layer for --cell wrnn: use --engine scratch.")
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend == "tensorflow":
        import keras

        backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ImplementationError(
            f"--engine native needs Keras on TensorFlow, but Keras is set to {backend}. "
            "Set KERAS_BACKEND=tensorflow, or use --engine scratch."
        )


def native_engine(model: ModelConfig, device: Device) -> Engine:
    """What unrolls a layer of this model on this device."""
    return unroll_cudnn if "GPU" in device.handle and cell_of(model).name in CUDNN else unroll_native


def native_kernel(model: ModelConfig, device: Device) -> str:
    """The layer, and what computes it."""
    import keras

    loop = "cuDNN" if native_engine(model, device) is unroll_cudnn else f"while loop, XLA {device.handle[1:4]}"
    versions = f"tensorflow {tf.__version__}, keras {keras.__version__}"
    return f"keras.layers.{LAYERS[cell_of(model).name][0]}, {loop} ({versions})"


def unroll_native(
    cell: Cell, inputs: Array, state: Any, weights: Any, record: bool
) -> tuple[Array, Any, Record | None]:
    """One layer over time -> outputs [T, B, H], the state after the last step, and no record: there is none."""
    return call(cell, inputs, state, weights, cudnn=False)


def unroll_cudnn(cell: Cell, inputs: Array, state: Any, weights: Any, record: bool) -> tuple[Array, Any, Record | None]:
    """The same in one kernel of a GPU's, which XLA cannot compile."""
    return call(cell, inputs, state, weights, cudnn=True)


def call(cell: Cell, inputs: Array, state: Any, weights: Any, cudnn: bool) -> tuple[Array, Any, None]:
    """Keras' layer over time; Keras has the batch first."""
    if inputs.shape.rank == 2:
        inputs = tf.one_hot(inputs, weights.weight_ih.shape[1], dtype=weights.weight_ih.dtype)
    layer = keras_layer(cell.name, inputs.shape[-1], state.hidden.shape[-1], inputs.dtype.name, cudnn)
    seeds = [tf.zeros(each.shape, each.dtype) for each in layer.non_trainable_variables]  # of dropout that is off
    arguments = kernels(weights), seeds, swap_axes(inputs)
    (outputs, *after), _ = layer.stateless_call(*arguments, initial_state=list(state))
    return swap_axes(outputs), cell.state(*after), None


@cache
def keras_layer(name: str, inputs: int, size: int, dtype: str, cudnn: bool) -> Any:
    """A built layer; its own weights, zero, are never used."""
    import keras

    layer, options = LAYERS[name]
    if layer != "SimpleRNN":
        options = options | {"use_cudnn": cudnn}
    zeros = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros", "seed": 0, "dtype": dtype}
    with tf.init_scope():
        made = getattr(keras.layers, layer)(size, return_sequences=True, return_state=True, **zeros, **options)
        made.build((None, None, inputs))
    return made


def kernels(weights: Any) -> list[Array]:
    """The canonical weights as Keras': [I, G*H], [H, G*H], one bias; a gru's blocks in the order z r n, and where it
    resets after the product two biases, of which the second is zero but for bias_hn."""
    if isinstance(weights, GRUWeights | ResetBeforeWeights):
        turned = {field: update_first(getattr(weights, field)) for field in ("weight_ih", "weight_hh", "bias")}
        weights = weights._replace(**turned)
    bias = weights.bias
    if isinstance(weights, GRUWeights):
        bias = tf.stack([bias, tf.pad(weights.bias_hn, [[2 * weights.bias_hn.shape[0], 0]])])
    return [tf.transpose(weights.weight_ih), tf.transpose(weights.weight_hh), bias]


def update_first(blocks: Array) -> Array:
    """Row blocks r z n as z r n."""
    reset, update, candidate = tf.split(blocks, 3)
    return tf.concat([update, reset, candidate], axis=0)
