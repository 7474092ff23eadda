"""The contract: everything that touches no framework array, stated once.

Reading order: contract, config, vocabulary, batching, parameters, optimizers, sampling, evaluation, checkpoint,
corpora.
"""
