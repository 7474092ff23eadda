"""The bytes of a named corpus: from the package, from the user's folder of copies, or fetched once into the cache.
Whatever comes from elsewhere is checked by its hash; a folder of the user's is never changed."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from shared.corpora.registry import Entry, File
from shared.errors import CorpusError

if TYPE_CHECKING:
    import pooch

TIMEOUT = 30
"""Seconds without an answer."""
Report = Callable[[str], None]


def registered_bytes(entry: Entry, data_dir: Path | None, report: Report) -> list[bytes]:
    """The contents of each file."""
    if not entry.files[0].address:
        return [files("shared.corpora").joinpath("starter", file.name).read_bytes() for file in entry.files]
    if data_dir is not None:
        return [read_copy(data_dir.expanduser() / entry.name / file.name, file) for file in entry.files]
    return [path.read_bytes() for path in fetch(entry, report)]


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


def fetch(entry: Entry, report: Report) -> list[Path]:
    """Paths in the cache; what is not there, or no longer whole, is fetched."""
    import pooch  # here, since most runs fetch nothing

    pooch.get_logger().setLevel("WARNING")
    cache = pooch.create(
        path=pooch.os_cache("rosetta-rnn") / entry.name,
        base_url="",
        registry={file.name: file.sha256 or None for file in entry.files},  # None: pooch knows no blob ids
        urls={file.name: file.address for file in entry.files},
        retry_if_failed=1,
    )
    download = pooch.HTTPDownloader(timeout=TIMEOUT)
    paths = []
    for number, file in enumerate(entry.files, 1):
        kept = cache.abspath / file.name
        if file.git_blob and kept.exists() and file.mismatch(kept.read_bytes()):
            kept.unlink()
        if not kept.exists():
            report(f"Fetching {entry.name}, file {number} of {len(entry.files)}: {file.address}")
        paths.append(fetched(cache, download, file))
    return paths


def fetched(cache: "pooch.Pooch", download: "pooch.HTTPDownloader", file: File) -> Path:
    """One file; what arrives damaged is never kept."""
    try:
        path = Path(cache.fetch(file.name, downloader=download))
        if file.git_blob and (wrong := file.mismatch(path.read_bytes())):
            path.unlink()
            raise ValueError(f"{wrong}.")
        return path
    except (OSError, ValueError) as error:  # ValueError: another hash
        raise CorpusError(
            f"Cannot fetch {file.address} into {cache.abspath}: {error} Without a network, put copies into a folder as "
            f"{cache.abspath.name}/{file.name} and name that folder with --data-dir or ROSETTA_DATA_DIR."
        ) from None
