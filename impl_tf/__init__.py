"""The language models in TensorFlow: pure functions on tensors, compiled by tf.function and XLA.

Reading order: arrays, embedding, rnn, lstm, gru, wrnn, dropout, unroll, fused, native, loss, optimizer, parallel,
generate, model.
"""

from impl_tf.model import create_model

__all__ = ["create_model"]
