import errno
import json
import os
import stat

import pytest

from shared.errors import ConfigError, UserError
from shared.files import UNFINISHED, WriteError, append, require_writable, strict_json, sync, write_atomically


def test_written_whole_and_nothing_else_left(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in path.parent.iterdir()] == ["file.txt"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, "good")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(WriteError, match=r"Cannot write .*No space left.*unchanged.*Make room"):
        write_atomically(path, "bad")
    assert path.read_text() == "good"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_atomically(tmp_path / "x" / "y", "text")


def refuse(name, monkeypatch, number):
    """From now on the system refuses these calls."""

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    """On a disk that turned read-only, what was begun cannot be removed either."""
    refuse("fsync", monkeypatch, errno.EIO)
    refuse("unlink", monkeypatch, errno.EROFS)
    with pytest.raises(WriteError, match="Input/output error"):
        write_atomically(tmp_path / "x", "text")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.")
    assert left.name.endswith(UNFINISHED)


@pytest.mark.parametrize(("number", "harmless"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number, harmless):
    """Some disks have no flush for folders; where it fails, the file is there, and that is what is said."""
    real, path = os.fsync, tmp_path / "x"

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    if harmless:
        write_atomically(path, "new")
    else:
        with pytest.raises(WriteError, match=r"x is written, but .* power cut"):
            write_atomically(path, "new")
    assert path.read_text() == "new"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    for text in ("first", "second"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "elsewhere/file").read_text() == text
    assert not list((tmp_path / "elsewhere").glob(".*"))


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        require_writable(pipe)
        write_atomically(pipe, "日")
        assert os.read(reader, 99) == "日".encode()
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_the_longest_name(tmp_path):
    """Of 255 bytes, as systems allow; the name of the file beside is shorter."""
    path = tmp_path / ("日" * 85)
    write_atomically(path, "text")
    assert path.read_text() == "text"


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(WriteError, match="moved or deleted"):
        write_atomically(tmp_path / "gone/x", "text", make_folder=False)
    with pytest.raises(WriteError, match="moved or deleted"):
        append(tmp_path / "gone/x", "text")
    with pytest.raises(WriteError, match="moved or deleted"):
        sync(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_whether_a_file_could_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    for good in ("file", "new", "new/and/newer"):
        require_writable(tmp_path / good)
    for bad, why in (("", "Is a directory"), ("file/x", "Not a directory"), ("file/x/y", "Not a directory")):
        with pytest.raises(ConfigError, match=f"Cannot write .*: {why}"):
            require_writable(tmp_path / bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_json_holds_no_infinity():
    text = strict_json({"a": [1.5, float("nan")], "b": (float("-inf"), "日")})
    assert json.loads(text) == {"a": [1.5, None], "b": [None, "日"]}
    assert "日" in text
