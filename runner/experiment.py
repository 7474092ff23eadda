"""From options to what every command needs: the corpus, its vocabulary, its batches, and a model with its weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from runner.console import say
from shared.batching import Batches, PoemBatches, StreamBatches, stack
from shared.config import CorpusConfig, ModelConfig, TrainingConfig
from shared.contract import Batch, LanguageModel
from shared.corpora import Corpus, load_corpus, split
from shared.evaluation import Score, unigram_loss
from shared.parameters import parameter_shapes
from shared.vocabulary import Vocabulary, build_vocabulary

HALF_A_SECOND = {"cpu": 8e9, "cuda": 8e11}
"""Floating-point operations of about half a second: a stack holds no more, so that progress and Ctrl-C do not lag."""


@dataclass(frozen=True)
class Experiment:
    """A corpus, ready to be learned."""

    corpus: Corpus
    vocabulary: Vocabulary
    training: Batches
    held_out: Batches

    @cached_property
    def unigram_loss(self) -> float:
        """Nats per held-out token of the model that knows only how often each token occurs."""
        seen, unseen = (np.concatenate(list(targets(each))) for each in (self.training, self.held_out))
        return unigram_loss(seen, unseen, len(self.vocabulary))

    def facts(self) -> dict[str, Any]:
        """What a report says of the text."""
        return {
            "name": self.corpus.name,
            "sha256": self.corpus.sha256,
            "source": self.corpus.source,
            "reader": self.corpus.reader,
            "characters": sum(map(len, self.corpus.texts)),
            "vocabulary_size": len(self.vocabulary),
            "training_tokens": sum(map(len, targets(self.training))),
            "held_out_tokens": sum(map(len, targets(self.held_out))),
            "unigram_perplexity": float(np.exp(self.unigram_loss)),
        }


def prepare(config: CorpusConfig, training: TrainingConfig) -> Experiment:
    """Load, split, and number the text; the vocabulary comes from the whole of it."""
    corpus = load_corpus(config, say)
    vocabulary = build_vocabulary(corpus.texts, config.minimum_count, corpus.poems)
    seen, unseen = split(corpus)
    batches = make_batches(corpus.poems, seen, vocabulary, training, shuffle=True)
    return Experiment(corpus, vocabulary, batches, held_out_batches(corpus.poems, unseen, vocabulary, training))


def make_batches(
    poems: bool, texts: tuple[str, ...], vocabulary: Vocabulary, training: TrainingConfig, shuffle: bool
) -> Batches:
    """Padded poems, or contiguous streams."""
    size, length = training.batch_size, training.seq_length
    if poems:
        encoded = [vocabulary.encode(text) for text in texts]
        return PoemBatches(encoded, size, length, vocabulary, training.seed, shuffle)
    return StreamBatches(vocabulary.encode(texts[0]), size, length)


def held_out_batches(poems: bool, texts: tuple[str, ...], vocabulary: Vocabulary, training: TrainingConfig) -> Batches:
    """The same shapes as in training where the text is long enough, so that nothing is compiled twice."""
    if poems:
        length = training.seq_length
        rows = sum(len(text) < length for text in texts)  # the end takes a step, too
    else:
        length = max(1, min(training.seq_length, len(texts[0]) - 1))
        rows = (len(texts[0]) - 1) // length
    small = TrainingConfig(batch_size=max(1, min(training.batch_size, rows)), seq_length=length, seed=training.seed)
    return make_batches(poems, texts, vocabulary, small, shuffle=False)


def targets(batches: Batches) -> Iterator[np.ndarray]:
    """The unmasked targets of an epoch, batch by batch."""
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        yield batch.targets[batch.mask]


def stack_size(model: ModelConfig, experiment: Experiment, training: TrainingConfig, device: str) -> int:
    """K, the batches that one call trains on: a divisor of the epoch where one is near, since a remainder of another
    size is compiled anew."""
    vocabulary_size, count = len(experiment.vocabulary), len(experiment.training)
    shapes = parameter_shapes(model, vocabulary_size)
    weights = sum(int(np.prod(shape)) for name, shape in shapes.items() if name != "embedding.weight")
    operations = 6 * training.batch_size * training.seq_length * weights
    most = int(np.clip(HALF_A_SECOND[device.partition(":")[0]] // operations, 1, 32))
    return next((size for size in range(most, most // 2, -1) if count % size == 0), most)


def stacks(batches: Batches, epoch: int, start: int, stop: int, size: int) -> Iterator[Batch]:
    """The batches start..stop of an epoch, stacked by `size`; the last stack may be smaller."""
    for first in range(start, stop, size):
        yield stack([batches.batch(epoch, index) for index in range(first, min(first + size, stop))])


def evaluate(model: LanguageModel, experiment: Experiment, size: int) -> Score:
    """The model on the held-out text, read from the zero state."""
    batches = experiment.held_out
    state = model.initial_state(len(batches.batch(0, 0).tokens))
    nats, tokens, hits = 0.0, 0, 0
    for stacked in stacks(batches, 0, 0, len(batches), size):
        result = model.evaluate(stacked, state)
        nats, tokens, hits, state = nats + result.nats, tokens + result.tokens, hits + result.hits, result.state
    eos = experiment.vocabulary.eos
    ends = 0 if eos is None else sum(int((each == eos).sum()) for each in targets(batches))
    return Score(nats, tokens, hits, tokens - ends)
