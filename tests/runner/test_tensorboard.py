"""`--tensorboard`: event files are read back, record by record."""

import json
import struct
from collections import Counter

import pytest

from runner import train
from runner.cli import parse
from runner.reporting.tensorboard import EventFiles
from runner.resume import resumed
from shared.errors import UserError

SMALL = ["--hidden-size", "12", "--embedding-size", "6", "--batch-size", "8", "--seq-length", "16", "--device", "cpu"]
COMMON = [*SMALL, "--length", "10", "--patience", "0", "--tensorboard"]


def events(folder):
    """All events in the order in which TensorBoard reads them; a record is length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        place = 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            found.append(Event.FromString(content[place + 12 : place + 12 + size]))
            place += 16 + size
    return found


def shown(folder):
    """(step, tag) -> value as TensorBoard shows it: a restart takes back what was logged from its step on."""
    values = {}
    for event in events(folder):
        if event.HasField("session_log"):
            values = {place: value for place, value in values.items() if place[0] < event.step}
        for each in event.summary.value:
            text = each.tensor.string_val
            assert (event.step, each.tag) not in values, "logged twice"
            values[event.step, each.tag] = text[0].decode() if text else each.simple_value
    return values


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "rhyme.txt"
    path.write_text("the cat sat on the mat and the rat ran after that.\n" * 40, "utf-8")
    return ["--corpus", str(path)]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_everything_that_is_logged_is_there(tmp_path, corpus):
    folder = tmp_path / "run"
    assert train.run(parse([*corpus, *COMMON, "--epochs", "2", "--run-dir", str(folder)])) == 0
    values, lines = shown(folder / "tensorboard"), metrics(folder)
    assert Counter(line["split"] for line in lines).keys() == {"train", "held-out"}
    for line in lines:
        for name in line.keys() - {"step", "epoch", "split", "seconds"}:
            assert values.pop((line["step"], f"{name}/{line['split']}")) == pytest.approx(line[name], rel=1e-6)
    samples = (folder / "samples.txt").read_text("utf-8")
    assert len(values) == 5
    for (step, tag), text in values.items():
        assert step == lines[-1]["step"]
        temperature = tag.removeprefix("sample/temperature_").removesuffix("/text_summary")
        assert text.startswith("    ")
        assert f"temperature {temperature}\n" + text.replace("\n    ", "\n")[4:].rstrip("\n") in samples


def test_resume_logs_no_step_twice(tmp_path, corpus):
    """After a stop, after a crash that the last checkpoint does not know of, and with nothing left to do."""
    folder = tmp_path / "run"
    assert train.run(parse([*corpus, *COMMON, "--epochs", "2", "--run-dir", str(folder)])) == 0
    crashed = EventFiles(folder / "tensorboard", metrics(folder)[-1]["step"], resumed=True)
    crashed.log([{**metrics(folder)[0], "step": metrics(folder)[-1]["step"] + place} for place in (1, 2, 3)])
    crashed.close()
    for place, epochs in enumerate(("2", "4")):
        for path in (folder / "tensorboard").iterdir():  # as if a second had gone by since: names hold the time
            path.rename(path.with_name(f"events.out.tfevents.0.{place}.{path.name}"))
        assert train.run(resumed(["--resume", str(folder), "--epochs", epochs])) == 0
    values = shown(folder / "tensorboard")
    losses = {step: value for (step, tag), value in values.items() if tag == "loss/train"}
    expected = {line["step"]: line["loss"] for line in metrics(folder) if line["split"] == "train"}
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len({step for step, tag in values if tag.startswith("sample/")}) == 2


def test_text_cannot_act(tmp_path):
    files = EventFiles(tmp_path, 0, resumed=False)
    files.log([{"step": 1, "epoch": 1, "split": "train", "loss": 1.5}])
    files.write_samples({0.5: "<b>\x1b[31m\n# head\u202e"}, 1)
    files.close()
    text = shown(tmp_path)[1, "sample/temperature_0.5/text_summary"]
    assert text == "    <b>␛[31m\n    # head\\u202e\n"


def test_missing_extra_is_said_before_anything_is_written(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("runner.reporting.tensorboard.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rosetta-rnn\[tensorboard\]"):
        train.run(parse([*corpus, *COMMON, "--run-dir", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()


def test_without_the_flag_there_are_no_event_files(tmp_path, corpus):
    options = [*corpus, *SMALL, "--max-steps", "2", "--length", "5", "--run-dir", str(tmp_path / "run")]
    assert train.run(parse(options)) == 0
    assert not (tmp_path / "run/tensorboard").exists()
