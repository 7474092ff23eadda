"""`sample`: text out of any checkpoint, in any implementation."""

from pathlib import Path

import numpy as np

from runner.cli import Sample
from runner.console import say
from runner.registry import create_model
from runner.text import visible
from shared.checkpoint import Checkpoint, load_checkpoint
from shared.config import ModelConfig, OptimizerConfig, RuntimeConfig, SamplingConfig, from_json
from shared.contract import LanguageModel
from shared.errors import CheckpointError, ConfigError
from shared.sampling import sampling_rule, sampling_uniforms
from shared.vocabulary import Vocabulary

TEMPERATURES = (0.5, 0.8, 1.0, 1.2, 1.5)
"""At which runs and comparisons are sampled."""


def run(options: Sample) -> int:
    """Print the texts."""
    path, checkpoint = open_checkpoint(options.checkpoint)
    model = model_of(checkpoint, options.impl, options.runtime)
    if options.start_characters and options.sampling.prompt:
        raise ConfigError("--prompt and --start-characters exclude each other; give one of them.")
    prompts = list(options.start_characters) or [options.sampling.prompt]
    warmth = f"temperature {options.sampling.temperature:g}"
    say(f"{path}: {options.impl} ({model.engine}) on {model.device}, {warmth}", "dim")
    for text in write_texts(model, checkpoint.vocabulary, prompts, options.sampling):
        # Plain print, since the text is the product: it can be piped, and no line is wrapped.
        print(visible(text), end="\n\n" if len(prompts) > 1 else "\n")
    return 0


def open_checkpoint(path: Path) -> tuple[Path, Checkpoint]:
    """A checkpoint file, or the best one of a run directory."""
    found = path
    if path.is_dir():
        found = next((path / name for name in ("best.safetensors", "last.safetensors") if (path / name).exists()), path)
        if found == path:
            raise CheckpointError(f"{path} holds neither best.safetensors nor last.safetensors.")
    return found, load_checkpoint(found)


def model_of(checkpoint: Checkpoint, impl: str, runtime: RuntimeConfig) -> LanguageModel:
    """The checkpoint's model in an implementation."""
    config = checkpoint.config
    options = from_json(ModelConfig, config.get("model")), from_json(OptimizerConfig, config.get("optimizer"))
    model = create_model(impl, *options, len(checkpoint.vocabulary), runtime)
    model.load_parameters(checkpoint.parameters)
    return model


def write_texts(
    model: LanguageModel, vocabulary: Vocabulary, prompts: list[str], sampling: SamplingConfig
) -> list[str]:
    """Each prompt and what the model writes after it; rows of one batch."""
    read = [prompt_tokens(vocabulary, prompt) for prompt in prompts]
    lengths = np.array([len(tokens) for tokens in read], np.int32)
    prompt = np.stack([np.pad(tokens, (0, lengths.max() - len(tokens))) for tokens in read])
    rule = sampling_rule(sampling, -1 if vocabulary.eos is None else vocabulary.eos)
    uniforms = sampling_uniforms(sampling.seed, len(prompts), sampling.length)
    written = model.generate(prompt, lengths, uniforms, rule, None, allowed_tokens(vocabulary, sampling.length))
    return [start + vocabulary.decode(row) for start, row in zip(prompts, written, strict=True)]


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
        named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unseen[:10])
        raise ConfigError(
            f"The prompt holds {len(unseen)} character(s) that the training text never showed: {named}. "
            f"The model knows {len(vocabulary)} symbols; choose the prompt among those."
        )
    return vocabulary.encode(prompt)


def allowed_tokens(vocabulary: Vocabulary, length: int) -> np.ndarray | None:
    """bool [N, V]: what is no text is never written, save the end; None where everything is text."""
    markers = [token for token in (vocabulary.pad, vocabulary.unk, vocabulary.bos) if token is not None]
    if not markers:
        return None
    allowed = np.ones(len(vocabulary), bool)
    allowed[markers] = False
    return np.broadcast_to(allowed, (length, len(vocabulary)))
