"""`corpora`: what is shown of a text."""

import os
import re

import pytest

from runner import corpora
from runner.cli import Corpora, parse
from runner.console import console
from shared.config import CorpusConfig
from shared.corpora import REGISTRY
from shared.errors import ConfigError


def shown(*arguments):
    """What is printed, without folds."""
    options = parse(["corpora", *map(str, arguments)])
    assert isinstance(options, Corpora)
    with console.capture() as capture:
        assert corpora.run(options) == 0
    return capture.get()


def row(name, text):
    """A line of the table, without the spaces of its columns."""
    found = re.search(rf"^{name}  +(.*)$", text, re.MULTILINE)
    assert found, text
    return found[1].strip()


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(console, "width", 200)


def test_every_corpus_is_listed():
    text = shown()
    assert all(name in text for name in REGISTRY)


def test_a_running_text_is_described(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("one two\nthree\n\n" * 20, "utf-8")
    text = shown("show", path)
    assert row("texts", text) == "one running text"
    assert row("characters", text) == "300, 9 different"
    assert row("vocabulary", text) == "9 symbols: 9 characters"
    assert row("lines", text) == "60"
    assert row("words", text) == "60"
    assert row("most frequent", text).startswith("line end 20.0% · e 20.0% · o 13.3%")
    assert row("training", text) == "270 characters"
    assert row("held out", text) == "30 characters"
    assert text.rstrip().endswith("one two\nthree\none two\nthree\none two\nthree")


def test_poems_are_described():
    text = shown("show", "starter-quatrains", "--held-out", 0.2)
    assert re.fullmatch(r"\d{3} poems", row("texts", text))
    assert row("length of a poem", text).startswith("24 to 32 characters, median ")
    shares = [float(each) for each in re.findall(r"([\d.]+)% in lines", row("form", text))]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert min(shares) > 20
    seen, unseen = (int(row(name, text).split()[0]) for name in ("training", "held out"))
    assert unseen == -(-(seen + unseen) // 5)


def test_subwords_and_rare_characters_are_described():
    text = shown("show", "starter-play", "--subwords", 300)
    assert row("vocabulary", text) == "300 symbols: 60 characters, 240 subwords"
    assert re.fullmatch(r"[\d,]+ characters in [\d,]+ tokens, [12]\.\d\d a token", row("training", text))
    text = shown("show", "starter-quatrains", "--minimum-count", 3)
    assert "4 special; characters seen less than 3 times are one symbol" in row("vocabulary", text)
    text = shown("show", "starter-play", "--normalize", "letters", "--held-out", 0)
    assert row("vocabulary", text) == "27 symbols: 27 characters"
    assert row("held out", text) == "nothing: measured on the same"


def test_nothing_of_a_file_steers_the_terminal(tmp_path):
    path = tmp_path / "[red]mine\u202e.txt"
    path.write_text("甲\u202e\u200d:\n[bold]乙\f\u009b31m\n" * 9, "utf-8")
    text = shown("show", path)
    assert not any(each in text for each in "\f\u009b\u202e\u200d")
    assert "[bold]" in text


def test_a_name_is_needed():
    for action in ("show", "fetch", "verify"):
        with pytest.raises(ConfigError, match="needs a name"):
            corpora.run(Corpora(action, ""))  # type: ignore[arg-type]


@pytest.mark.skipif(not os.environ.get("ROSETTA_DATA_DIR"), reason="the real named corpora are NOT TESTED")
@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in ("tang-large", "tang-poems")])
def test_every_real_corpus_is_shown(name):
    text = shown("show", name)
    assert row("characters", text)
    assert CorpusConfig(name).corpus in text
