"""The language models in PyTorch, gradients by autograd.

Reading order: arrays, embedding, rnn, lstm, gru, wrnn, dropout, unroll, native, fused, loss, optimizer, parallel,
generate, model.
"""

from impl_torch.model import create_model

__all__ = ["create_model"]
