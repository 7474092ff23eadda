"""Where a search is kept: a journal that processes of several machines can share, or a database."""

import socket
from collections.abc import Sequence
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock  # the one part of optuna that it does not export

from runner.rundir import NO_LOCKS
from shared.errors import ConfigError, UserError
from shared.files import discard


class JournalLock(BaseJournalFileLock):
    """A lock of the system, which ends with its process: optuna's own lock files would hold up everybody for half a
    minute after a kill. Whoever gets it removes the line that a killed process, or a full disk, left torn."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, FileLock(f"{path}.flock", fallback_to_soft=False)

    def acquire(self) -> bool:
        self.lock.acquire()
        if self.path.exists():
            mend(self.path)
        return True

    def release(self) -> None:
        self.lock.release()


def mend(path: Path) -> None:
    """Cut off what follows the last end of a line; only whoever may write calls it."""
    with path.open("rb+") as file:
        size = end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            if (last := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + last + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def knows_locks(folder: Path) -> bool:
    """Whether the disk of a folder has locks of the system."""
    lock = FileLock(folder / f".{socket.gethostname()}.probe", fallback_to_soft=False)
    try:
        with lock:
            return True
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    finally:
        discard(lock.lock_file)


def is_database(address: str) -> bool:
    return "://" in address


def open_storage(address: str) -> BaseStorage:
    """A database, or the file of a journal; UserError where it cannot be opened."""
    if is_database(address):
        try:
            return RDBStorage(address)
        except ModuleNotFoundError as error:
            raise UserError(f"--storage {hidden(address)}: needs {error.name}: pip install {error.name}.") from None
        except Exception as error:  # of whatever driver
            said = str(error).splitlines()[0]
            raise UserError(f"--storage {hidden(address)} cannot be opened: {said}") from None
    path = Path(address).absolute()  # for the lock, and since workers may start elsewhere
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalLock(path) if knows_locks(path.parent) else JournalFileOpenLock(str(path))
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--storage {address} cannot be read as optuna's journal: {error}") from None


def hidden(address: str) -> str:
    """An address without its password."""
    from sqlalchemy.engine import make_url

    return make_url(address).render_as_string(hide_password=True) if is_database(address) else address


def refuse_shared_sqlite(address: str, workers: int) -> None:
    """ConfigError where several processes would write to SQLite."""
    if address.startswith("sqlite") and workers > 1:
        raise ConfigError(
            f"--storage {address} takes one worker, not {workers}: SQLite locks its whole file for every write, gives "
            "up with 'database is locked' when several processes write, and damages it on disks of a network. Leave "
            "--storage out (a journal file, safe for many), name a real database, or add --workers 1."
        )


def names_in(storage: BaseStorage) -> Sequence[str]:
    """The searches that a storage holds."""
    names: Sequence[str] = optuna.get_all_study_names(storage)
    return names


def only_study(storage: BaseStorage, address: str, name: str) -> str:
    """The search of that name, or the only one; ConfigError lists them."""
    names = names_in(storage)
    if name in names:
        return name
    if name or len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"{hidden(address)} holds {listed}: choose a search with --name.")
    return names[0]
