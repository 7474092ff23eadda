"""A corpus is whole and verified, or absent: whatever the network, the server, the disk or another process does. The
server is on loopback; what is done to it is in its paths."""

import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from runner.__main__ import main
from shared.config import CorpusConfig
from shared.corpora import REGISTRY, download, load_corpus
from shared.corpora.registry import Entry, File
from shared.errors import CorpusError

ROOT = Path(__file__).parents[2]
CONTENT = "".join(f"line {number} of a text that is learned\n" for number in range(3000)).encode()
DIGEST = sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT at /good, and elsewhere does what the path says."""

    def do_GET(self):
        kind = self.path.strip("/").partition("/")[0]
        self.server.asked.append(kind)
        first = self.server.asked.count(kind) == 1
        if kind.isdecimal() and (first or kind == "404"):
            self.answer(int(kind), b"an error, told at length" * 10)
        elif kind in ("short", "changed", "empty"):
            damaged = {"short": CONTENT[:-500], "changed": CONTENT.swapcase(), "empty": b""}[kind]
            self.answer(200, damaged, size=len(CONTENT) if kind == "short" else len(damaged))
        elif kind == "once" and first:
            self.answer(200, CONTENT[:70_000], size=len(CONTENT))
        elif kind in ("loop", "file", "moved", "escape"):
            places = {"loop": "/loop", "file": "file:///etc/hostname", "moved": "/good", "escape": "gopher://\x1b(0/"}
            self.answer(302, b"", Location=places[kind])
        elif kind == "chunked":
            self.chunks(CONTENT[:70_000], b"")
        elif kind == "gzip":
            self.answer(200, gzip.compress(CONTENT), **{"Content-Encoding": "gzip"})
        elif kind == "drip":
            self.drip()
        elif kind == "stall":
            self.answer(200, CONTENT[:5000], size=len(CONTENT))
            self.server.wait()
        elif kind == "endless":
            self.endless()
        elif kind == "slow":
            self.slow()
        else:
            self.answer(200, CONTENT)

    def answer(self, status, content, size=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def chunks(self, *parts):
        """Without a length; the last chunk, which ends the body, never comes."""
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(parts[0]), parts[0]))
        self.close_connection = True

    def drip(self):
        """A byte now and then: never silent, never done."""
        self.answer(200, b"", size=len(CONTENT))
        for place in range(len(CONTENT)):
            self.wfile.write(CONTENT[place : place + 1])
            time.sleep(0.02)

    def slow(self):
        """Whole, in two seconds, once four have asked."""
        self.answer(200, CONTENT[:1000], size=len(CONTENT))
        while len(self.server.asked) < 4 and not self.server.closing:
            time.sleep(0.02)
        for place in range(1000, len(CONTENT), 1000):
            self.wfile.write(CONTENT[place : place + 1000])
            time.sleep(0.02)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(2**16))

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            """The other side has had enough."""

    def log_message(self, *args):
        """Quiet."""


class Server(ThreadingHTTPServer):
    """Remembers what it was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.closing = [], False

    def wait(self):
        while not self.closing:
            time.sleep(0.02)


@pytest.fixture(scope="module")
def running():
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.closing = True
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """A server, and a cache of its own in tmp_path / "cache"."""
    running.asked.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("ROSETTA_DATA_DIR", raising=False)
    monkeypatch.setattr(download, "PAUSE", 0)
    return running


def register(server, monkeypatch, kind="good", blob=False, address=""):
    """The corpus `served`, its one file at /<kind>."""
    address = address or f"http://127.0.0.1:{server.server_port}/{kind}/text.txt"
    git = sha1(b"blob %d\0" % len(CONTENT) + CONTENT, usedforsecurity=False).hexdigest()
    file = File("text.txt", address, "", git) if blob else File("text.txt", address, DIGEST)
    monkeypatch.setitem(REGISTRY, "served", Entry("served", "lines", "text", "MIT", address, (file,)))
    return address


def load():
    reports = []
    corpus = load_corpus(CorpusConfig("served"), reports.append)
    assert corpus.texts == (CONTENT.decode(),)
    return reports


def refused():
    with pytest.raises(CorpusError) as caught:
        load()
    return str(caught.value)


