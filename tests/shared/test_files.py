import json
import os

import pytest

from shared.errors import UserError
from shared.files import strict_json, write_atomically


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
    with pytest.raises(UserError, match=r"Cannot write .*No space left.*unchanged"):
        write_atomically(path, "bad")
    assert path.read_text() == "good"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_atomically(tmp_path / "x" / "y", "text")


def test_json_holds_no_infinity():
    text = strict_json({"a": [1.5, float("nan")], "b": (float("-inf"), "日")})
    assert json.loads(text) == {"a": [1.5, None], "b": [None, "日"]}
    assert "日" in text
