"""`corpora`: the named corpora: list, fetch, verify, show."""

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from runner.cli import Corpora
from runner.console import say, show_table
from runner.experiment import learn_vocabulary, pieces_of
from shared.config import CorpusConfig
from shared.corpora import REGISTRY, Corpus, load_corpus, split
from shared.corpora.corpus import Texts
from shared.corpora.long import beginning, encode
from shared.errors import ConfigError
from shared.statistics import FIVES, SEVENS, kind_of
from shared.vocabulary import Vocabulary, count_characters

POEMS, LINES, WIDTH = 3, 6, 72
"""What a preview shows: poems, or lines of a running text, and how much of each."""
Rows = list[tuple[str, str]]


def run(options: Corpora) -> int:
    """Do one of the four."""
    if options.action == "list":
        return show_list()
    if not options.name:
        raise ConfigError(f"corpora {options.action} needs a name; `python -m runner corpora` lists them.")
    config = replace(options.corpus, corpus=options.name)
    corpus = load_corpus(config, say)
    entry = REGISTRY.get(corpus.name)
    say(corpus.name + (f": {entry.description}" if entry else ""), "bold")
    rows = origin(corpus)
    if options.action == "show":
        rows = figures(corpus, config) + rows
    show_table("", ("", ""), rows, wrap=(1,))
    if options.action == "show":
        say("")
        for line in preview(corpus):
            say(line, "dim")
    return 0


def origin(corpus: Corpus) -> Rows:
    """Where it comes from, and how that is known."""
    verified = " (every file verified)" if corpus.name in REGISTRY and "://" in corpus.source else ""
    return [("from", corpus.source), ("licence", corpus.licence), ("sha256", corpus.sha256 + verified)]


def figures(corpus: Corpus, config: CorpusConfig) -> Rows:
    """What there is to learn."""
    seen, unseen = split(corpus, config.held_out)
    vocabulary = learn_vocabulary(corpus, seen, config)
    counts = count_characters(pieces_of(corpus.texts))
    chinese = kind_of(corpus.texts, corpus.poems).chinese
    rows = [("texts", f"{len(corpus.texts):,} poems" if corpus.poems else "one running text")]
    rows += [("characters", f"{counts.sum():,}, {np.count_nonzero(counts):,} different"), *symbols(vocabulary, config)]
    rows += lengths(corpus) if corpus.poems else [("lines", f"{line_count(corpus.texts):,}")]
    rows += verse_forms(corpus) if chinese else [("words", f"{word_count(corpus.texts):,}")]
    rows += [("most frequent", frequent(counts))]
    rows += [("training", portion(seen, vocabulary, config))]
    rows += [("held out", portion(unseen, vocabulary, config) if config.held_out else "nothing: measured on the same")]
    return [*rows, ("reader", corpus.reader)]


def symbols(vocabulary: Vocabulary, config: CorpusConfig) -> Rows:
    """The size of the vocabulary, and what it is made of."""
    subwords = int((vocabulary.lengths > 1).sum())
    special = sum(each is not None for each in (vocabulary.pad, vocabulary.unk, vocabulary.bos, vocabulary.eos))
    made_of = [f"{len(vocabulary) - special - subwords:,} characters"]
    made_of += [f"{subwords:,} subwords"] * bool(subwords) + [f"{special} special"] * bool(special)
    rare = f"; characters seen less than {config.minimum_count} times are one symbol" * (config.minimum_count > 1)
    return [("vocabulary", f"{len(vocabulary):,} symbols: {', '.join(made_of)}{rare}")]


def lengths(corpus: Corpus) -> Rows:
    """Of the poems."""
    sizes = [len(text) for text in corpus.texts]
    return [("length of a poem", f"{min(sizes):,} to {max(sizes):,} characters, median {median(sizes):,g}")]


def verse_forms(corpus: Corpus) -> Rows:
    """How many poems are regular."""
    if not corpus.poems:
        return []
    shares = {
        size: sum(bool(re.fullmatch(f"\\s*{form}", text)) for text in corpus.poem_texts) / len(corpus.texts)
        for size, form in (("five", FIVES), ("seven", SEVENS))
    }
    return [("form", ", ".join(f"{share:.1%} in lines of {size} characters" for size, share in shares.items()))]


def line_count(texts: Texts) -> int:
    """Line ends, and what follows the last one."""
    ends, last = 0, "\n"
    for piece in pieces_of(texts):
        ends, last = ends + piece.count("\n"), piece[-1:] or last
    return ends + (last != "\n")


def word_count(texts: Texts) -> int:
    """Runs of anything but space."""
    count, inside = 0, False
    for piece in pieces_of(texts):
        count += len(piece.split()) - (inside and not piece[:1].isspace())
        inside = not piece[-1:].isspace()
    return count


def frequent(counts: np.ndarray, most: int = 12) -> str:
    """Characters and their shares."""
    order = np.argsort(-counts, kind="stable")[:most]
    return " · ".join(f"{name(chr(each))} {counts[each] / counts.sum():.1%}" for each in order if counts[each])


def name(character: str) -> str:
    """A character that is seen."""
    return {" ": "space", "\n": "line end", "\t": "tab"}.get(character, character)


def portion(texts: Texts, vocabulary: Vocabulary, config: CorpusConfig) -> str:
    """Characters and, where they are not the same, tokens."""
    characters = sum(map(len, texts))
    poems = f"{len(texts):,} poems, " if len(texts) > 1 or vocabulary.bos is not None else ""
    if not config.subwords:
        return f"{poems}{characters:,} characters"
    tokens = sum(len(encode(vocabulary, text)) for text in texts)
    return f"{poems}{characters:,} characters in {tokens:,} tokens, {characters / tokens:.2f} a token"


def preview(corpus: Corpus) -> Sequence[str]:
    """The beginning."""
    if not corpus.poems:
        lines = [line for line in beginning(corpus.texts[0], 5000).split("\n") if line.strip()]
        return [shortened(line) for line in lines[:LINES]]
    titles = corpus.titles or ("",) * len(corpus.texts)
    poems = zip(titles[:POEMS], corpus.poem_texts[:POEMS], strict=True)
    return [shortened(f"{title}: {text}" if title else text) for title, text in poems]


def shortened(text: str) -> str:
    """One line of it."""
    line = " ".join(text.split("\n"))
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def show_list() -> int:
    """One line each."""
    rows = [(name, "poems" if each.poems else "text", each.description) for name, each in REGISTRY.items()]
    show_table(
        "Named corpora; any UTF-8 file of yours works too: --corpus FILE", ("name", "kind", "what"), rows, wrap=(2,)
    )
    say("Look at one: python -m runner corpora show NAME; learn one: python -m runner --corpus NAME")
    return 0
