"""Files of every form, the named corpora, and the split."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import CorpusConfig, Reader
from shared.corpora import REGISTRY, Corpus, at_hand, load_corpus, split
from shared.corpora.registry import Entry, File
from shared.errors import CorpusError

PLAY = "TANSY:\nShall I polish the pound?\n\nHANNE:\nThe glass.\n" * 3
VERSES = ("残雪檐头滴，泥炉火渐微。", "阿婆翻历本，窗外燕先归。", "土里谁翻枕，雷敲第一声。")


def write(folder: Path, content: str | bytes, name: str = "mine.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(path: Path, reader: Reader = "auto") -> Corpus:
    return load_corpus(CorpusConfig(str(path), reader))


def refused(path: Path | str, reader: Reader = "auto", data_dir: Path | None = None) -> str:
    with pytest.raises(CorpusError) as caught:
        load_corpus(CorpusConfig(str(path), reader, data_dir))
    return str(caught.value)


# Readers


def test_a_text_is_kept_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, PLAY)
    corpus = load(path)
    assert corpus.texts == (PLAY,)
    assert (corpus.name, corpus.poems, corpus.titles, corpus.reader) == ("mine.txt", False, (), "text")
    assert corpus.sha256 == sha256(PLAY.encode()).hexdigest()
    assert corpus.source == str(path)


def test_line_ends_and_the_byte_order_mark_are_removed(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbf\tfour\x0c"
    corpus = load(write(tmp_path, content))
    assert corpus.texts == ("one\ntwo\nthree\n\ufeff\tfour\x0c",)
    assert corpus.sha256 == sha256(content).hexdigest()


def test_poems_one_a_line(tmp_path: Path) -> None:
    corpus = load(write(tmp_path, "\r\n".join(["", f" {VERSES[0]}", "  ", VERSES[1] + "\u3000"])))
    assert corpus.texts == VERSES[:2]
    assert (corpus.poems, corpus.titles, corpus.reader) == (True, (), "poems")


def test_poems_in_blocks(tmp_path: Path) -> None:
    wrapped = f"\n{VERSES[0]}\n {VERSES[1]}\n \t\n\n{VERSES[2]}\r\n\r\nA rhyme\nof two lines"
    corpus = load(write(tmp_path, wrapped), "blocks")
    assert corpus.texts == (VERSES[0] + VERSES[1], VERSES[2], "A rhyme\nof two lines")
    assert (corpus.poems, corpus.titles, corpus.reader) == (True, (), "blocks")


def test_titled_poems(tmp_path: Path) -> None:
    lines = [f"立春:{VERSES[0]}", f"惊蛰：其一 : 又:{VERSES[1]}", f"无题：{VERSES[2]}", "空:"]
    corpus = load(write(tmp_path, "\n".join(lines)), "titled")
    assert corpus.titles == ("立春", "惊蛰：其一", "无题")
    assert corpus.texts == (VERSES[0], f"又:{VERSES[1]}", VERSES[2])
    full_width = load(write(tmp_path, f"立春：甲:{VERSES[0]}\n惊蛰：{VERSES[1]}"), "titled")
    assert full_width.texts == (f"甲:{VERSES[0]}", VERSES[1])
    assert load(write(tmp_path, "a poem\ntitle:another"), "titled").titles == ("", "title")


def test_json_poems(tmp_path: Path) -> None:
    items = [
        {"title": "a", "author": "x", "paragraphs": [VERSES[0], VERSES[1]], "id": 3},
        {"paragraphs": VERSES[2]},
        {"title": None, "paragraphs": ["one\r\n", "two"]},
        {"title": "empty", "paragraphs": []},
        "plain",
    ]
    corpus = load(write(tmp_path, json.dumps(items), "p.JSON"))
    assert corpus.texts == (VERSES[0] + VERSES[1], VERSES[2], "one\ntwo", "plain")
    assert corpus.titles == ("a", "", "", "")
    assert (corpus.poems, corpus.reader) == (True, "json")


LONG = "一" * 150 + "，" + "二" * 150 + "。"


@pytest.mark.parametrize(
    ("content", "reader"),
    [
        (PLAY, "text"),
        ("NAME: a line\nOTHER: another line.\n", "text"),
        ("甲：你来。\n乙：我不来。\n", "text"),
        ("甲：你来看这大雪。\n乙：我不来，天太冷。\n" * 3, "text"),
        ("\n".join(VERSES), "poems"),
        (VERSES[0], "text"),
        (f"{VERSES[0]}\n{LONG}\n", "text"),
        ("\n".join([*VERSES * 7, "not a verse"]), "poems"),
        ("\n".join([*VERSES * 6, "not a verse"]), "text"),
        (f"立春:{VERSES[0]}\n惊蛰：{VERSES[1]}\n", "titled"),
        (f"{'题' * 40}:{VERSES[0]}\n惊蛰：{VERSES[1]}\n", "titled"),
        (f"{'题' * 41}:{VERSES[0]}\n惊蛰：{VERSES[1]}\n", "text"),
        (f"立春:{VERSES[0]}", "text"),
    ],
)
def test_the_reader_is_chosen_by_what_lines_look_like(tmp_path: Path, content: str, reader: str) -> None:
    assert load(write(tmp_path, content)).reader == reader


def test_a_reader_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join(VERSES))
    assert load(path, "text").texts == ("\n".join(VERSES),)
    assert load(write(tmp_path, PLAY), "poems").texts[:2] == ("TANSY:", "Shall I polish the pound?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty or blank"),
        (b" \n\t\r\n \xe3\x80\x80\n", "empty or blank"),
        (b"\xef\xbb\xbf", "empty or blank"),
        (b"one\ntwo\0", "control byte 0x00 at line 2, byte offset 7"),
        (b"one\r\rt\x1bwo", "control byte 0x1b at line 3, byte offset 6"),
        (b"a\x0bb", "0x0b"),
        ("红山".encode("utf-16"), "not in UTF-8: byte 0xff at line 1, byte offset 0"),
        (b"\xef\xbb\xbfone\ntw" + "红".encode("gb18030"), "byte 0xba at line 2, byte offset 9. Save it as UTF-8"),
        (b"cut \xe7\xba", "byte 0xe7 at line 1, byte offset 4"),
        (b"surrogate \xed\xa0\x80", "byte 0xed"),
        (b"aaaaaa", "one character only, 'a'"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    text = refused(path)
    assert message in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ('{"paragraphs": ["a"]}', "JSON list of poems, but holds dict"),
        ('["ab", 3]', "poem 1 (counted from 0), must be a string or an object"),
        ('["ab", "cd", {"title": "x"}]', "poem 2 (counted from 0), must be"),
        ('[{"paragraphs": ["a", 1]}]', "poem 0 (counted from 0), must be"),
        ('[{"title": 5, "paragraphs": "ab"}]', "poem 0 (counted from 0), must be"),
        ('["a\\u0000b"]', "poem 0 (counted from 0), holds '\\x00'"),
        ('["ab", "a\\ud800"]', "poem 1 (counted from 0), holds '\\ud800'"),
        ("[]", "empty or blank"),
        ('["", " ", {"paragraphs": []}]', "empty or blank"),
        ('["aa", "a"]', "one character only"),
    ],
)
def test_json_that_is_no_list_of_poems_is_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in refused(write(tmp_path, content, "p.json"))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in refused(tmp_path)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, PLAY)
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert f"Cannot read {path}: Permission denied" in refused(path)


@pytest.mark.parametrize("name", ["tang-poem", "\0", "x" * 5000])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    message = refused(name)
    assert "neither a corpus nor a file" in message
    assert all(known in message for known in REGISTRY)
    assert ("Did you mean tang-poems" in message) == (name == "tang-poem")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=2))
def test_any_text_is_read_unchanged(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("any"), text)
    if text.strip() and len(set(text)) > 1 and not text.startswith("\ufeff"):
        assert load(path, "text").texts == (text,)


# The split


def make(texts: tuple[str, ...], poems: bool) -> Corpus:
    return Corpus("made", poems, texts, (), "", "", "", "poems" if poems else "text")


def test_the_last_tenth_of_a_text_is_held_out() -> None:
    text = "".join(map(chr, range(100, 205)))
    assert split(make((text,), poems=False)) == ((text[:94],), (text[94:],))


@given(st.text(min_size=11))
def test_a_split_text_loses_nothing(text: str) -> None:
    (training,), (held_out,) = split(make((text,), poems=False))
    assert training + held_out == text
    assert len(held_out) == -(-len(text) // 10)


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.2, 6), (0.3, 9), (0.07, 3), (0.5, 15)])
def test_a_share_is_taken_as_it_is_written(share: float, count: int) -> None:
    texts = tuple(map(str, range(30)))  # 30 * 0.1, 0.2 and 0.3 are not whole in binary
    assert len(split(make(texts, poems=True), share)[1]) == count
    (training,), (held_out,) = split(make(("x" * 30,), poems=False), share)
    assert (len(training), len(held_out)) == (30 - count, count)


@pytest.mark.parametrize("poems", [False, True])
def test_without_a_share_the_text_is_held_out_that_is_learned(poems: bool) -> None:
    corpus = make(("abcdef", "gh") if poems else ("abcdefgh",), poems)
    assert split(corpus, 0) == (corpus.texts, corpus.texts)


def test_a_text_too_short_to_be_split_is_refused() -> None:
    with pytest.raises(CorpusError, match="10 characters: too few"):
        split(make(("abcdefghij",), poems=False))


@given(st.lists(st.text(min_size=1, max_size=3), min_size=2).filter(lambda texts: len(set(texts)) > 1).map(tuple))
def test_split_poems_stand_on_one_side_in_order(texts: tuple[str, ...]) -> None:
    training, held_out = split(make(texts, poems=True))
    assert not set(training) & set(held_out)
    assert len(set(held_out)) == -(-len(set(texts)) // 10)
    assert training == tuple(text for text in texts if text in training)
    assert held_out == tuple(text for text in texts if text in held_out)
    assert len(training) + len(held_out) == len(texts)
    assert set(split(make(texts[::-1], poems=True))[1]) == set(held_out)


def test_the_rule_of_the_split_never_changes() -> None:
    """Held-out figures of different versions stay comparable."""
    assert split(make(tuple(map(str, range(25))), poems=True))[1] == ("8", "9", "13")


def test_one_poem_cannot_be_split() -> None:
    with pytest.raises(CorpusError, match="one poem only"):
        split(make(("ab", "ab"), poems=True))


# Named corpora


@pytest.mark.parametrize("name", ["starter-play", "starter-quatrains"])
def test_starter_texts_need_neither_network_nor_folder(name: str, tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig(name, data_dir=tmp_path))
    assert (corpus.name, corpus.poems) == (name, REGISTRY[name].poems)
    assert all(split(corpus))
    assert corpus.licence.startswith("MIT")


def test_starter_quatrains_are_quatrains() -> None:
    corpus = load_corpus(CorpusConfig("starter-quatrains"))
    assert len(corpus.texts) == len(corpus.titles) >= 400
    assert {len(text) for text in corpus.texts} == {24, 32}


def test_every_file_from_elsewhere_has_a_hash_and_a_fixed_address() -> None:
    for entry in REGISTRY.values():
        assert entry.description
        assert entry.licence
        for file in entry.files:
            assert bool(file.address) == bool(file.sha256 or file.git_blob)
            if file.address:
                assert (len(bytes.fromhex(file.sha256)), len(bytes.fromhex(file.git_blob))) in ((32, 0), (0, 20))
                assert file.address.startswith("https://")
                assert any(len(part) == 40 for part in file.address.split("/")), "not fixed to a commit"
    assert len({file.address for file in REGISTRY["tang-poems"].files}) == 58


def test_a_named_corpus_has_its_own_reader() -> None:
    assert load_corpus(CorpusConfig("starter-play", "text")).reader == "text"
    assert "starter-play is always read as text" in refused("starter-play", "poems")


CONTENTS = {"one.json": b'["ab", "cd"]', "two.json": b'[{"title": "t", "paragraphs": ["e", "f"]}]'}


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENTS, or damages them in the way that the path asks for."""

    def do_GET(self) -> None:
        _, kind, name = self.path.split("/")
        content = CONTENTS[name]
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(404 if kind == "missing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        damaged = {"short": content[:-3], "changed": content.upper()}
        self.wfile.write(damaged.get(kind, content))

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def named(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A corpus called `little`, served on loopback; the cache is tmp_path / "cache"."""
    base = f"http://127.0.0.1:{server.server_port}/good"
    files = tuple(File(name, f"{base}/{name}", sha256(content).hexdigest()) for name, content in CONTENTS.items())
    entry = Entry("little", "two files", "json", "MIT", base, files)
    monkeypatch.setitem(REGISTRY, "little", entry)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr("shared.corpora.download.PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("ROSETTA_DATA_DIR", raising=False)
    return entry


def damage(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server damage what it sends."""
    entry = REGISTRY["little"]
    files = tuple(replace(file, address=file.address.replace("/good/", f"/{kind}/")) for file in entry.files)
    monkeypatch.setitem(REGISTRY, "little", replace(entry, files=files))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_named_corpus_is_fetched_once(named: Entry, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    reports: list[str] = []
    corpus = load_corpus(CorpusConfig("little"), reports.append)
    assert (corpus.texts, corpus.titles) == (("ab", "cd", "ef"), ("", "", "t"))
    assert corpus.sha256 == sha256(b"".join(CONTENTS.values())).hexdigest()
    assert [report.split(":")[0] for report in reports] == [f"Fetching little, file {k} of 2" for k in (1, 2)]
    assert kept(tmp_path / "cache" / "rosetta-rnn" / "little") == sorted(CONTENTS)
    assert load_corpus(CorpusConfig("little"), reports.append) == corpus
    assert len(server.asked) == len(reports) == 2  # type: ignore[attr-defined]


def test_a_damaged_cache_is_mended(named: Entry, tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig("little"))
    (tmp_path / "cache" / "rosetta-rnn" / "little" / "one.json").write_bytes(b'["xy"]')
    assert load_corpus(CorpusConfig("little")) == corpus


@pytest.mark.parametrize("kind", ["short", "changed", "missing"])
def test_a_bad_download_is_refused_and_not_kept(
    named: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    damage(kind, monkeypatch)
    message = refused("little")
    assert f"/{kind}/one.json" in message
    assert "--data-dir" in message
    assert kept(tmp_path / "cache") == []


def test_without_a_network_the_address_and_the_way_out_are_named(
    named: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}/one.json"
        monkeypatch.setitem(REGISTRY, "little", replace(named, files=(replace(named.files[0], address=address),)))
        message = refused("little")
    assert address in message
    assert "--data-dir" in message
    assert "little/one.json" in message
    assert kept(tmp_path / "cache") == []


def test_a_silent_server_is_given_up(named: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.corpora.download.TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.rfile.read(1))
    assert "no answer within 0.2 s" in refused("little")


def copies(folder: Path) -> Path:
    (folder / "little").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / "little" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("way", ["option", "variable"])
def test_copies_are_used_instead_of_the_network(
    named: Entry, server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder = copies(tmp_path / "copies")
    monkeypatch.setenv("ROSETTA_DATA_DIR", str(folder if way == "variable" else tmp_path))
    corpus = load_corpus(CorpusConfig("little", data_dir=None if way == "variable" else folder))
    assert corpus.texts == ("ab", "cd", "ef")
    assert server.asked == []  # type: ignore[attr-defined]


def test_a_missing_copy_is_named(named: Entry, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    folder = copies(tmp_path)
    (folder / "little" / "two.json").unlink()
    message = refused("little", data_dir=folder)
    assert f"Expected a copy at {folder / 'little' / 'two.json'}" in message
    assert server.asked == []  # type: ignore[attr-defined]


def test_a_copy_with_another_hash_is_refused_and_left_alone(named: Entry, tmp_path: Path) -> None:
    path = copies(tmp_path) / "little" / "one.json"
    path.write_bytes(b'["xy"]')
    message = refused("little", data_dir=tmp_path)
    expected = (str(path), named.files[0].sha256, sha256(b'["xy"]').hexdigest(), named.files[0].address, "edited")
    assert all(part in message for part in expected)
    assert path.read_bytes() == b'["xy"]'


@pytest.fixture
def blob(named: Entry, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The same corpus, whose first file is known by the name that git gives it alone."""
    content = CONTENTS["one.json"]
    name = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    first = replace(named.files[0], sha256="", git_blob=name)
    entry = replace(named, files=(first, named.files[1]))
    monkeypatch.setitem(REGISTRY, "little", entry)
    return entry


def test_the_blob_id_is_git_s() -> None:
    """As `git hash-object` says of a file with "hello" and a line end."""
    file = File("hello", "", "", "ce013625030ba8dba906f756967f9e9ca394464a")
    assert file.mismatch(b"hello\n") == ""
    assert file.mismatch(b"hello\r\n").startswith(
        "its git blob id should be ce013625030ba8dba906f756967f9e9ca394464a and is"
    )


def test_a_blob_is_fetched_and_a_damaged_one_mended(blob: Entry, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig("little"))
    (tmp_path / "cache" / "rosetta-rnn" / "little" / "one.json").write_bytes(b'["xy"]')
    assert load_corpus(CorpusConfig("little")) == load_corpus(CorpusConfig("little")) == corpus
    assert [path.split("/")[-1] for path in server.asked] == ["one.json", "two.json", "one.json"]  # type: ignore[attr-defined]


def test_another_blob_is_refused_and_not_kept(blob: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage("changed", monkeypatch)
    message = refused("little")
    assert f"its git blob id should be {blob.files[0].git_blob} and is" in message
    assert kept(tmp_path / "cache") == []


def test_a_copy_is_checked_by_its_blob_id(blob: Entry, tmp_path: Path) -> None:
    folder = copies(tmp_path)
    assert load_corpus(CorpusConfig("little", data_dir=folder)).texts == ("ab", "cd", "ef")
    (folder / "little" / "one.json").write_bytes(b'["ab", "ce"]')
    assert f"its git blob id should be {blob.files[0].git_blob}" in refused("little", data_dir=folder)


def test_another_text_is_not_tang_large(tmp_path: Path) -> None:
    (tmp_path / "tang-large").mkdir()
    (tmp_path / "tang-large" / "poems.txt").write_text(f"立春:{VERSES[0]}\n", "utf-8")
    message = refused("tang-large", data_dir=tmp_path)
    assert "its git blob id should be 54f26ca3137309652337fc0ad11728a1495d7c6c and is" in message
    assert "fetch it again from https://raw.githubusercontent.com/nndl/exercise/" in message


needs_copies = pytest.mark.skipif(
    not os.environ.get("ROSETTA_DATA_DIR"),
    reason="the real named corpora are NOT TESTED: set ROSETTA_DATA_DIR to a folder with copies, <name>/<file>",
)


@needs_copies
@pytest.mark.parametrize(
    ("name", "texts", "characters", "distinct"),
    [
        ("tiny-shakespeare", 1, 1_115_394, 65),
        ("time-machine", 1, 178_979, 70),
        ("tang-poems", 57_607 - 4, 3_668_082, 9_588),
        ("tang-300", 366, 25_239, 2_573),
        ("tang-small", 168, 15_750, 2_507),
        ("tang-lines", 72_514, 870_168, 5_386),
        ("water-margin", 1, 885_266, 4_160),
    ],
)
def test_the_real_corpora(name: str, texts: int, characters: int, distinct: int) -> None:
    corpus = load_corpus(CorpusConfig(name))
    assert len(corpus.texts) == texts
    assert sum(map(len, corpus.texts)) == characters
    assert len(set("".join(corpus.texts))) == distinct
    assert all(split(corpus))


@needs_copies
def test_the_forms_of_the_real_corpora() -> None:
    corpora = {
        name: load_corpus(CorpusConfig(name)) for name in ("tang-300", "tang-small", "tang-lines", "water-margin")
    }
    texts = {name: corpus.poem_texts for name, corpus in corpora.items()}
    lengths = {name: (min(map(len, each)), max(map(len, each))) for name, each in texts.items()}
    assert lengths["tang-300"] == (24, 960)
    assert lengths["tang-small"] == (16, 720)
    assert lengths["tang-lines"] == (12, 12)
    assert corpora["tang-300"].titles[0] == "在嶽詠蟬"
    assert all("\n" not in text for name in ("tang-300", "tang-small", "tang-lines") for text in texts[name])
    assert "".join(texts["tang-lines"]).count("□") == 253
    assert texts["water-margin"][0].count("□") == 163
    assert "\r" not in texts["water-margin"][0]


@needs_copies
def test_a_large_file_of_titled_poems(data_dir: Path) -> None:
    corpus = load(data_dir / "tang-large-standin" / "poems_standin.txt")
    assert (corpus.reader, len(corpus.texts), len(corpus.titles)) == ("titled", 47_878, 47_878)
    assert sum(map(len, corpus.texts)) == 3_668_340
    assert corpus.titles[0] == "帝京篇十首"


def test_what_is_at_hand_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ROSETTA_DATA_DIR", raising=False)
    (tmp_path / "mine.txt").write_text("text", "utf-8")
    assert at_hand(CorpusConfig("starter-quatrains"))
    assert at_hand(CorpusConfig(str(tmp_path / "mine.txt")))
    assert not at_hand(CorpusConfig(str(tmp_path / "yours.txt")))
    assert not at_hand(CorpusConfig("tang-300"))
    assert not at_hand(CorpusConfig("tang-300", data_dir=tmp_path))
    (tmp_path / "tang-300").mkdir()
    (tmp_path / "tang-300/tang_300.json").write_text("[]", "utf-8")
    assert at_hand(CorpusConfig("tang-300", data_dir=tmp_path))
    monkeypatch.setenv("ROSETTA_DATA_DIR", str(tmp_path))
    assert at_hand(CorpusConfig("tang-300"))
