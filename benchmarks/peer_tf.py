"""TensorFlow as Keras' guides write it: layers, trained by `fit` or by a step of one's own under tf.function, plain or
compiled by XLA."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

from runner.timing.workloads import LEARNING_RATE, Workload
from shared.contract import Batch
from shared.layouts import to_layers


def build(workload: Workload, parameters: dict[str, Any], rows: int, steps: int, carried: bool) -> Any:
    """The network for batches [rows, steps], with these weights."""
    model, size, dtype = workload.model, workload.vocabulary_size, parameters["decoder.bias"].dtype.name
    tokens = keras.Input(batch_shape=(rows, steps), dtype="int32")
    if model.embedding_size:
        x = keras.layers.Embedding(size, model.embedding_size, name="embedding", dtype=dtype)(tokens)
    else:
        x = keras.ops.one_hot(tokens, size, dtype=dtype)
    for k in range(model.num_layers):
        layer = keras.layers.LSTM if model.cell == "lstm" else keras.layers.GRU
        options = {"return_sequences": True, "stateful": carried, "name": f"rnn_{k}", "dtype": dtype}
        x = layer(model.hidden_size, **options)(x)
    network = keras.Model(tokens, keras.layers.Dense(size, name="decoder", dtype=dtype)(x))
    values = to_layers("keras", model, parameters)
    for layer in network.layers:
        for variable in layer.trainable_variables:
            variable.assign(values[f"{layer.name}.{variable.name}"])
    return network


class SameAdam(keras.optimizers.Adam):
    """Keras' Adam, clipped by global norm, with the gradients that everyone else has. A Keras embedding gives one row
    for each occurrence of a token, and Adam and the norm would square the rows before they are added; a GRU has two
    biases, of which the second is trained here only where it stands within the reset product.

    What stays is Keras' formula, whose epsilon stands before the bias correction. It is compared with that.
    """

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        dense = [tf.convert_to_tensor(each) for each in grads]
        return super().apply(list(map(one_bias, dense)), trainable_variables)


def one_bias(gradient: Any) -> Any:
    """The gradient of a gru's biases [2, 3H], zero in the second but for the candidate; others as they are."""
    if gradient.shape.rank != 2 or gradient.shape[0] != 2:
        return gradient
    size = gradient.shape[1]
    kept = np.ones((2, size))
    kept[1, : size // 3 * 2] = 0
    return gradient * tf.constant(kept, gradient.dtype)


class Peer:
    """A step of one's own under tf.function."""

    def __init__(self, workload: Workload, parameters: dict[str, Any], device: str, jit: bool = False) -> None:
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self.workload, self.initial, self.jit = workload, parameters, jit
        self.carried = not workload.padded
        self.writers: dict[int, tuple[Any, Any]] = {}
        self.device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
        rows, steps = workload.batch_size, workload.seq_length
        self.network = network = build(workload, parameters, rows, steps, self.carried)
        self.optimizer = optimizer = SameAdam(LEARNING_RATE, epsilon=1e-8, global_clipnorm=1.0)
        optimizer.build(network.trainable_variables)

        @tf.function(jit_compile=jit)
        def step(tokens: Any, targets: Any, mask: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = network(tokens, training=True)
                nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
                loss = tf.reduce_sum(nats * mask) / tf.reduce_sum(mask)
            gradients = tape.gradient(loss, network.trainable_variables)
            optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
            return loss

        self.step = step
        versions = f"(tensorflow {tf.__version__}, keras {keras.__version__})"
        self.kernel = f"keras.layers.{workload.model.cell.upper()}, {self.way()} {versions}"

    def way(self) -> str:
        """How a step is made."""
        return "tf.function(jit_compile=True)" if self.jit else "tf.function"

    def train(self, batches: Batch) -> np.ndarray:
        mask = batches.mask.astype(self.initial["decoder.bias"].dtype)
        given = map(tf.constant, (batches.tokens, batches.targets, mask))
        losses = [self.step(*each) for each in zip(*given, strict=True)]
        return np.array([float(loss) for loss in losses])

    def sample(self, first: np.ndarray, length: int, greedy: bool) -> np.ndarray:
        network, advance = self.writer(len(first))
        for layer in network.layers:
            if hasattr(layer, "reset_state"):
                layer.reset_state()
        tokens, written = tf.constant(first, tf.int32), []
        for _ in range(length):
            logits = advance(tokens[:, None])
            tokens = tf.argmax(logits, -1) if greedy else tf.random.categorical(logits, 1)[:, 0]
            tokens = tf.cast(tokens, tf.int32)
            written.append(tokens)
        return tf.stack(written, axis=1).numpy()

    def writer(self, rows: int) -> tuple[Any, Any]:
        """A network for one token at a time, with the weights that everyone starts from, and its compiled step."""
        if rows not in self.writers:
            network = build(self.workload, self.initial, rows, 1, carried=True)
            advance = tf.function(lambda tokens: network(tokens)[:, -1], jit_compile=self.jit)
            self.writers[rows] = network, advance
        return self.writers[rows]


class Fit(Peer):
    """Keras' own loop."""

    def __init__(self, workload: Workload, parameters: dict[str, Any], device: str) -> None:
        super().__init__(workload, parameters, device)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
        self.network.compile(optimizer=self.optimizer, loss=loss)

    def way(self) -> str:
        return "fit"

    def train(self, batches: Batch) -> np.ndarray:
        steps, rows, length = batches.tokens.shape
        tokens, targets, mask = (each.reshape(steps * rows, length) for each in batches[:3])
        means: list[float] = []
        told = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: means.append(logs["loss"]))
        options: dict[str, Any] = {"batch_size": rows, "shuffle": False, "verbose": 0, "callbacks": [told]}
        self.network.fit(tokens, targets, sample_weight=mask.astype("float32"), **options)
        # Keras tells the mean of all batches so far.
        return np.diff(np.array(means) * np.arange(1, steps + 1), prepend=0.0)


PEERS: dict[str, Callable[..., Peer]] = {"function": Peer, "jit": partial(Peer, jit=True), "fit": Fit}


def multiplier(m: int, k: int, n: int) -> Callable[[], Any]:
    a, b, product = tf.ones((m, k)), tf.ones((k, n)), tf.function(tf.matmul, jit_compile=True)
    return lambda: float(product(a, b)[0, 0])


def transfer(arrays: tuple[np.ndarray, ...]) -> None:
    for each in arrays:
        tf.identity(tf.constant(each))
