"""Acrostics and verse forms: the same poems in all four, every line whole."""

from pathlib import Path

import pytest
from conftest import REQUIRED

from runner.sample import model_of, write_poems
from runner.workers import Worker
from shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from shared.config import CorpusConfig, ModelConfig, OptimizerConfig, RuntimeConfig, SamplingConfig, to_json
from shared.corpora import load_corpus
from shared.initializers import initial_parameters
from shared.verse import FORMS, verses
from shared.vocabulary import build_vocabulary

MODEL = ModelConfig(cell="gru", hidden_size=20, num_layers=2, embedding_size=12, initializer="normal")
ASKED = {
    "openings": ("7x4", ["日", "红叶", "", "山"], "", SamplingConfig(temperature=1.2, seed=5)),
    "acrostic": ("5x8", [""], "春江花月夜山日风", SamplingConfig(temperature=0.9, top_k=40)),
    "greedy": ("5x4", ["月"], "", SamplingConfig(temperature=0.0)),
    "top-p": ("7x8", ["海", "夜"], "", SamplingConfig(temperature=1.5, top_p=0.7)),
}


class Poet:
    """An implementation in its own process, with the checkpoint open."""

    def __init__(self, impl: str, path: Path) -> None:
        self._checkpoint = load_checkpoint(path)
        self._model = model_of(self._checkpoint, impl, RuntimeConfig(device="cpu", dtype="float64"))

    def write(self) -> dict[str, list[str]]:
        return {
            name: write_poems(self._model, self._checkpoint.vocabulary, FORMS[form], *rest)
            for name, (form, *rest) in ASKED.items()
        }


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """Implementation -> name -> poems, of a model that has learned nothing: only the constraint makes them verse."""
    vocabulary = build_vocabulary(load_corpus(CorpusConfig("starter-quatrains")).poem_texts, 1, poems=True)
    parameters = {name: 6 * value for name, value in initial_parameters(MODEL, len(vocabulary), 2).items()}
    path = tmp_path_factory.mktemp("poet") / "poet.safetensors"
    config = {"model": to_json(MODEL), "optimizer": to_json(OptimizerConfig(optimizer="sgd"))}
    save_checkpoint(path, Checkpoint(parameters, {}, 0, {}, config, vocabulary, {}))
    found = {}
    for impl in REQUIRED:
        with Worker(impl, Poet, impl, path) as worker:
            found[impl] = worker.call("write")
    return found


@pytest.mark.parametrize("name", ASKED)
def test_all_write_the_same_poems(poems: dict[str, dict[str, list[str]]], name: str) -> None:
    expected = poems["numpy"][name]
    assert len(set(expected)) == len(ASKED[name][1])
    for impl in REQUIRED:
        assert poems[impl][name] == expected, impl


def test_every_line_is_whole(impl: str, poems: dict[str, dict[str, list[str]]]) -> None:
    for name, (form, openings, acrostic, _) in ASKED.items():
        for opening, poem in zip(openings, poems[impl][name], strict=True):
            lines = verses(poem)
            assert [len(line) for line in lines] == [FORMS[form].size + 1] * FORMS[form].lines
            assert poem.startswith(opening)
            assert "".join(line[0] for line in lines).startswith(acrostic)
