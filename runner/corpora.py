"""`corpora`: the named corpora: list, fetch, verify, show."""

from collections import Counter

from runner.cli import Corpora
from runner.console import say, show_table
from shared.config import CorpusConfig
from shared.corpora import REGISTRY, load_corpus
from shared.errors import ConfigError


def run(options: Corpora) -> int:
    """Do one of the four."""
    if options.action == "list":
        return show_list()
    if not options.name:
        raise ConfigError(f"corpora {options.action} needs a name; `python -m runner corpora` lists them.")
    corpus = load_corpus(CorpusConfig(options.name, options.reader, options.data_dir))
    characters = Counter(character for text in corpus.texts for character in text)
    kind = f"{len(corpus.texts):,} poems" if corpus.poems else "one text"
    say(f"{corpus.name}: {kind}, {characters.total():,} characters, {len(characters):,} different", "bold")
    known = REGISTRY.get(corpus.name)
    verified = ", every file verified" if known and all(file.sha256 for file in known.files) else ""
    say(f"from {corpus.source} (reader: {corpus.reader}); sha256 {corpus.sha256}{verified}")
    say(f"licence: {corpus.licence}")
    if options.action == "show":
        say("most frequent: " + " ".join(f"{character!r} {count}" for character, count in characters.most_common(12)))
        say("\n" + ("\n".join(corpus.texts[:5]) if corpus.poems else corpus.texts[0][:500]))
    return 0


def show_list() -> int:
    """One line each."""
    rows = [(name, "poems" if each.poems else "text", each.description) for name, each in REGISTRY.items()]
    show_table(
        "Named corpora; any UTF-8 file of yours works too: --corpus FILE", ("name", "kind", "what"), rows, wrap=(2,)
    )
    say("Fetch one: python -m runner corpora fetch NAME; learn one: python -m runner --corpus NAME")
    return 0
