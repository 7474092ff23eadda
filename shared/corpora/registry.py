"""The named corpora, as `registry.toml` describes them: a new one is an entry there.

[name]
description  what it is, with its size
reader       text, poems, blocks, titled or json (readers.py)
licence      of the text and of where it comes from
address      where each file is fetched, "{name}" standing for its name, fixed to a commit; without one, the files
             travel with the program, in starter/
files        name, and where there is an address, sha256, or git_blob where only the name that git gives it is known
"""

import tomllib
from dataclasses import dataclass
from hashlib import sha1, sha256
from importlib.resources import files
from typing import Any

from shared.config import Reader


@dataclass(frozen=True)
class File:
    """One file of a corpus."""

    name: str
    address: str
    """Empty for a file that travels with the program."""
    sha256: str
    git_blob: str = ""
    """Sha1 of "blob <size>", a zero byte and the contents: how git names a file."""

    def mismatch(self, content: bytes) -> str:
        """What is wrong with the contents, or nothing."""
        if self.sha256:
            kind, expected, got = "sha256", self.sha256, sha256(content).hexdigest()
        else:
            named = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)  # git's choice
            kind, expected, got = "git blob id", self.git_blob, named.hexdigest()
        return "" if got == expected else f"its {kind} should be {expected} and is {got}"


@dataclass(frozen=True)
class Entry:
    """One named corpus."""

    name: str
    description: str
    reader: Reader
    licence: str
    source: str
    files: tuple[File, ...]

    @property
    def poems(self) -> bool:
        return self.reader != "text"


def entry(name: str, values: dict[str, Any]) -> Entry:
    """One table of the file."""
    address = values.get("address", "")
    found = tuple(
        File(each["name"], address.format(**each), each.get("sha256", ""), each.get("git_blob", ""))
        for each in values["files"]
    )
    return Entry(
        name=name,
        description=values["description"],
        reader=values["reader"],
        licence=values["licence"],
        source=address or "this program",
        files=found,
    )


REGISTRY = {
    name: entry(name, values)
    for name, values in tomllib.loads(files("shared.corpora").joinpath("registry.toml").read_text("utf-8")).items()
}
"""Name -> entry, in the order in which they are listed."""
