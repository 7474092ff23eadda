"""JAX with flax and optax as their guides write it: linen.RNN over a cell, one jitted step."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from runner.timing.workloads import LEARNING_RATE, Workload
from shared.config import ModelConfig
from shared.contract import Batch
from shared.layouts import to_layers


class Network(linen.Module):
    model: ModelConfig
    size: int
    dtype: Any

    @linen.compact
    def __call__(self, tokens: Any, carries: Any) -> tuple[Any, Any]:
        options, hidden = {"dtype": self.dtype, "param_dtype": self.dtype}, self.model.hidden_size
        if self.model.embedding_size:
            x = linen.Embed(self.size, self.model.embedding_size, name="embedding", **options)(tokens)
        else:
            x = jax.nn.one_hot(tokens, self.size, dtype=self.dtype)
        after = []
        for k, carry in enumerate(carries):
            cell: Any = linen.OptimizedLSTMCell if self.model.cell == "lstm" else linen.GRUCell
            layer = linen.RNN(cell(hidden, parent=None, **options), return_carry=True, name=f"rnn_{k}")
            carry, x = layer(x, initial_carry=carry)
            after.append(carry)
        return linen.Dense(self.size, name="decoder", **options)(x), after


class Peer:
    def __init__(self, workload: Workload, parameters: dict[str, np.ndarray], device: str) -> None:
        self.dtype = parameters["decoder.bias"].dtype
        jax.config.update("jax_enable_x64", self.dtype == np.float64)
        # A GPU would round products to TF32 otherwise.
        jax.config.update("jax_default_matmul_precision", "highest")
        self.model, self.carried = workload.model, not workload.padded
        self.device = jax.devices()[0].platform
        network = Network(workload.model, workload.vocabulary_size, jnp.dtype(self.dtype))
        layers = to_layers("linen", workload.model, parameters)
        flat = {tuple(name.split(".")): jnp.asarray(value) for name, value in layers.items()}
        self.parameters = flax.traverse_util.unflatten_dict(flat)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
        self.slots, self.carries = optimizer.init(self.parameters), self.zeros(workload.batch_size)
        self.key = jax.random.key(0)

        def mean_loss(parameters: Any, tokens: Any, targets: Any, mask: Any, carries: Any) -> tuple[Any, Any]:
            logits, carries = network.apply({"params": parameters}, tokens, carries)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return jnp.sum(nats * mask) / jnp.sum(mask), carries

        @jax.jit
        def step(parameters: Any, slots: Any, tokens: Any, targets: Any, mask: Any, carries: Any) -> tuple[Any, ...]:
            differentiate = jax.value_and_grad(mean_loss, has_aux=True)
            (loss, carries), gradients = differentiate(parameters, tokens, targets, mask, carries)
            updates, slots = optimizer.update(gradients, slots, parameters)
            return optax.apply_updates(parameters, updates), slots, loss, carries

        @jax.jit
        def advance(parameters: Any, tokens: Any, carries: Any) -> tuple[Any, Any]:
            logits, carries = network.apply({"params": parameters}, tokens[:, None], carries)
            return logits[:, -1], carries

        self.step, self.advance = step, advance
        cell = "OptimizedLSTMCell" if workload.model.cell == "lstm" else "GRUCell"
        self.kernel = f"linen.RNN({cell}), optax.adam (jax {jax.__version__}, flax {flax.__version__})"

    def zeros(self, rows: int) -> list[Any]:
        zero = jnp.zeros((rows, self.model.hidden_size), self.dtype)
        return [(zero, zero) if self.model.cell == "lstm" else zero for _ in range(self.model.num_layers)]

    def train(self, batches: Batch) -> np.ndarray:
        losses = []
        for tokens, targets, mask in zip(batches.tokens, batches.targets, batches.mask, strict=True):
            given = self.parameters, self.slots, tokens, targets, mask, self.carries
            self.parameters, self.slots, loss, after = self.step(*given)
            self.carries = after if self.carried else self.carries
            losses.append(loss)
        return np.array([float(loss) for loss in losses])

    def sample(self, first: np.ndarray, length: int, greedy: bool) -> np.ndarray:
        tokens, carries, written = jnp.asarray(first), self.zeros(len(first)), []
        for _ in range(length):
            logits, carries = self.advance(self.parameters, tokens, carries)
            self.key, now = jax.random.split(self.key)
            tokens = logits.argmax(-1) if greedy else jax.random.categorical(now, logits)
            written.append(tokens)
        return np.stack([np.asarray(each) for each in written], axis=1)


PEERS: dict[str, Callable[..., Peer]] = {"flax": Peer}


def multiplier(m: int, k: int, n: int) -> Callable[[], Any]:
    a, b, product = jnp.ones((m, k), jnp.float32), jnp.ones((k, n), jnp.float32), jax.jit(jnp.matmul)
    return lambda: product(a, b).block_until_ready()


def transfer(arrays: tuple[np.ndarray, ...]) -> None:
    jax.block_until_ready(jax.device_put(arrays))
