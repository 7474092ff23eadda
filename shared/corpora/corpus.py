"""A corpus: where it comes from and what it says."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shared.config import CorpusConfig
from shared.corpora.cleaning import check_learnable, check_options, clean, clean_poems
from shared.corpora.download import registered_bytes
from shared.corpora.long import LONG, Text, decoded, survey
from shared.corpora.readers import Poem, choose_reader, decode, read
from shared.corpora.registry import REGISTRY
from shared.errors import CorpusError

Texts = tuple[Text, ...]


@dataclass(frozen=True)
class Corpus:
    """A text, or poems, with their provenance."""

    name: str
    poems: bool
    texts: Texts
    """One running text, or one text for each poem."""
    titles: tuple[str, ...]
    """One for each poem where the reader reads titles, else none."""
    sha256: str
    """Of the bytes read, all files in order."""
    licence: str
    source: str
    reader: str

    @property
    def poem_texts(self) -> tuple[str, ...]:
        """The texts of poems, which are never long."""
        return tuple(text for text in self.texts if isinstance(text, str))


def load_corpus(config: CorpusConfig, report: Callable[[str], None] = lambda _: None, strict: bool = True) -> Corpus:
    """A named corpus or a file, read, cleaned as the options say, and checked. `report` is told of each download;
    `strict` refuses options that change nothing here. CorpusError says what is wrong."""
    return load_named(config, report, strict) if config.corpus in REGISTRY else load_file(config, strict)


def load_named(config: CorpusConfig, report: Callable[[str], None], strict: bool) -> Corpus:
    """From the package, the folder with copies, the cache or the network."""
    entry = REGISTRY[config.corpus]
    if config.reader not in ("auto", entry.reader):
        raise CorpusError(
            f"{entry.name} is always read as {entry.reader}, but --reader is {config.reader}; it is for files of yours."
        )
    folder = config.data_dir or os.environ.get("ROSETTA_DATA_DIR")
    contents = registered_bytes(entry, Path(folder) if folder else None, report)
    texts = [decode(content, file.name) for content, file in zip(contents, entry.files, strict=True)]
    found = [poem for text in texts for poem in read(text, entry.reader, entry.name)]
    kept = cleaned(found, config, entry.reader, entry.name, strict)
    return corpus(entry.name, entry.reader, kept, contents, entry.licence, entry.source)


def load_file(config: CorpusConfig, strict: bool) -> Corpus:
    """A file of the user's; a long running text stays where it is."""
    path = existing(config.corpus)
    try:
        if path.stat().st_size >= LONG and long_reader(config, path) == "text":
            return load_long(path, config, strict)
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror or error}.") from None
    text = decode(content, str(path))
    reader = choose_reader(text, path) if config.reader == "auto" else config.reader
    kept = cleaned(read(text, reader, str(path)), config, reader, str(path), strict)
    return corpus(path.name, reader, kept, [content], YOURS, str(path))


YOURS = "not stated (a file of yours)"


def existing(name: str) -> Path:
    """The file; CorpusError names the corpora that could have been meant where there is no such file."""
    path = Path(name).expanduser()
    if not os.path.exists(path):
        close = difflib.get_close_matches(name, REGISTRY)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        raise CorpusError(
            f"There is neither a corpus nor a file called {name!r}.{meant} Known corpora: {', '.join(REGISTRY)}. "
            "Anything else must be the path of a file."
        )
    if not os.path.isfile(path):
        raise CorpusError(f"{path} is not a file. Give a text file, or the name of a corpus.")
    return path


def long_reader(config: CorpusConfig, path: Path) -> str:
    """How a long file is read: its beginning decides."""
    if config.reader != "auto":
        return config.reader
    whole_lines = next(decoded(path), "").rpartition("\n")[0]
    return choose_reader(whole_lines, path)


def load_long(path: Path, config: CorpusConfig, strict: bool) -> Corpus:
    """A running text that is read from its file whenever it is needed."""
    if strict:
        check_options(config, "text", str(path), decoded(path))
    text, digest = survey(path, config)
    check_learnable(config, "text", str(path), text.chunks())
    return Corpus(path.name, False, (text,), (), digest, YOURS, str(path), "text")


def cleaned(found: list[Poem], config: CorpusConfig, reader: str, place: str, strict: bool) -> list[Poem]:
    """What the options leave of what was read."""
    if strict and found:
        check_options(config, reader, place, (poem.text for poem in found))
    if reader == "text":
        found = [Poem("", "".join(clean((poem.text for poem in found), config)))]
    else:
        found = clean_poems(found, config)
    check_learnable(config, reader, place, (poem.text for poem in found))
    return found


def corpus(name: str, reader: str, kept: list[Poem], contents: list[bytes], licence: str, source: str) -> Corpus:
    """Put together what was read."""
    digest = sha256(b"".join(contents)).hexdigest()
    titles = tuple(poem.title for poem in kept) if reader in ("titled", "json") else ()
    texts = tuple(poem.text for poem in kept)
    return Corpus(name, reader != "text", texts, titles, digest, licence, source, reader)