def held(folder):
    """All files below, hidden ones too."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------- what the server does

WORDS = {
    "404": "the server answered 404 Not Found",
    "short": "IncompleteRead(",
    "chunked": "IncompleteRead(",
    "changed": f"{len(CONTENT):,} bytes came, which are not the file that is meant: its ",
    "empty": " 0 bytes came, which are not the file that is meant: its ",
    "loop": "Exceeded 30 redirects",
    "file": "No connection adapters were found for 'file:///etc/hostname'",
    "escape": "No connection adapters were found for",
}


@pytest.mark.parametrize("blob", [False, True], ids=["sha256", "git blob"])
@pytest.mark.parametrize("kind", WORDS)
def test_what_is_not_the_file_is_refused_and_not_kept(server, tmp_path, monkeypatch, kind, blob):
    address = register(server, monkeypatch, kind, blob)
    message = refused()
    assert WORDS[kind] in message
    assert f"Cannot fetch {address} (tried 2 times): " in message
    assert "Nothing of it is kept." in message
    assert "served/text.txt and name that folder with --data-dir or ROSETTA_DATA_DIR" in message
    assert server.asked.count(kind) == (62 if kind == "loop" else 2)
    assert held(tmp_path) == []


@pytest.mark.parametrize("kind", ["500", "429", "503", "once", "moved"])
def test_what_passes_is_asked_for_again(server, tmp_path, monkeypatch, kind):
    register(server, monkeypatch, kind)
    assert [report.split(":")[0] for report in load()] == ["Fetching served, file 1 of 1"]
    assert server.asked == ([kind, "good"] if kind == "moved" else [kind, kind])
    assert held(tmp_path / "cache") == ["text.txt"]
    assert load() == []
    assert len(server.asked) == 2


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_a_server_that_is_silent_or_drips_is_given_up(server, tmp_path, monkeypatch, kind):
    register(server, monkeypatch, kind)
    monkeypatch.setattr(download, "TIMEOUT", 0.8)
    started = time.monotonic()
    assert {"stall": "no answer within 0.8 s", "drip": "too slow: "}[kind] in refused()
    assert time.monotonic() - started < 20  # on an idle machine 2
    assert held(tmp_path) == []


def test_what_a_proxy_compresses_is_the_same(server, monkeypatch):
    register(server, monkeypatch, "gzip")
    load()
    assert server.asked == ["gzip"]


def test_a_body_without_an_end_has_one(server, tmp_path, monkeypatch):
    register(server, monkeypatch, "endless")
    monkeypatch.setattr(download, "LARGEST", 10**6)
    assert "more than 1,000,000 bytes, and no end" in refused()
    assert held(tmp_path) == []


def test_a_name_that_nobody_knows(server, tmp_path, monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    register(server, monkeypatch, address="http://nobody.invalid/text.txt")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "Name or service not known" in refused()
    assert held(tmp_path) == []


def test_nobody_answers(server, tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        register(server, monkeypatch, address=f"http://127.0.0.1:{nobody.getsockname()[1]}/text.txt")
        assert "Connection refused" in refused()
    assert held(tmp_path) == []


# -------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("blob", [False, True], ids=["sha256", "git blob"])
@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT.replace(b"7", b"8"), b""], ids=["cut", "changed", "empty"])
def test_the_cache_is_verified_at_every_reading_and_mended(server, tmp_path, monkeypatch, blob, damage):
    register(server, monkeypatch, blob=blob)
    load()
    path = tmp_path / "cache/rosetta-rnn/served/text.txt"
    path.write_bytes(damage)
    damaged, fetching = load()
    assert f"{path} was damaged since it was fetched (its " in damaged
    assert fetching.startswith("Fetching served")
    assert path.read_bytes() == CONTENT
    assert server.asked == ["good", "good"]


def test_a_damaged_cache_is_not_used_without_a_network(server, tmp_path, monkeypatch):
    register(server, monkeypatch)
    load()
    (tmp_path / "cache/rosetta-rnn/served/text.txt").write_bytes(CONTENT[:-1])
    register(server, monkeypatch, "404")
    assert "404" in refused()


def test_a_full_disk_is_said_and_nothing_stays(server, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    register(server, monkeypatch)
    monkeypatch.setattr(os, "fsync", full)
    message = refused()
    assert "text.txt was fetched and is whole, but the cache cannot hold it." in message
    assert "No space left on device" in message
    assert "XDG_CACHE_HOME" in message
    assert "--data-dir" in message
    assert held(tmp_path) == []


@pytest.mark.parametrize("place", ["cache", "cache/rosetta-rnn", "cache/rosetta-rnn/served"])
def test_a_cache_that_is_a_file(server, tmp_path, monkeypatch, place):
    register(server, monkeypatch)
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine", "utf-8")
    assert "the cache cannot hold it. Cannot write" in refused()
    assert path.read_text("utf-8") == "mine"


def test_a_cache_that_is_read_only(server, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    register(server, monkeypatch)
    monkeypatch.setattr("tempfile.mkstemp", refuse)  # not chmod, which root does not heed
    assert "Permission denied" in refused()
    assert held(tmp_path) == []


def test_a_folder_under_the_file_s_name(server, tmp_path, monkeypatch):
    register(server, monkeypatch)
    (tmp_path / "cache/rosetta-rnn/served/text.txt").mkdir(parents=True)
    assert "Is a directory" in refused()


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(server, tmp_path, monkeypatch):
    register(server, monkeypatch)
    folder = tmp_path / "cache/rosetta-rnn/served"
    folder.mkdir(parents=True)
    old, new, other = (folder / name for name in (".text.txt.aaaaaaaa.part", ".text.txt.bbbbbbbb.part", "mine.part"))
    for path in (old, new, other):
        path.write_bytes(CONTENT[:100])
    for path in (old, other):
        os.utime(path, (time.time() - 2 * download.ABANDONED,) * 2)
    load()
    assert held(folder) == [new.name, "mine.part", "text.txt"]


def test_of_several_files_those_that_came_are_kept(server, tmp_path, monkeypatch):
    register(server, monkeypatch)
    entry = REGISTRY["served"]
    missing = replace(entry.files[0], name="more.txt", address=entry.files[0].address.replace("/good/", "/404/"))
    monkeypatch.setitem(REGISTRY, "served", replace(entry, files=(entry.files[0], missing)))
    for _ in range(2):
        assert "404" in refused()
    assert server.asked == ["good", "404", "404", "404", "404"]
    assert held(tmp_path) == ["text.txt"]


# ------------------------------------------------------------------------------------------ the command, the processes


def test_the_command_says_it_without_a_traceback(server, monkeypatch, capsys):
    register(server, monkeypatch, "escape")
    assert main(["corpora", "fetch", "served"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Cannot fetch http://127.0.0.1:")
    assert "\x1b" not in said
    register(server, monkeypatch)
    assert main(["corpora", "fetch", "served"]) == 0
    assert "every file verified" in " ".join(capsys.readouterr().out.split())


def test_a_bar_is_shown_on_a_terminal(server, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    monkeypatch.setattr("rich.console.Console.file", property(lambda self: shown, lambda self, value: None))
    register(server, monkeypatch)
    load()
    assert "text.txt" in shown.getvalue()
    assert "kB" in shown.getvalue()


FETCH = """
import sys
sys.path[:0] = [{root!r}]
from shared.corpora import REGISTRY
from shared.corpora.registry import Entry, File
file = File("text.txt", {address!r}, {digest!r})
REGISTRY["served"] = Entry("served", "lines", "text", "MIT", {address!r}, (file,))
from runner.__main__ import main
sys.exit(main(["corpora", "fetch", "served"]))
"""


def start(address):
    """A process that fetches."""
    script = FETCH.format(root=str(ROOT), address=address, digest=DIGEST)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(server, count):
    limit = time.monotonic() + 60
    while len(server.asked) < count:
        assert time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(0.3)  # into the body


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME and signals: NOT TESTED here")
def test_two_fetch_at_once_one_is_killed_and_one_interrupted(server, tmp_path, monkeypatch):
    address = register(server, monkeypatch, "slow")
    processes = [start(address) for _ in range(4)]
    killed, interrupted, *others = processes
    try:
        wait_for(server, 4)
        killed.kill()
        interrupted.send_signal(signal.SIGINT)
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 130, 0, 0]
    assert said[1][1] == "interrupted\n"
    assert all("every file verified" in " ".join(out.split()) and not err for out, err in said[2:])
    assert held(tmp_path / "cache") == ["text.txt"]
    assert (tmp_path / "cache/rosetta-rnn/served/text.txt").read_bytes() == CONTENT
    assert load() == []
    assert len(others) == 2
