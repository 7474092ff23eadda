"""The language models in JAX, gradients by its autodiff, each call of the contract compiled by XLA as one program.

Reading order: arrays, embedding, rnn, lstm, gru, wrnn, dropout, unroll, native, loss, optimizer, parallel, generate,
model.
"""

from impl_jax.model import create_model

__all__ = ["create_model"]
