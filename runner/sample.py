"""`sample`: text out of any checkpoint, in any implementation."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from runner.cli import Sample
from runner.console import say
from runner.measurement import explain, measure, of_poems, show
from runner.poems import in_this_writing, show_poems
from runner.registry import create_model
from runner.text import visible
from runner.variants import variants
from shared.checkpoint import Checkpoint, load_checkpoint, require_run
from shared.config import (
    CorpusConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    SamplingConfig,
    TrainingConfig,
    from_json,
)
from shared.contract import LanguageModel
from shared.corpora import Corpus, at_hand, load_corpus
from shared.errors import CheckpointError, ConfigError, CorpusError
from shared.files import strict_json, write_atomically
from shared.sampling import sampling_rule, sampling_uniforms
from shared.verse import Form, chosen_form, forced, permitted
from shared.vocabulary import Vocabulary

TEMPERATURES = (0.5, 0.8, 1.0, 1.2, 1.5)
"""At which runs and comparisons are sampled."""


def run(options: Sample) -> int:
    """Print the texts, or their statistics."""
    path, checkpoint = open_checkpoint(options.checkpoint)
    corpus = trained_corpus(checkpoint, options.data_dir) if options.statistics else None
    model, vocabulary = model_of(checkpoint, options.impl, options.runtime), checkpoint.vocabulary
    prompts = [in_this_writing(each, vocabulary) for each in options.start_characters or [options.sampling.prompt]]
    place = f"{path}: {options.impl} ({model.engine}) on {model.device}"
    if corpus:
        say(place, "dim")
        return statistics(options, checkpoint, corpus, model, prompts)
    if options.form or options.acrostic:
        acrostic = in_this_writing(options.acrostic, vocabulary)
        form = chosen_form(options.form, acrostic)
        place += f", {form.lines} lines of {form.size} characters"
        texts = write_poems(model, vocabulary, form, prompts, acrostic, options.sampling)
    else:
        texts = write_texts(model, vocabulary, prompts, options.sampling)
    say(f"{place}, temperature {options.sampling.temperature:g}", "dim")
    if vocabulary.bos is not None or options.form or options.acrostic:
        config = from_json(CorpusConfig, checkpoint.config.get("corpus"))
        show_poems(texts, known_corpus(checkpoint, options) if options.novelty else None, config.held_out)
        return 0
    for text in texts:
        # Plain print, since the text is the product: it can be piped, and no line is wrapped.
        print(visible(text), end="\n\n" if len(prompts) > 1 else "\n")
    return 0


def known_corpus(checkpoint: Checkpoint, options: Sample) -> Corpus | None:
    """The text that poems are looked up in, if it is here: none is fetched for that. Says why where it is not."""
    config = from_json(CorpusConfig, checkpoint.config.get("corpus"))
    try:
        if at_hand(replace(config, data_dir=options.data_dir or config.data_dir)):
            return trained_corpus(checkpoint, options.data_dir)
        reason = f"the corpus {config.corpus!r} is not on this machine"
    except CorpusError as error:
        reason = str(error)
    say(f"Lines are not looked up in the training text (--no-novelty says so, too): {reason}", "dim")
    return None


def statistics(
    options: Sample, checkpoint: Checkpoint, corpus: Corpus, model: LanguageModel, prompts: list[str]
) -> int:
    """Measure, show, and write where asked."""
    given = options.sampling.temperature
    temperatures = TEMPERATURES if given == SamplingConfig.temperature else (given,)
    training = from_json(TrainingConfig, checkpoint.config.get("training"))
    held_out = from_json(CorpusConfig, checkpoint.config.get("corpus")).held_out
    sampling = of_poems(options.sampling, training.seq_length) if corpus.poems else options.sampling
    write = partial(write_texts, model, checkpoint.vocabulary)
    found = measure(write, corpus, held_out, prompts, sampling, temperatures)
    show(found)
    explain(found)
    if options.json:
        place = {"impl": options.impl, "engine": model.engine, "kernel": model.kernel, "device": model.device}
        how = {"corpus": corpus.name, "prompts": prompts}
        how |= {name: getattr(sampling, name) for name in ("top_k", "top_p", "length", "seed")}
        write_atomically(options.json, strict_json({**place, **how, **found}))
    return 0


def trained_corpus(checkpoint: Checkpoint, data_dir: Path | None) -> Corpus:
    """The text that the checkpoint learned; CorpusError where it is missing or is another by now."""
    config = from_json(CorpusConfig, checkpoint.config.get("corpus"))
    needed = f"Needed is the corpus {config.corpus!r}, which this checkpoint was trained on"
    try:
        corpus = load_corpus(replace(config, data_dir=data_dir or config.data_dir), say)
    except CorpusError as error:
        raise CorpusError(f"{needed}. {error}") from None
    if corpus.sha256 != checkpoint.config.get("corpus_sha256", corpus.sha256):
        raise CorpusError(f"{needed}, but {corpus.source} is no longer the same text (its sha256 is {corpus.sha256}).")
    return corpus


def open_checkpoint(path: Path) -> tuple[Path, Checkpoint]:
    """A checkpoint file, or the best one of a run directory; it fits together, so that a model can be made of it."""
    found = path
    if path.is_dir():
        found = next((path / name for name in ("best.safetensors", "last.safetensors") if (path / name).exists()), path)
        if found == path:
            raise CheckpointError(f"{path} holds neither best.safetensors nor last.safetensors.")
    checkpoint = load_checkpoint(found)
    try:
        require_run(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{found}: {error}") from None
    return found, checkpoint


def model_of(checkpoint: Checkpoint, impl: str, runtime: RuntimeConfig) -> LanguageModel:
    """The checkpoint's model in an implementation."""
    config = checkpoint.config
    options = from_json(ModelConfig, config.get("model")), from_json(OptimizerConfig, config.get("optimizer"))
    model = create_model(impl, *options, len(checkpoint.vocabulary), runtime)
    model.load_parameters(checkpoint.parameters)
    return model


