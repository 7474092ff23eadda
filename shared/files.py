"""Files that are either whole or absent, whatever fails while they are written."""

import errno
import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.errors import ConfigError, UserError

UNFINISHED = ".part"
"""Ends the name of a file that is being written, ".<name>.<8 letters>.part"; one that stays is from a process that was
killed, and may be deleted."""
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on that disk."),
    errno.EFBIG: "It is larger than this process may write: raise the limit (ulimit -f) or that of the disk.",
    errno.EROFS: "That disk is read-only: have it mounted for writing, or choose a place elsewhere.",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Get the right to write there, or choose a place elsewhere."),
    errno.EIO: "The disk may be failing: copy what matters elsewhere.",
    errno.ENOENT: "The folder is no longer there: was it moved or deleted?",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "What should be a folder is a file: move it away."),
    errno.EISDIR: "It is a folder: give the name of a file.",
}
"""What to do about an error of the system."""


class WriteError(UserError):
    """A file that could not be written."""

    exit_status = 1


def write_atomically(path: Path, content: bytes | str, make_folder: bool = True) -> None:
    """Write beside the target, flush to the disk, rename. A failure leaves what stood there; WriteError says why. What
    is no file, such as /dev/stdout or a pipe, is written to as it is. Without `make_folder`, the folder must be there:
    one that went away is not made again for a part of what was in it."""
    data = content.encode() if isinstance(content, str) else content
    try:
        if make_folder and not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        if is_stream(path):
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))  # a link stays a link
        temporary = write_beside(target, data)
        try:
            os.replace(temporary, target)
        except BaseException:
            discard(temporary)
            raise
    except OSError as error:
        raise failure(path, error, "What stood there is unchanged.") from None
    try:
        sync_folder(target.parent)
    except OSError as error:
        raise WriteError(
            f"{path} is written, but its folder could not be flushed to the disk; a power cut could bring back what "
            f"stood there before: {reason(error)}"
        ) from None


def write_beside(target: Path, data: bytes) -> str:
    """The path of a temporary file in the target's folder that holds the data, flushed; none is left by a failure."""
    # A part of the name, since a whole one and what is added could be longer than a system allows.
    descriptor, temporary = tempfile.mkstemp(UNFINISHED, f".{target.name[:40]}.", target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())
    except BaseException:
        discard(temporary)
        raise
    return temporary


def append(path: Path, text: str) -> None:
    """Write at the end of a file; after a failure or a kill its last line may be torn. WriteError says why."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise failure(path, error) from None


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; WriteError where it is gone, too."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failure(path, error) from None


def require_writable(path: Path) -> None:
    """ConfigError where a file could not be written in the end; asked before long work, and nothing stays there."""
    if is_stream(path):
        return
    target = Path(os.path.realpath(path))
    folder = next(each for each in target.parents if os.path.lexists(each))  # those below it will be made
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Permissions do not tell: root has them all, and a disk may be read-only.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name[:40]}.", suffix=UNFINISHED):
            pass
    except OSError as error:
        raise ConfigError(str(failure(path, error))) from None


def is_stream(path: Path) -> bool:
    """Whether a path is there and neither a file nor a folder."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def discard(temporary: str | Path) -> None:
    """Remove a file if that can be done."""
    with suppress(OSError):
        os.unlink(temporary)


def failure(path: Path, error: OSError, state: str = "") -> WriteError:
    """What to say where a file could not be written."""
    return WriteError(f"Cannot write {path}: {reason(error, state)}")


def reason(error: OSError, state: str = "") -> str:
    """What went wrong, how things stand, and what to do about it."""
    return " ".join(filter(None, [f"{error.strerror or error}.", state, ADVICE.get(error.errno or 0)]))


def strict_json(value: Any) -> str:
    """JSON text for people and for every parser: what is not a finite number becomes null."""
    return json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The value with None for infinite and undefined numbers, at any depth."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def current_umask() -> int:
    """The process's umask; mkstemp ignores it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can sync a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot, and need not
            raise
    finally:
        os.close(descriptor)
