"""`sample --statistics`, and the same at the end of a run."""

import json
from dataclasses import replace

import pytest
from made_up import NASTY, make_run, read_page

from runner import sample, train
from runner.cli import parse
from runner.measurement import CHARACTERS, MOST_ROWS, measure, of_poems, shown, table
from runner.report import write_run_report
from shared.checkpoint import load_checkpoint
from shared.config import CorpusConfig, SamplingConfig
from shared.corpora import load_corpus
from shared.errors import ConfigError, CorpusError

SMALL = ["--hidden-size", "12", "--embedding-size", "6", "--batch-size", "8", "--seq-length", "16", "--device", "cpu"]


class Writer:
    """Writes the same after each prompt, and remembers what it was asked."""

    def __init__(self, text):
        self.text, self.asked = text, []

    def __call__(self, prompts, sampling, first):
        self.asked.append((prompts, sampling, first))
        return [prompt + self.text for prompt in prompts]


def test_enough_is_written_and_no_row_twice():
    write = Writer("a b c\n" * 10)
    corpus = load_corpus(CorpusConfig("starter-play"))
    found = measure(write, corpus, 0.1, ["x: ", "y"], SamplingConfig(length=60), [0.5, 2.0])
    assert [each["temperature"] for each in found["temperatures"]] == [0.5, 2.0]
    assert all(CHARACTERS <= each["characters"] < CHARACTERS + 128 * 60 for each in found["temperatures"])
    assert [first for _, sampling, first in write.asked if sampling.temperature == 2.0] == [0, 128, 256]
    prompts = [prompt for asked, sampling, _ in write.asked if sampling.temperature == 0.5 for prompt in asked]
    assert prompts == ["x: ", "y"] * (len(prompts) // 2)
    assert found["temperatures"][0]["role_consistency"] is None  # prompts of a running text do not count
    assert found["held_out"]["role_consistency"] == 1


def test_prompts_are_a_part_of_poems():
    corpus = load_corpus(CorpusConfig("starter-quatrains"))
    found = measure(Writer("日依山尽，黄河入海流。"), corpus, 0.1, ["白"], SamplingConfig(length=60), [1.0])
    assert found["temperatures"][0]["form_validity"] == 1


def test_a_model_that_writes_nothing_is_left_alone_in_the_end():
    write = Writer("")
    corpus = load_corpus(CorpusConfig("starter-quatrains"))
    found = measure(write, corpus, 0.1, [""], SamplingConfig(), [1.0])["temperatures"][0]
    assert sum(len(prompts) for prompts, _, _ in write.asked) == pytest.approx(MOST_ROWS, abs=128)
    assert found.pop("form_validity") == found.pop("characters") == 0
    assert set(found.values()) == {1.0, None}


def test_without_held_out_text_there_is_no_yardstick():
    corpus = load_corpus(CorpusConfig("starter-play"))
    found = measure(Writer("the cat " * 50), corpus, 0.0, [""], SamplingConfig(), [1.0])
    assert found["held_out"] is None
    assert table(found)[0] == ["1.0"]


def test_poems_are_not_waited_for():
    assert of_poems(SamplingConfig(length=400, top_k=3), 48) == SamplingConfig(length=48, top_k=3)
    assert of_poems(SamplingConfig(length=30), 48).length == 30


def test_values_as_people_read_them():
    assert [shown(None, "share"), shown(0.1234, "share"), shown(20000, "count"), shown(8.456, "bits")] == [
        "–",
        "12.3 %",
        "20,000",
        "8.46",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps whose statistics were not left out for that."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "rhyme.txt").write_text("the cat sat on the mat and the rat ran after that.\n" * 60, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runner.training.ending.SHORT", 0)
        patch.setattr("runner.training.ending.SHORT_PER_SYMBOL", 0)
        options = ["--corpus", str(folder / "rhyme.txt"), "--epochs", "2", "--run-dir", str(folder / "run"), *SMALL]
        assert train.run(parse(options)) == 0
    return folder


def test_a_run_reports_what_sample_measures(trained, capsys):
    found = json.loads((trained / "run/config.json").read_text("utf-8"))["result"]["statistics"]
    arguments = ["sample", "--statistics", "--checkpoint", str(trained / "run"), "--json", str(trained / "found.json")]
    assert sample.run(parse([*arguments, "--device", "cpu"])) == 0
    written = json.loads((trained / "found.json").read_text("utf-8"))
    assert {name: written[name] for name in found} == found
    assert [each["temperature"] for each in found["temperatures"]] == list(sample.TEMPERATURES)
    assert all(each["characters"] >= CHARACTERS for each in found["temperatures"])
    entropies = [each["word_entropy"] for each in found["temperatures"]]
    assert entropies == sorted(entropies)
    page = read_page(trained / "run/report.html").text
    output = capsys.readouterr().out
    for line in table(found)[1]:
        assert line.label in page
        assert line.meaning in page
        assert all(value in page for value in line.values)
        assert f"{line.label}: {line.meaning}" in output
    assert "held-out" in output


def test_one_temperature_alone(trained):
    path = trained / "one.json"
    options = ["--temperature", "0.7", "--length", "900", "--prompt", "the ", "--json", str(path), "--device", "cpu"]
    assert sample.run(parse(["sample", "--statistics", "--checkpoint", str(trained / "run"), *options])) == 0
    found = json.loads(path.read_text("utf-8"))
    assert [each["temperature"] for each in found["temperatures"]] == [0.7]
    assert found["length"] == 900


def test_a_short_run_stays_short(trained, tmp_path, capsys):
    options = ["--corpus", str(trained / "rhyme.txt"), "--max-steps", "2", "--run-dir", str(tmp_path / "run"), *SMALL]
    assert train.run(parse(options)) == 0
    assert "sample --statistics --checkpoint" in " ".join(capsys.readouterr().out.split())
    assert "statistics" not in json.loads((tmp_path / "run/config.json").read_text("utf-8"))["result"]
    assert "Text statistics" not in read_page(tmp_path / "run/report.html").text


def test_the_corpus_must_be_the_one(trained, tmp_path):
    checkpoint = load_checkpoint(trained / "run/best.safetensors")
    text = tmp_path / "rhyme.txt"
    checkpoint = replace(
        checkpoint, config=checkpoint.config | {"corpus": checkpoint.config["corpus"] | {"corpus": str(text)}}
    )
    with pytest.raises(CorpusError, match=r"trained on. There is neither a corpus nor a file called"):
        sample.trained_corpus(checkpoint, None)
    text.write_bytes((trained / "rhyme.txt").read_bytes())
    assert sample.trained_corpus(checkpoint, None).name == "rhyme.txt"
    text.write_text("another text altogether\n" * 99, "utf-8")
    with pytest.raises(CorpusError, match="no longer the same text"):
        sample.trained_corpus(checkpoint, None)


def test_json_needs_statistics(trained):
    with pytest.raises(ConfigError, match="--statistics"):
        sample.run(parse(["sample", "--checkpoint", str(trained / "run"), "--json", "x.json"]))


def test_a_report_escapes_what_it_is_given(tmp_path):
    make_run(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    corpus = load_corpus(CorpusConfig("starter-play"))
    found = measure(Writer("a word. "), corpus, 0.1, [""], SamplingConfig(length=9), [1.0])
    found["temperatures"][0]["temperature"] = NASTY
    config["result"]["statistics"] = found
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert "Text statistics" in read_page(write_run_report(tmp_path)).text
