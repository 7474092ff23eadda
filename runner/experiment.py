"""From options to what every command needs: the corpus, its vocabulary, its batches, and a model with its weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from runner.console import say
from shared.batching import (
    Batches,
    LastTargets,
    PoemBatches,
    StreamBatches,
    WindowBatches,
    stack,
    unmasked_targets,
)
from shared.config import CorpusConfig, ModelConfig, TrainingConfig
from shared.contract import Batch, LanguageModel
from shared.corpora import Corpus, load_corpus, split
from shared.corpora.corpus import Texts
from shared.corpora.long import encode, pieces
from shared.errors import ConfigError
from shared.evaluation import Score, unigram_loss
from shared.parameters import parameter_shapes
from shared.vocabulary import Vocabulary, add_subwords, build_vocabulary

HALF_A_SECOND = {"cpu": 8e9, "cuda": 8e11}
"""Floating-point operations of about half a second: a stack holds no more, so that progress and Ctrl-C do not lag."""


@dataclass(frozen=True)
class Experiment:
    """A corpus, ready to be learned."""

    corpus: Corpus
    vocabulary: Vocabulary
    training: Batches
    held_out: Batches
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""

    @cached_property
    def unigram_loss(self) -> float:
        """Nats per held-out token of the model that knows only how often each token occurs."""
        return unigram_loss(*(each.counts(len(self.vocabulary)) for each in (self.training, self.held_out)))

    @cached_property
    def characters_per_token(self) -> float:
        """Of the training text; what is no text, such as a poem's end, has none."""
        counts = self.training.counts(len(self.vocabulary))
        return float(counts @ self.vocabulary.lengths / counts.sum())

    def bits_per_character(self, loss: float) -> float:
        """Of a training loss in nats per token."""
        return loss / (self.characters_per_token * math.log(2))

    def facts(self) -> dict[str, Any]:
        """What a report says of the text."""
        return {
            "name": self.corpus.name,
            "sha256": self.corpus.sha256,
            "source": self.corpus.source,
            "reader": self.corpus.reader,
            "poems": self.corpus.poems,
            "characters": sum(map(len, self.corpus.texts)),
            "vocabulary_size": len(self.vocabulary),
            "training_tokens": int(self.training.counts(len(self.vocabulary)).sum()),
            "held_out_tokens": int(self.held_out.counts(len(self.vocabulary)).sum()),
            "unigram_perplexity": float(np.exp(self.unigram_loss)),
        }


def prepare(config: CorpusConfig, training: TrainingConfig, model: ModelConfig) -> Experiment:
    """Load, split, and number the text."""
    corpus = load_corpus(config, say)
    check_reading(corpus, training, model.many_to_one)
    seen, unseen = split(corpus, config.held_out)
    vocabulary = learn_vocabulary(corpus, seen, config, training.seq_length if config.cut else 0)
    reading = Reading(corpus.poems, vocabulary, training, model.many_to_one, config.cut)
    batches = reading.training_batches(seen)
    return Experiment(corpus, vocabulary, batches, reading.held_out_batches(unseen), notes(config, training, batches))


def learn_vocabulary(corpus: Corpus, seen: Texts, config: CorpusConfig, cut: int = 0) -> Vocabulary:
    """The characters of the whole text, so that none is unknown, and the subwords of its training part. Of poems that
    are cut to so many characters only those count, unless there are subwords; 0: all."""
    shorter = cut and not config.subwords
    read = (text[:cut] for text in corpus.poem_texts) if shorter else pieces_of(corpus.texts)
    characters = build_vocabulary(read, config.minimum_count, corpus.poems)
    return add_subwords(characters, pieces_of(seen), config.subwords) if config.subwords else characters


def pieces_of(texts: Texts) -> Iterator[str]:
    """The texts, long ones piece by piece."""
    return chain.from_iterable(map(pieces, texts))


def check_reading(corpus: Corpus, training: TrainingConfig, many_to_one: bool) -> None:
    """Raise ConfigError where poems are to be read in a way that is a running text's."""
    if not corpus.poems:
        return
    if training.stride:
        raise ConfigError(
            f"--stride cuts a running text into windows, and {corpus.name} is read as poems (reader: {corpus.reader}), "
            "each a row of its own. Leave it out, or read a file of yours with --reader text."
        )
    if many_to_one:
        raise ConfigError(
            f"--many-to-one predicts only what follows a window, and of {corpus.name}, read as poems (reader: "
            f"{corpus.reader}), that would be the end of each poem and nothing else. Take a running text."
        )


