"""`sample` with a model of Chinese poems: verse by verse, in forms, as acrostics, with copied lines marked."""

import pytest

from runner import sample, train
from runner.cli import parse
from runner.poems import show_poems
from shared.config import CorpusConfig
from shared.corpora import Corpus, load_corpus
from shared.errors import ConfigError
from shared.verse import verses

TRADITIONAL = "紅豆生南國，春來發幾枝。願君多採擷，此物最相思。\n空山不見人，但聞人語響。返景入深林，復照青苔上。\n"
SIZES = ["--hidden-size", "12", "--batch-size", "2", "--seq-length", "26", "--max-steps", "3", "--length", "4"]


@pytest.fixture(scope="module")
def poet(tmp_path_factory):
    """A run that has seen a few traditional poems, a few times."""
    folder = tmp_path_factory.mktemp("poet")
    (folder / "poems.txt").write_text(TRADITIONAL * 8, "utf-8")
    corpus = ["--corpus", str(folder / "poems.txt"), "--held-out", "0"]
    assert train.run(parse([*corpus, *SIZES, "--run-dir", str(folder / "run"), "--device", "cpu"])) == 0
    return folder


def write(poet, capsys, *options):
    """What `sample` prints: the poems, and everything else."""
    assert sample.run(parse(["sample", "--checkpoint", str(poet / "run"), "--device", "cpu", *options])) == 0
    shown = " ".join(capsys.readouterr().out.splitlines(keepends=True)).replace("\n ", "\n")
    notes = [line for line in shown.split("\n") if " " in line.removesuffix(" *")]
    poems = [line for line in shown.rstrip("\n").split("\n") if line not in notes]
    return "\n".join(poems).split("\n\n"), "\n".join(notes)


@pytest.mark.parametrize("form", ["5x4", "7x4", "5x8", "7x8"])
def test_a_poem_in_a_form_is_printed_verse_by_verse(poet, capsys, form):
    poems, notes = write(poet, capsys, "--form", form, "--start-characters", "山人")
    size, lines = (int(part) for part in form.split("x"))
    assert f"{lines} lines of {size} characters" in notes
    assert [poem[0] for poem in poems] == ["山", "人"]
    for poem in poems:
        assert [len(line.removesuffix(" *")) for line in poem.split("\n")] == [size + 1] * lines


def test_an_acrostic(poet, capsys):
    (poem,), _ = write(poet, capsys, "--acrostic", "春人山林", "--form", "7x4")
    assert "".join(line[0] for line in poem.split("\n")) == "春人山林"
    assert {len(line) for line in poem.split("\n")} == {8}


def test_traditional_characters_stand_for_simplified_ones(poet, capsys):
    (first, second), notes = write(poet, capsys, "--form", "5x4", "--start-characters", "红國")
    assert first[0] == "紅"
    assert second[0] == "國"
    assert "红 is not in this model's text, which writes 紅: 紅 stands for it." in notes
    assert "國 is" not in notes
    (poem,), notes = write(poet, capsys, "--acrostic", "红国来见")
    assert "".join(line[0] for line in poem.split("\n")) == "紅國來見"
    assert notes.count("stands for it") == 4


@pytest.mark.parametrize("options", [["--start-characters", "日"], ["--acrostic", "春山人日"], ["--prompt", "Q"]])
def test_a_character_that_the_model_never_saw(poet, options):
    with pytest.raises(ConfigError, match=r"never showed: '[日Q]'"):
        sample.run(parse(["sample", "--checkpoint", str(poet / "run"), "--device", "cpu", *options]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--acrostic", "春山人"], "3 characters"),
        (["--acrostic", "春山人林", "--form", "5x8"], "8 lines"),
        (["--acrostic", "春山人林", "--prompt", "春"], "no --prompt"),
        (["--form", "5x4", "--prompt", "春，"], "without marks"),
        (["--form", "5x4", "--length", "9"], "leave --length out"),
        (["--form", "5x4", "--statistics"], "measures free ones"),
        (["--start-characters", "春", "--prompt", "山"], "exclude each other"),
    ],
)
def test_what_cannot_be_asked_for(poet, options, message):
    with pytest.raises(ConfigError, match=message):
        sample.run(parse(["sample", "--checkpoint", str(poet / "run"), "--device", "cpu", *options]))


def test_copied_lines_are_marked(capsys):
    texts = ("白日依山尽，黄河入海流。", "春眠不觉晓，处处闻啼鸟。")
    corpus = Corpus("two", True, texts, (), "", "", "", "poems")
    show_poems(["黄河入海流。春眠不觉醒，", "花落\x1b知多少。"], corpus, 0.0)
    shown = capsys.readouterr().out
    assert shown.startswith("黄河入海流。 *\n春眠不觉醒，\n\n花落␛知多少。\n")
    assert "1 of 3 lines stand in the training text, marked *" in shown


def test_held_out_lines_are_not_copied(capsys):
    corpus = load_corpus(CorpusConfig("starter-quatrains"))
    show_poems(corpus.poem_texts, corpus, 0.1)
    shown = capsys.readouterr().out
    total = sum(len(verses(poem)) for poem in corpus.poem_texts)
    marked = shown.count(" *\n")
    assert 0.85 * total < marked < 0.97 * total


def test_without_the_corpus_nothing_is_marked_and_the_reason_said(poet, capsys):
    (poet / "poems.txt").rename(poet / "elsewhere.txt")
    try:
        _, notes = write(poet, capsys, "--form", "5x4")
        assert "is not on this machine" in notes
        _, notes = write(poet, capsys, "--form", "5x4", "--no-novelty")
        assert "on this machine" not in notes
        (poet / "poems.txt").write_text("another，text。\n" * 9, "utf-8")
        _, notes = write(poet, capsys, "--form", "5x4")
        assert "is no longer the same text" in notes
    finally:
        (poet / "elsewhere.txt").rename(poet / "poems.txt")
    _, notes = write(poet, capsys, "--form", "5x4")
    assert "0 of 4 lines stand in the training text" in notes
