"""A corpus: where it comes from and what it says."""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from shared.config import CorpusConfig, Reader
from shared.corpora.cleaning import check_learnable, check_options, clean, clean_poems
from shared.corpora.download import is_here, registered_bytes
from shared.corpora.long import LONG, Packed, Text, decoded, digest_of, survey
from shared.corpora.readers import Poem, choose_reader, decode, read
from shared.corpora.registry import REGISTRY
from shared.errors import CorpusError

Texts = Sequence[Text]
Find = Callable[[], Iterator[Poem]]
"""What the reader finds, as often as it is asked for."""
Collect = Callable[[Iterable[str]], Sequence[str]]


@dataclass(frozen=True)
class Corpus:
    """A text, or poems, with their provenance."""

    name: str
    poems: bool
    texts: Texts
    """One running text, or one text for each poem."""
    titles: Sequence[str]
    """One for each poem where the reader reads titles, else none."""
    sha256: str
    """Of the bytes read, all files in order."""
    licence: str
    source: str
    reader: str

    @property
    def poem_texts(self) -> Sequence[str]:
        """The texts of poems, none of which is a long one."""
        return self.texts if isinstance(self.texts, Packed) else [text for text in self.texts if isinstance(text, str)]


def load_corpus(config: CorpusConfig, report: Callable[[str], None] = lambda _: None, strict: bool = True) -> Corpus:
    """A named corpus or a file, read, cleaned as the options say, and checked. `report` is told of each download;
    `strict` refuses options that change nothing here. CorpusError says what is wrong."""
    return load_named(config, report, strict) if config.corpus in REGISTRY else load_file(config, strict)


def at_hand(config: CorpusConfig) -> bool:
    """Whether the corpus can be read without the network; what is read is verified all the same."""
    if config.corpus not in REGISTRY:
        return os.path.isfile(os.path.expanduser(config.corpus))
    return is_here(REGISTRY[config.corpus], copies_of(config))


def copies_of(config: CorpusConfig) -> Path | None:
    """The user's folder of copies, if there is one."""
    folder = config.data_dir or os.environ.get("ROSETTA_DATA_DIR")
    return Path(folder) if folder else None


def load_named(config: CorpusConfig, report: Callable[[str], None], strict: bool) -> Corpus:
    """From the package, the folder with copies, the cache or the network."""
    entry = REGISTRY[config.corpus]
    if config.reader not in ("auto", entry.reader):
        raise CorpusError(
            f"{entry.name} is always read as {entry.reader}, but --reader is {config.reader}; it is for files of yours."
        )
    contents = registered_bytes(entry, copies_of(config), report)
    texts = [decode(content, file.name) for content, file in zip(contents, entry.files, strict=True)]
    found = [poem for text in texts for poem in read(partial(iter, (text,)), entry.reader, entry.name)]
    kept = tuple(cleaned(partial(iter, found), config, entry.reader, entry.name, strict)())
    digest = sha256(b"".join(contents)).hexdigest()
    return corpus(entry.name, entry.reader, partial(iter, kept), tuple, digest, entry.licence, entry.source)


def load_file(config: CorpusConfig, strict: bool) -> Corpus:
    """A file of the user's; of a long one, a running text stays where it is, and poems are packed."""
    path = existing(config.corpus)
    try:
        if path.stat().st_size >= LONG:
            return load_long(path, long_reader(config, path), config, strict)
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror or error}.") from None
    text = decode(content, str(path))
    reader = choose_reader(text, path) if config.reader == "auto" else config.reader
    found = tuple(read(partial(iter, (text,)), reader, str(path)))
    kept = tuple(cleaned(partial(iter, found), config, reader, str(path), strict)())
    return corpus(path.name, reader, partial(iter, kept), tuple, sha256(content).hexdigest(), YOURS, str(path))


YOURS = "not stated (a file of yours)"


def existing(name: str) -> Path:
    """The file; CorpusError names the corpora that could have been meant where there is no such file."""
    path = Path(os.path.expanduser(name))  # unlike Path's own, leaves the home of nobody as it is
    if not os.path.exists(path):
        close = difflib.get_close_matches(name, REGISTRY)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        raise CorpusError(
            f"There is neither a corpus nor a file called {name!r}.{meant} Known corpora: {', '.join(REGISTRY)}. "
            "Anything else must be the path of a file."
        )
    if not os.path.isfile(path):
        raise CorpusError(f"{path} is not a file. Give a text file, or the name of a corpus.")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise CorpusError(
            f"The name of the file {name!r} is not in UTF-8, and no report could hold it; rename the file."
        )
    return path


def long_reader(config: CorpusConfig, path: Path) -> Reader:
    """How a long file is read: its beginning decides."""
    if config.reader != "auto":
        return config.reader
    whole_lines = next(decoded(path), "").rpartition("\n")[0]
    return choose_reader(whole_lines, path)


def load_long(path: Path, reader: Reader, config: CorpusConfig, strict: bool) -> Corpus:
    """A running text that is read from its file whenever it is needed, or packed poems."""
    if reader != "text":
        find = partial(read, partial(decoded, path), reader, str(path))
        if reader == "json":  # parsed as a whole, so once
            find = partial(iter, tuple(find()))
        kept = cleaned(find, config, reader, str(path), strict)
        return corpus(path.name, reader, kept, Packed.of, digest_of(path), YOURS, str(path))
    if strict:
        check_options(config, "text", str(path), decoded(path))
    text, digest = survey(path, config)
    check_learnable(config, "text", str(path), text.chunks())
    return Corpus(path.name, False, (text,), (), digest, YOURS, str(path), "text")


def cleaned(find: Find, config: CorpusConfig, reader: Reader, place: str, strict: bool) -> Find:
    """What the options leave of what was read."""
    if strict and any(True for _ in find()):
        check_options(config, reader, place, (poem.text for poem in find()))

    def kept() -> Iterator[Poem]:
        if reader != "text":
            return clean_poems(find(), config)
        return iter([Poem("", "".join(clean((poem.text for poem in find()), config)))])

    check_learnable(config, reader, place, (poem.text for poem in kept()))
    return kept


def corpus(name: str, reader: Reader, kept: Find, collect: Collect, digest: str, licence: str, source: str) -> Corpus:
    """Put together what was read."""
    titles = collect(poem.title for poem in kept()) if reader in ("titled", "json") else ()
    texts = collect(poem.text for poem in kept())
    return Corpus(name, reader != "text", texts, titles, digest, licence, source, reader)
