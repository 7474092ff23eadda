"""From options to batches: what is read, how it is numbered, and in which unit it is measured."""

import math
from dataclasses import replace

import numpy as np
import pytest

from runner.experiment import Experiment, evaluate, prepare
from runner.sample import known, prompt_tokens
from shared.batching import LastTargets, PoemBatches, StreamBatches, WindowBatches, unmasked_targets
from shared.config import CorpusConfig, ModelConfig, TrainingConfig
from shared.contract import Evaluation
from shared.corpora import load_corpus
from shared.errors import ConfigError, CorpusError
from shared.vocabulary import build_vocabulary

SMALL = TrainingConfig(batch_size=3, seq_length=7)
MANY_TO_ONE = ModelConfig(many_to_one=True)


def prepared(corpus="starter-play", training=SMALL, model=ModelConfig(), **options) -> Experiment:  # noqa: B008 - frozen
    return prepare(CorpusConfig(corpus, **options), training, model)


class Uniform:
    """A model that gives every token the same probability."""

    def __init__(self, size):
        self.size = size

    def initial_state(self, batch_size):
        return 0

    def evaluate(self, batches, state):
        tokens = len(unmasked_targets(batches))
        return Evaluation(tokens * math.log(self.size), tokens, 0, state + 1)


def test_the_usual_reading_has_not_changed():
    experiment = prepared()
    text = load_corpus(CorpusConfig()).texts[0]
    border = len(text) - -(-len(text) // 10)
    assert isinstance(experiment.training, StreamBatches)
    assert experiment.facts()["training_tokens"] == border - 1
    assert experiment.facts()["held_out_tokens"] == len(text) - border - 1
    assert experiment.notes == ()
    assert experiment.characters_per_token == 1


def test_without_a_held_out_part_the_training_text_is_measured():
    experiment = prepared(held_out=0.0, first_characters=500)
    facts = experiment.facts()
    assert facts["characters"] == 500
    assert facts["training_tokens"] == facts["held_out_tokens"] == 499
    assert any(
        "--held-out 0: the held-out figures are of the training text itself" in note for note in experiment.notes
    )


@pytest.mark.parametrize("carry_state", [False, True])
def test_windows_are_learned_and_streams_are_measured(carry_state):
    experiment = prepared(training=replace(SMALL, stride=2, carry_state=carry_state), first_characters=1000)
    assert isinstance(experiment.training, WindowBatches)
    assert isinstance(experiment.held_out, StreamBatches)
    assert len(experiment.training) == len(range(0, 900 - 7, 2)) // 3
    assert experiment.training.batch(1, 1).reset.any() != carry_state


@pytest.mark.parametrize("stride", [0, 5])
def test_many_to_one_predicts_what_follows_each_window(stride):
    experiment = prepared(training=replace(SMALL, stride=stride), model=MANY_TO_ONE, first_characters=1000)
    assert isinstance(experiment.held_out, LastTargets)
    batch = experiment.training.batch(0, 0)
    assert (batch.targets.shape, batch.mask.shape) == ((3,), (3, 7))
    score = evaluate(Uniform(9), experiment, 4)
    windows = len(range(0, 100 - 7, 5)) if stride else 15  # 99 predictions in rows of 33: five windows each
    assert score.tokens == score.characters == windows
    assert score.bits_per_character == pytest.approx(math.log2(9))


def test_poems_are_not_cut_into_windows():
    with pytest.raises(ConfigError, match=r"--stride cuts a running text.*starter-quatrains is read as poems"):
        prepared("starter-quatrains", replace(SMALL, stride=1))
    with pytest.raises(ConfigError, match=r"--many-to-one predicts only.*starter-quatrains, read as poems"):
        prepared("starter-quatrains", SMALL, MANY_TO_ONE)
    with pytest.raises(CorpusError, match="--cut is about poems"):
        prepared(cut=True)


def test_long_poems_are_left_out_or_cut():
    left_out = prepared("starter-quatrains", replace(SMALL, seq_length=25))
    assert any("poems longer than --seq-length 25 are left out" in note for note in left_out.notes)
    cut = prepared("starter-quatrains", replace(SMALL, seq_length=25), cut=True)
    assert any("poems longer than --seq-length 25 are cut, without an end" in note for note in cut.notes)
    assert isinstance(cut.training, PoemBatches)
    assert (cut.training.left_out, cut.training.cut) == (0, left_out.training.left_out)
    assert len(cut.held_out) > len(left_out.held_out)


@pytest.mark.parametrize("corpus", ["starter-play", "starter-quatrains"])
def test_bits_are_counted_by_character_whatever_the_tokens(corpus):
    training = replace(SMALL, seq_length=40)
    scores = []
    for subwords in (0, 2000):
        experiment = prepared(corpus, training, subwords=subwords)
        score = evaluate(Uniform(len(experiment.vocabulary)), experiment, 5)
        targets = [unmasked_targets(experiment.held_out.batch(0, k)) for k in range(len(experiment.held_out))]
        characters = len(experiment.vocabulary.decode(np.concatenate(targets)))
        assert score.characters == characters
        assert score.perplexity == pytest.approx(len(experiment.vocabulary))
        bits = score.tokens * math.log2(len(experiment.vocabulary)) / characters
        assert score.bits_per_character == pytest.approx(bits)
        scores.append(score)
    assert len(experiment.vocabulary) == 2000
    assert abs(scores[0].characters - scores[1].characters) < 10  # the first token of a stream is given
    assert scores[0].tokens > scores[1].tokens
    assert experiment.characters_per_token > 1
    assert experiment.bits_per_character(math.log(2)) == pytest.approx(1 / experiment.characters_per_token)


def test_subwords_do_not_know_the_held_out_text():
    experiment = prepared(subwords=400, held_out=0.5)
    text = load_corpus(CorpusConfig()).texts[0]
    training = text[: len(text) // 2]
    assert all(symbol in training for symbol in experiment.vocabulary.symbols if len(symbol) > 1)
    assert experiment.vocabulary.unknown(text) == []


@pytest.mark.parametrize(
    ("prompt", "text", "message"),
    [
        ("紅", "红山", "'紅' (U+7D05), which this text writes 红."),
        ("红", "紅山", "'红' (U+7EA2), which this text writes 紅."),
        ("裡", "裏山", "'裡' (U+88E1), which this text writes 裏."),
        ("发x", "發髮", "'发' (U+53D1), which this text writes 發 or 髮, 'x' (U+0078)."),
        ("红", "山川", "'红' (U+7EA2)."),
    ],
)
def test_an_unseen_character_is_named_with_its_variant(prompt, text, message):
    with pytest.raises(ConfigError) as caught:
        known(build_vocabulary([text], 1, poems=False), prompt)
    assert message in str(caught.value)


def test_a_prompt_becomes_subwords():
    vocabulary = prepared(subwords=300).vocabulary
    tokens = prompt_tokens(vocabulary, "HANNE:\nThe glass.")
    assert tokens.dtype == np.int32
    assert len(tokens) < 17
    assert vocabulary.decode(tokens) == "HANNE:\nThe glass."
    with pytest.raises(ConfigError, match="'鬼'"):
        prompt_tokens(vocabulary, "The 鬼")


def test_the_unigram_model_is_that_of_the_counts():
    experiment = prepared(first_characters=300)
    text = load_corpus(CorpusConfig(first_characters=300)).texts[0]
    seen, unseen = text[1:270], text[271:]
    counts = {each: seen.count(each) + 1 for each in set(text)}
    expected = -np.mean([math.log(counts[each] / sum(counts.values())) for each in unseen])
    assert experiment.unigram_loss == pytest.approx(expected)


def test_facts_are_numbers_of_python():
    assert {type(value) for value in prepared().facts().values()} <= {str, int, float, bool}


def test_an_epoch_of_the_report_has_4356_steps(data_dir):
    training = TrainingConfig(batch_size=256, seq_length=100, stride=1, carry_state=True)
    assert len(prepared("tiny-shakespeare", training, data_dir=data_dir, held_out=0.0).training) == 4_356
