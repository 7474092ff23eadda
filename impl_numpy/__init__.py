"""The language models in NumPy, every gradient by hand; on a GPU the same source runs on CuPy.

Reading order: arrays, embedding, rnn, lstm, gru, wrnn, dropout, unroll, native, fused, loss, optimizer, parallel,
generate, model.
"""

from impl_numpy.model import create_model

__all__ = ["create_model"]