def notes(config: CorpusConfig, training: TrainingConfig, batches: Batches) -> tuple[str, ...]:
    """What the options and the lengths of poems lead to."""
    found = []
    if not config.held_out:
        found.append("--held-out 0: the held-out figures are of the training text itself")
    if isinstance(batches, PoemBatches) and batches.left_out:
        found.append(f"{batches.left_out} poems longer than --seq-length {training.seq_length} are left out")
    if isinstance(batches, PoemBatches) and batches.cut:
        found.append(f"{batches.cut} poems longer than --seq-length {training.seq_length} are cut, without an end")
    return tuple(found)


@dataclass(frozen=True)
class Reading:
    """How texts become batches."""

    poems: bool
    vocabulary: Vocabulary
    training: TrainingConfig
    many_to_one: bool
    cut: bool

    def training_batches(self, texts: Texts) -> Batches:
        """Padded poems, shuffled windows, or contiguous streams."""
        size, length, stride = self.training.batch_size, self.training.seq_length, self.training.stride
        if self.poems:
            return self._poems(self._encoded(texts), size, shuffle=True)
        tokens = encode(self.vocabulary, texts[0])
        if stride:
            seed, carry_state = self.training.seed, self.training.carry_state
            return self._aimed(WindowBatches(tokens, size, length, stride, seed, carry_state=carry_state))
        return self._aimed(StreamBatches(tokens, size, length))

    def held_out_batches(self, texts: Texts) -> Batches:
        """The same shapes as in training where the text is long enough, so that nothing is compiled twice. What was
        learned from windows is measured on streams with carried state, where every token is predicted once; only
        many-to-one, which knows no state but that of its window, is measured on windows, too."""
        if self.poems:
            length = self.training.seq_length
            fitting = len(texts) if self.cut else sum(len(poem) < length for poem in self._encoded(texts))
            return self._poems(self._encoded(texts), self._rows(fitting), shuffle=False)
        tokens = encode(self.vocabulary, texts[0])
        length = max(1, min(self.training.seq_length, len(tokens) - 1))
        stride = self.training.stride
        if self.many_to_one and stride:
            size = self._rows((len(tokens) - 1 - length) // stride + 1)
            return LastTargets(WindowBatches(tokens, size, length, stride, self.training.seed, shuffle=False))
        return self._aimed(StreamBatches(tokens, self._rows((len(tokens) - 1) // length), length))

    def _rows(self, available: int) -> int:
        return max(1, min(self.training.batch_size, available))

    def _encoded(self, texts: Texts) -> Iterator[np.ndarray]:
        return (encode(self.vocabulary, text) for text in texts)

    def _poems(self, encoded: Iterator[np.ndarray], size: int, shuffle: bool) -> PoemBatches:
        length, seed = self.training.seq_length, self.training.seed
        return PoemBatches(encoded, size, length, self.vocabulary, seed, shuffle, self.cut)

    def _aimed(self, batches: StreamBatches | WindowBatches) -> Batches:
        return LastTargets(batches) if self.many_to_one else batches


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
    """The batches start..stop of an epoch, stacked by `size`. Stacks begin at multiples of `size` wherever the start
    is, as a resumed run must call what an uninterrupted one does. The first and the last may be smaller."""
    while start < stop:
        end = min(start - start % size + size, stop)
        yield stack([batches.batch(epoch, index) for index in range(start, end)])
        start = end


def evaluate(model: LanguageModel, experiment: Experiment, size: int) -> Score:
    """The model on the held-out text, read from the zero state."""
    batches, lengths = experiment.held_out, experiment.vocabulary.lengths
    state = model.initial_state(len(batches.batch(0, 0).tokens))
    nats, tokens, hits, characters = 0.0, 0, 0, 0
    for stacked in stacks(batches, 0, 0, len(batches), size):
        result = model.evaluate(stacked, state)
        nats, tokens, hits, state = nats + result.nats, tokens + result.tokens, hits + result.hits, result.state
        characters += int(lengths[unmasked_targets(stacked)].sum())
    return Score(nats, tokens, hits, characters)
