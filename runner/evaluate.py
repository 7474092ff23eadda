"""`evaluate`: held-out figures of any checkpoint, on any corpus, in any implementation."""

import math
from dataclasses import asdict, replace

from runner.cli import Evaluate
from runner.console import say, show_table
from runner.experiment import Experiment, Reading, evaluate, stack_size
from runner.sample import model_of, open_checkpoint
from shared.checkpoint import Checkpoint
from shared.config import CorpusConfig, ModelConfig, TrainingConfig, from_json
from shared.corpora import load_corpus, split
from shared.files import strict_json, write_atomically


def run(options: Evaluate) -> int:
    """Print, and write where asked."""
    path, checkpoint = open_checkpoint(options.checkpoint)
    experiment = held_out_of(checkpoint, options)
    model = model_of(checkpoint, options.impl, options.runtime)
    training = from_json(TrainingConfig, checkpoint.config.get("training"))
    config = from_json(ModelConfig, checkpoint.config.get("model"))
    score = evaluate(model, experiment, stack_size(config, experiment, training, model.device))
    figures = {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_character": score.bits_per_character,
        "accuracy": score.accuracy,
        "unigram_perplexity": math.exp(experiment.unigram_loss),
    }
    place = {"impl": options.impl, "engine": model.engine, "kernel": model.kernel, "device": model.device}
    say(f"{path} on the held-out part of {experiment.corpus.name}: {options.impl} ({model.engine}) on {model.device}")
    rows = [(name.replace("_", " "), f"{value:.4f}") for name, value in figures.items()]
    show_table("", ("measure", "value"), rows, (1,))
    if options.json:
        write_atomically(options.json, strict_json({**place, **asdict(score), **figures}))
    return 0


def held_out_of(checkpoint: Checkpoint, options: Evaluate) -> Experiment:
    """The text to be read, in the checkpoint's own symbols. Of another corpus, what the checkpoint's options say about
    characters holds, and what they say about how much to read does not."""
    config, strict = from_json(CorpusConfig, checkpoint.config.get("corpus")), True
    if options.corpus:
        whole = replace(config, first_characters=0, minimum_length=0, maximum_length=0)
        config, strict = replace(whole, corpus=options.corpus, reader=options.reader), False
    corpus = load_corpus(replace(config, data_dir=options.data_dir or config.data_dir), strict=strict)
    training = from_json(TrainingConfig, checkpoint.config.get("training"))
    many_to_one = from_json(ModelConfig, checkpoint.config.get("model")).many_to_one
    reading = Reading(corpus.poems, checkpoint.vocabulary, training, many_to_one, config.cut)
    seen, unseen = (reading.held_out_batches(part) for part in split(corpus, config.held_out))
    return Experiment(corpus, checkpoint.vocabulary, seen, unseen)
