"""A corpus: where it comes from, what it says, and which part of it is held out."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shared.config import CorpusConfig
from shared.corpora.download import registered_bytes
from shared.corpora.readers import Reading, choose_reader, decode, read
from shared.corpora.registry import REGISTRY
from shared.errors import CorpusError

HELD_OUT = 10
"""One part in so many is held out."""
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """A text, or poems, with their provenance."""

    name: str
    poems: bool
    texts: Texts
    """One running text, or one text for each poem."""
    titles: Texts
    """One for each poem where the reader reads titles, else none."""
    sha256: str
    """Of the bytes read, all files in order."""
    licence: str
    source: str
    reader: str


def load_corpus(config: CorpusConfig, report: Callable[[str], None] = lambda _: None) -> Corpus:
    """A named corpus or a file, read and checked. `report` is told of each download. CorpusError says what is wrong."""
    return load_named(config, report) if config.corpus in REGISTRY else load_file(config)


def load_named(config: CorpusConfig, report: Callable[[str], None]) -> Corpus:
    """From the package, the folder with copies, the cache or the network."""
    entry = REGISTRY[config.corpus]
    if config.reader not in ("auto", entry.reader):
        raise CorpusError(
            f"{entry.name} is always read as {entry.reader}, but --reader is {config.reader}; it is for files of yours."
        )
    folder = config.data_dir or os.environ.get("ROSETTA_DATA_DIR")
    contents = registered_bytes(entry, Path(folder) if folder else None, report)
    texts = [decode(content, file.name) for content, file in zip(contents, entry.files, strict=True)]
    return corpus(entry.name, read(texts, entry.reader, entry.name), contents, entry.licence, entry.source)


def load_file(config: CorpusConfig) -> Corpus:
    """A file of the user's."""
    path = Path(config.corpus).expanduser()
    content = read_file(config.corpus, path)
    text = decode(content, str(path))
    reader = choose_reader(text, path) if config.reader == "auto" else config.reader
    return corpus(path.name, read([text], reader, str(path)), [content], "not stated (a file of yours)", str(path))


def read_file(name: str, path: Path) -> bytes:
    """Its bytes; CorpusError names the corpora that could have been meant where there is no such file."""
    if not os.path.exists(path):
        close = difflib.get_close_matches(name, REGISTRY)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        raise CorpusError(
            f"There is neither a corpus nor a file called {name!r}.{meant} Known corpora: {', '.join(REGISTRY)}. "
            "Anything else must be the path of a file."
        )
    if not os.path.isfile(path):
        raise CorpusError(f"{path} is not a file. Give a text file, or the name of a corpus.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror or error}.") from None


def corpus(name: str, reading: Reading, contents: list[bytes], licence: str, source: str) -> Corpus:
    """Put together what was read."""
    digest = sha256(b"".join(contents)).hexdigest()
    poems = reading.reader != "text"
    return Corpus(name, poems, reading.texts, reading.titles, digest, licence, source, reading.reader)


def split(corpus: Corpus) -> tuple[Texts, Texts]:
    """Training and held-out texts, by a rule that no seed changes: the last tenth of a running text; of poems, the
    tenth with the lowest hashes, so that a poem that occurs twice never stands on both sides."""
    return split_poems(corpus) if corpus.poems else split_stream(corpus)


def split_stream(corpus: Corpus) -> tuple[Texts, Texts]:
    text = corpus.texts[0]
    border = len(text) - -(-len(text) // HELD_OUT)
    if len(text) - border < 2:
        raise CorpusError(f"{corpus.name} has {len(text)} characters: too few to hold out a tenth. Take a longer text.")
    return (text[:border],), (text[border:],)


def split_poems(corpus: Corpus) -> tuple[Texts, Texts]:
    distinct = sorted(set(corpus.texts), key=lambda text: sha256(text.encode()).digest())
    held_out = set(distinct[: -(-len(distinct) // HELD_OUT)])
    if len(held_out) == len(distinct):
        raise CorpusError(f"{corpus.name} has one poem only (read as {corpus.reader}): none is left to be held out.")
    training = tuple(text for text in corpus.texts if text not in held_out)
    return training, tuple(text for text in corpus.texts if text in held_out)
