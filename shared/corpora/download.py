"""The bytes of a named corpus: from the package, from the user's folder of copies, or fetched once into the cache.
Whatever comes from elsewhere is checked by its hash each time it is read, and nothing is written under a file's name
before its hash is right; a folder of the user's is never changed."""

import time
from collections.abc import Callable
from http.client import responses
from importlib.resources import files
from pathlib import Path

from shared.corpora.registry import Entry, File
from shared.errors import CorpusError, UserError
from shared.files import UNFINISHED, discard, write_atomically

TIMEOUT = 30.0
"""Seconds that a server may be silent."""
SLOWEST = 1000.0
"""Bytes a second that must come, on the average, beyond the first TIMEOUT seconds: a server that sends a byte now and
then is never silent and never done."""
LARGEST = 2**28
"""Bytes that a file may have at most, many times what any has: so that a body without an end has one."""
ATTEMPTS, PAUSE = 2, 1.0
"""How often a file is asked for, and the seconds between."""
ABANDONED = 3600.0
"""Seconds after which an unfinished file is that of a process which was killed; writing one takes no time."""
BLOCK = 2**16
Report = Callable[[str], None]


def registered_bytes(entry: Entry, data_dir: Path | None, report: Report) -> list[bytes]:
    """The contents of each file."""
    if not entry.files[0].address:
        return [files("shared.corpora").joinpath("starter", file.name).read_bytes() for file in entry.files]
    if data_dir is not None:
        return [read_copy(data_dir.expanduser() / entry.name / file.name, file) for file in entry.files]
    return read_cached(entry, report)


def is_here(entry: Entry, data_dir: Path | None) -> bool:
    """Whether every file travels with the program, or lies among the copies or in the cache."""
    folder = (data_dir.expanduser() if data_dir else cache()) / entry.name
    return all(not file.address or (folder / file.name).is_file() for file in entry.files)


def cache() -> Path:
    """Where fetched files are kept."""
    from platformdirs import user_cache_path  # here, since most runs need no cache

    return user_cache_path("rosetta-rnn")


def read_copy(path: Path, file: File) -> bytes:
    """A copy in the user's folder, verified."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(
            f"Expected a copy at {path} ({error.strerror}), since --data-dir or ROSETTA_DATA_DIR names that folder. "
            f"Put the file of {file.address} there, or leave both unset to have it fetched."
        ) from None
    if wrong := file.mismatch(content):
        raise CorpusError(
            f"{path} is not the file that is meant: {wrong}. It was probably edited, cut short or given other line "
            f"ends on its way; fetch it again from {file.address}."
        )
    return content


def read_cached(entry: Entry, report: Report) -> list[bytes]:
    """The contents of each file in the cache, verified; what is not there, or no longer whole, is fetched."""
    folder = cache() / entry.name
    contents = []
    for number, file in enumerate(entry.files, 1):
        content = kept(folder / file.name, file, report)
        if content is None:
            report(f"Fetching {entry.name}, file {number} of {len(entry.files)}: {file.address}")
            content = fetch(file, entry.name)
            keep(folder / file.name, content)
        contents.append(content)
    return contents


def kept(path: Path, file: File, report: Report) -> bytes | None:
    """A file in the cache; nothing where it is not there, or not what was once put there."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        report(f"{path} cannot be read ({error.strerror}); it is fetched again.")
        return None
    if wrong := file.mismatch(content):
        report(f"{path} was damaged since it was fetched ({wrong}); it is fetched again.")
        return None
    return content


def keep(path: Path, content: bytes) -> None:
    """Write into the cache; what killed processes left there is removed."""
    for left in path.parent.glob(f".{path.name[:40]}.*{UNFINISHED}"):
        try:
            abandoned = time.time() - left.stat().st_mtime > ABANDONED
        except OSError:  # its process has just finished
            continue
        if abandoned:
            discard(left)
    try:
        write_atomically(path, content)
    except UserError as error:
        raise CorpusError(
            f"{path.name} was fetched and is whole, but the cache cannot hold it. {error} Or choose another cache "
            f"(XDG_CACHE_HOME on Linux), or {copies(path.parent.name, path.name)}"
        ) from None


def copies(corpus: str, name: str) -> str:
    """The way that needs no network and no cache."""
    return f"put copies into a folder as {corpus}/{name} and name that folder with --data-dir or ROSETTA_DATA_DIR."


def fetch(file: File, corpus: str) -> bytes:
    """A file from its address, verified; CorpusError says what was tried and what came."""
    from urllib3.exceptions import HTTPError

    failure = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * attempt)
        try:
            content = download(file.address, file.name)
        except (OSError, ValueError, HTTPError) as error:  # ValueError: a redirection to what is no address
            failure = told(error)
        else:
            if not (wrong := file.mismatch(content)):
                return content
            failure = f"{len(content):,} bytes came, which are not the file that is meant: {wrong}"
    raise CorpusError(
        f"Cannot fetch {file.address} (tried {ATTEMPTS} times): {failure}. Nothing of it is kept. Try again later, or "
        f"{copies(corpus, file.name)}"
    )


def download(address: str, name: str) -> bytes:
    """What the server sends, with a bar on a terminal; an error where it is silent, too slow, or ends too early."""
    import requests
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    content, started, console = bytearray(), time.monotonic(), Console(stderr=True)
    plain = {"Accept-Encoding": "identity"}  # so that sizes are those of the file; not every proxy heeds it
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        requests.Session() as session,
        session.get(address, stream=True, timeout=TIMEOUT, headers=plain) as response,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        response.raise_for_status()
        task = bar.add_task(name, total=response.raw.length_remaining)
        while block := response.raw.read1(BLOCK, decode_content=True):  # what has come, without waiting for more
            content += block
            bar.update(task, completed=len(content))
            passed = time.monotonic() - started
            if passed > TIMEOUT + len(content) / SLOWEST:
                raise TimeoutError(f"too slow: {len(content):,} bytes in {passed:.0f} s")
            if len(content) > LARGEST:
                raise OSError(f"more than {LARGEST:,} bytes, and no end")
    return bytes(content)


def told(error: Exception) -> str:
    """What went wrong on the network, in words: the innermost of the errors that libraries put into each other."""
    from requests.exceptions import HTTPError, Timeout
    from urllib3.exceptions import ReadTimeoutError

    if isinstance(error, HTTPError):
        code = error.response.status_code if error.response is not None else 0
        return f"the server answered {code} {responses.get(code, '')}".rstrip()
    if isinstance(error, Timeout | ReadTimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    inner = [each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, Exception)]
    return told(inner[0]) if inner else str(error).rstrip(".") or type(error).__name__