def write_texts(
    model: LanguageModel, vocabulary: Vocabulary, prompts: list[str], sampling: SamplingConfig, first: int = 0
) -> list[str]:
    """Each prompt and what the model writes after it; rows of one batch, counted from `first` by the random numbers."""
    read = [prompt_tokens(vocabulary, prompt) for prompt in prompts]
    lengths = np.array([len(tokens) for tokens in read], np.int32)
    prompt = np.stack([np.pad(tokens, (0, lengths.max() - len(tokens))) for tokens in read])
    rule = sampling_rule(sampling, -1 if vocabulary.eos is None else vocabulary.eos)
    uniforms = sampling_uniforms(sampling.seed, len(prompts), sampling.length, first)
    written = model.generate(prompt, lengths, uniforms, rule, None, allowed_tokens(vocabulary, sampling.length))
    return [start + vocabulary.decode(row) for start, row in zip(prompts, written, strict=True)]


def write_poems(
    model: LanguageModel,
    vocabulary: Vocabulary,
    form: Form,
    openings: list[str],
    acrostic: str,
    sampling: SamplingConfig,
) -> list[str]:
    """A poem from each opening, or one whose lines begin with the acrostic: every line is whole."""
    for text in (*openings, acrostic):
        known(vocabulary, text)
    given, allowed = forced(form, vocabulary, openings, acrostic), permitted(form, vocabulary)
    start = np.tile(prompt_tokens(vocabulary, ""), (len(openings), 1))
    lengths = np.full(len(openings), start.shape[1], np.int32)
    uniforms = sampling_uniforms(sampling.seed, len(openings), form.length)
    written = model.generate(start, lengths, uniforms, sampling_rule(sampling), given, allowed)
    return [vocabulary.decode(row) for row in written]


def prompt_tokens(vocabulary: Vocabulary, prompt: str) -> np.ndarray:
    """int32 [P], at least one: a poem begins with BOS, an empty prompt of a stream is the end of a line."""
    if vocabulary.bos is not None:
        return np.concatenate([[vocabulary.bos], known(vocabulary, prompt)]).astype(np.int32)
    if prompt:
        return known(vocabulary, prompt)
    return vocabulary.encode("\n") if not vocabulary.unknown("\n") else np.array([vocabulary.unk is not None], np.int32)


def known(vocabulary: Vocabulary, prompt: str) -> np.ndarray:
    """The prompt's tokens; ConfigError names the characters that the model has never seen."""
    if unseen := vocabulary.unknown(prompt):
        named = ", ".join(describe_unseen(character, vocabulary) for character in unseen[:10])
        raise ConfigError(
            f"The prompt holds {len(unseen)} character(s) that the training text never showed: {named}. "
            f"The model knows {len(vocabulary)} symbols; choose the prompt among those."
        )
    return vocabulary.encode(prompt)


def describe_unseen(character: str, vocabulary: Vocabulary) -> str:
    """The character, and the simplified or traditional ones in whose place it may stand, if the model knows them."""
    named = f"{character!r} (U+{ord(character):04X})"
    known_variants = [variant for variant in variants(character) if not vocabulary.unknown(variant)]
    return f"{named}, which this text writes {' or '.join(known_variants)}" if known_variants else named


def allowed_tokens(vocabulary: Vocabulary, length: int) -> np.ndarray | None:
    """bool [N, V]: what is no text is never written, save the end; None where everything is text."""
    markers = [token for token in (vocabulary.pad, vocabulary.unk, vocabulary.bos) if token is not None]
    if not markers:
        return None
    allowed = np.ones(len(vocabulary), bool)
    allowed[markers] = False
    return np.broadcast_to(allowed, (length, len(vocabulary)))
