"""The language models in TensorFlow, gradients by its tapes, each call of the contract one graph.

Reading order: arrays, rnn, lstm, gru, unroll, loss, optimizer, generate, model.
"""

import os

# Read when TensorFlow loads or opens a GPU; what the user has set stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # warnings and errors come as exceptions, the rest is chatter
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a GPU is shared, not taken whole
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # spares loading Keras, unused here: a third of the import

from impl_tf.model import create_model

__all__ = ["create_model"]
