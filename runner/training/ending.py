"""What a run leaves at its end: samples, text statistics, the report, and the next command to try."""

import math
import time
from functools import partial
from typing import Any

from runner.console import console, say
from runner.measurement import measure, of_poems, show
from runner.recipes import show_expected
from runner.sample import TEMPERATURES, describe_unseen, write_texts
from runner.training.run import Run, number
from shared.config import SamplingConfig
from shared.corpora import split
from shared.statistics import copies

SHORT, SHORT_PER_SYMBOL = 500_000, 1_000
"""Tokens: after fewer, and so many for each symbol, since drawing weighs them all, the text statistics would take more
than about a tenth of the training time (NumPy, 128 units; less with more units)."""
GREEDY_LENGTH = 100
"""Tokens that each prompt of --greedy is continued by."""


def finish(run_: Run) -> None:
    """Samples from the best checkpoint, the report, a summary and the next command to try."""
    options, progress, folder = run_.options, run_.progress, run_.folder
    best = folder.load_best()
    run_.model.load_parameters(best.parameters)
    base = SamplingConfig(prompt=options.prompt, length=options.length, seed=options.training.seed)
    with console.status("writing samples"):
        texts = [run_.sample(base, temperature) for temperature in TEMPERATURES]
    likeliest, seconds = continuations(run_)
    written = [f"temperature {t}\n{text}" for t, text in zip(TEMPERATURES, texts, strict=True)]
    folder.write_samples([*written, *(f"temperature 0\n{text}" for text in likeliest)])
    for temperature, text in zip(TEMPERATURES, texts, strict=True):
        console.rule(f"temperature {temperature}", align="left")
        say(text)
    if likeliest:
        console.rule("temperature 0", align="left")
        say("\n\n".join(likeliest))
    if run_.events:
        run_.events.write_samples(dict(zip(TEMPERATURES, texts, strict=True)), progress.step)
    console.rule()
    result: dict[str, Any] = {"best_loss": progress.best_loss, "best_step": progress.best_step, "steps": progress.step}
    result |= {"skipped": progress.skipped, "seconds": round(progress.seconds, 3), "reason": progress.reason}
    result |= {"prediction_seconds": round(seconds, 4)} if likeliest else {}
    if options.statistics and (found := statistics_of(run_)):
        show(found)
        result["statistics"] = found
    if found := copies_of(run_, texts):
        result["copied"] = found
    folder.add_result(result)
    from runner.report import write_run_report

    page = write_run_report(folder.path)
    perplexity, unigram = number(math.exp(min(progress.best_loss, 700.0)), 2), math.exp(run_.experiment.unigram_loss)
    skipped = f", {progress.skipped} of them skipped: not finite" if progress.skipped else ""
    say(
        f"{progress.step} steps in {progress.seconds:.1f} s ({progress.reason}{skipped}); best held-out perplexity "
        f"{perplexity} at step {progress.best_step}, unigram {unigram:.1f}. Report: {page}",
        "bold",
    )
    if options.recipe:
        show_expected(options, folder.path)
    say(f"Next: python -m runner sample --impl {options.impl} --checkpoint {folder.best} --temperature 0.8")


def continuations(run_: Run) -> tuple[list[str], float]:
    """What --greedy asks for, and the seconds that it took; a prompt that the text never showed is left out."""
    vocabulary, asked = run_.experiment.vocabulary, run_.options.greedy
    prompts = [prompt for prompt in asked if not vocabulary.unknown(prompt)]
    for prompt in (prompt for prompt in asked if prompt not in prompts):
        unseen = ", ".join(describe_unseen(each, vocabulary) for each in vocabulary.unknown(prompt))
        say(f"--greedy {prompt}: left out, the training text never showed {unseen}", "yellow")
    if not prompts:
        return [], 0.0
    longest = run_.options.training.seq_length if run_.experiment.corpus.poems else GREEDY_LENGTH
    sampling = SamplingConfig(temperature=0, length=min(GREEDY_LENGTH, longest))
    started = time.perf_counter()
    return write_texts(run_.model, vocabulary, prompts, sampling), time.perf_counter() - started


def statistics_of(run_: Run) -> dict[str, Any] | None:
    """The same numbers as `sample --statistics`; None after a run so short that they would take long beside it."""
    options, experiment = run_.options, run_.experiment
    trained = run_.progress.step * options.training.batch_size * options.training.seq_length
    if trained < SHORT + SHORT_PER_SYMBOL * len(experiment.vocabulary):
        say(f"Text statistics of so short a run: python -m runner sample --statistics --checkpoint {run_.folder.best}")
        return None
    sampling = SamplingConfig(prompt=options.prompt, seed=options.training.seed)
    if experiment.corpus.poems:
        sampling = of_poems(sampling, options.training.seq_length)
    write = partial(write_texts, run_.model, experiment.vocabulary)
    return measure(write, experiment.corpus, options.corpus.held_out, [options.prompt], sampling, TEMPERATURES)


def copies_of(run_: Run, texts: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Temperature -> where the sample, as samples.txt has it, stands in the training text; nothing after a run so short
    that it has not read the text once, since finding out reads it once more."""
    options, experiment = run_.options, run_.experiment
    if run_.progress.step < run_.steps_per_epoch:
        return {}
    training = split(experiment.corpus, options.corpus.held_out)[0]
    found = copies([text.strip("\n") for text in texts], training, experiment.corpus.poems)
    return {str(temperature): each for temperature, each in zip(TEMPERATURES, found, strict=True)}
