"""Recipes: files that are checked, options that the command line wins over, and what was expected beside what came."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.cli import Study, Train
from runner.experiment import prepare
from runner.outcome import METRICS, outcome
from runner.recipe import Expectation, changed, load_recipe, names, started, train_of
from runner.study_plan import load_study, planned
from shared.config import ModelConfig, TrainingConfig
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
SYSTEMS = {
    *("shakespeare-lstm", "shakespeare-cosine", "shakespeare-quick", "shakespeare-best", "many-to-one", "novel-rnn"),
    *("novel-wrnn", "tang-lstm", "tang-simple-rnn", "tang-gru", "tang-small", "tang-large", "time-machine"),
}
STUDIES = {
    *("time-machine-tuning", "optimizers", "initializers", "clipping", "gates-and-residuals", "subwords"),
    *("temperatures", "tang-improved", "time-machine-everywhere", "overfitting", "shakespeare-seconds"),
}
SMALL = """[options]
hidden_size = 12
embedding_size = 6
batch_size = 8
seq_length = 16
epochs = 2
first_characters = 6000
"""


def write(folder, text, name="small.toml"):
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def test_every_system_has_its_recipe():
    assert set(names()) == SYSTEMS
    for recipe in map(load_recipe, names()):
        assert recipe.title
        assert recipe.source
        assert recipe.time
        assert recipe.expected
        assert recipe.text.startswith("# ")


def test_what_is_installed_holds_the_files():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["runner"]
    assert {"recipes/*.toml", "studies/*.toml"} <= set(data)


def test_the_list_and_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SYSTEMS)
    assert "≤ 1.05" in shown
    assert main(["recipes", "time-machine"]) == 0
    shown = capsys.readouterr().out
    assert "the time traveller tells the narrator to wait for him" in shown
    assert "python -m runner --recipe time-machine" in shown


def test_the_documentation_is_what_the_command_prints(capsys):
    assert main(["recipes", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/recipes.md").read_text("utf-8")


def test_the_command_line_wins_over_the_recipe_and_that_over_the_defaults():
    given = started(["train", "--recipe", "time-machine", "--max-steps", "7", "--hidden-size=24"])
    assert (given.training.max_steps, given.model.hidden_size) == (7, 24)
    assert (given.training.epochs, given.optimizer.optimizer, given.corpus.normalize) == (500, "sgd", "letters")
    assert given.runtime.threads == Train().runtime.threads
    assert given.impl == "jax"
    assert len(given.greedy) == 10
    assert changed(given, load_recipe("time-machine")) == ["--hidden-size 24", "--max-steps 7"]
    assert started(["--recipe=tang-gru", "--impl", "tf"]).model.cell == "gru"
    assert started(["train", "--impl", "jax"]) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hiden_size = 3", "'hiden_size' is unknown. Did you mean hidden_size?"),
        ("learning-rate = 0.1", "Did you mean learning_rate"),
        ("zzz = 1", "Allowed: alpha, batch_size, betas"),
        ("hidden_size = 'big'", "hidden_size must be int, got 'big'"),
        ("betas = 0.5", "betas must be tuple"),
        ("hidden_size = 0", "--hidden-size must be at least 1"),
        ("cell = 'lsmt'", "cell must be one of rnn, lstm, gru, wrnn"),
        ("impl = 'nunpy'", "impl must be one of numpy, torch, jax, tf"),
        ("greedy = 'no list'", "greedy must be of type list"),
        ("epochs = ", "cannot be read as TOML"),
        ("nonlinearity = 'relu'", "--nonlinearity belongs to --cell rnn"),
    ],
)
def test_a_recipe_with_a_mistake_says_what_is_allowed(tmp_path, capsys, line, said):
    path = write(tmp_path, f"[options]\n{line}\n")
    assert main(["train", "--recipe", path]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert path in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tittle = 'x'", "'tittle' is unknown. Did you mean title?"),
        ("title = 3", "title must be of type str, got 3"),
        ("[[expected]]\nmetric = 'held_out_los'", "Did you mean held_out_loss"),
        ("[[expected]]\nmetric = 'seconds'\nat_most = '3'", "at_most of seconds must be a number"),
        ("[[expected]]\nmetric = 'seconds'\nat_most = 3\nat_least = 1", "not both"),
    ],
)
def test_so_does_what_is_around_its_options(tmp_path, text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_recipe(write(tmp_path, text))


def test_a_recipe_that_is_not_there_and_an_option_that_does_not_go_with_it(capsys):
    assert main(["train", "--recipe", "time-machin"]) == 2
    assert "Did you mean time-machine?" in capsys.readouterr().err
    assert main(["train", "--recipe", "shakespeare-cosine", "--schedule", "constant"]) == 2
    shown = capsys.readouterr().err
    assert "belongs to --schedule cosine" in shown
    assert "What is not given comes from the recipe shakespeare-cosine" in shown


def test_expectations():
    figures = {"held_out_loss": 1.5}
    assert Expectation("held_out_loss", at_most=1.5).met(figures) is True
    assert Expectation("held_out_loss", at_most=1.4).met(figures) is False
    assert Expectation("held_out_loss", at_least=1.6).met(figures) is False
    assert Expectation("held_out_loss", reported="1.1").met(figures) is None
    assert Expectation("seconds", at_most=3).met(figures) is None


def test_a_run_says_what_was_expected_and_goes_on_with_its_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    expected = '[[expected]]\nmetric = "held_out_perplexity"\nat_most = 1000\nreported = "87.2"\n'
    expected += '[[expected]]\nmetric = "training_loss"\nat_most = 0.001\n'
    path = write(tmp_path, expected + SMALL + 'greedy = ["HANNE:", "山"]\n')
    folder = tmp_path / "run"
    assert main(["train", "--recipe", path, "--device", "cpu", "--length", "20", "--run-dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    figures = outcome(folder)
    reached, missed = (
        next(line for line in shown.splitlines() if line.startswith(METRICS[name].label))
        for name in ("held_out_perplexity", "training_loss")
    )
    assert re.search(rf"87\.2 +≤ 1000 +{figures['held_out_perplexity']:.4g} +reached", reached)
    assert re.search(rf"≤ 0\.001 +{figures['training_loss']:.4f} +not reached", missed)
    assert "differs" not in shown
    assert "--greedy 山: left out, the training text never showed" in shown
    samples = (folder / "samples.txt").read_text("utf-8")
    greedy = samples.partition("temperature 0\n")[2].removesuffix("\n")
    assert greedy.startswith("HANNE:")
    assert len(greedy) == len("HANNE:") + 100
    assert figures["prediction_seconds"] > 0
    assert figures["steps"] == figures["steps"] // 2 * 2 > 50
    assert main(["--resume", str(folder), "--epochs", "3"]) == 0
    shown = capsys.readouterr().out
    assert "≤ 1000" in shown
    assert "differs from the recipe, whose figures need not hold: --epochs 3" in shown
    Path(path).unlink()
    assert main(["--resume", str(folder)]) == 0
    assert "What was expected cannot be shown" in capsys.readouterr().out
    assert main(["--resume", str(folder), "--recipe", "time-machine"]) == 2
    assert "--recipe cannot change with --resume" in capsys.readouterr().err


def test_the_figures_of_a_run_are_those_of_its_files(tmp_path):
    lines = [
        {"step": 1, "epoch": 1, "split": "train", "loss": 3.0, "gradient_norm": 2.0, "tokens_per_second": 10.0},
        {"step": 2, "epoch": 1, "split": "train", "loss": 2.0, "gradient_norm": 8.0, "tokens_per_second": 30.0},
        {"step": 2, "epoch": 1, "split": "held-out", "loss": 1.5, "perplexity": 4.5, "bits_per_character": 1.0},
        {"step": 3, "epoch": 2, "split": "train", "loss": 2.75, "gradient_norm": None, "tokens_per_second": 20.0},
        {"step": 3, "epoch": 2, "split": "held-out", "loss": 1.75, "perplexity": 5.8, "bits_per_character": 1.1},
    ]
    torn = '{"step": 4, "epo'
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn, "utf-8")
    corpus = {"held_out": 0.0, "unigram_perplexity": 9.0, "vocabulary_size": 7}
    result = {"steps": 3, "seconds": 5.0}
    (tmp_path / "config.json").write_text(json.dumps({"corpus": corpus, "result": result}), "utf-8")
    assert outcome(tmp_path) == pytest.approx(
        {
            "training_loss": 2.75,
            "best_training_loss": 2.5,
            "gradient_norm": 5.0,
            "largest_gradient_norm": 8.0,
            "tokens_per_second": 20.0,
            "held_out_loss": 1.5,
            "held_out_perplexity": 4.5,
            "bits_per_character": 1.0,
            "training_text_perplexity": 4.5,
            "unigram_ratio": 0.5,
            "overfitting": 0.25,
            "vocabulary_size": 7,
            "characters_per_token": 1.5 / 0.6931471805599453,
            "steps": 3,
            "seconds": 5.0,
        }
    )


def test_every_study_can_be_planned():
    assert set(names("studies")) == STUDIES
    for study in map(load_study, names("studies")):
        runs = planned(study, Study(name=study.name, max_steps=9), ["numpy", "torch"])
        assert len(runs) == len({run.folder for run in runs}) == len({run.command for run in runs})
        assert len(runs) == sum(1 if "impl" in variant else 2 for variant in study.variants)
        assert all(run.options.training.max_steps == 9 for run in runs)


def test_the_texts_of_the_reports(data_dir):
    def read(name):
        options = train_of(load_recipe(name), name)
        return prepare(options.corpus, options.training, options.model)

    assert len(read("shakespeare-lstm").training) == 4356
    assert len(read("time-machine").vocabulary) == 27
    assert len(read("tang-small").corpus.texts) == 168


def test_the_large_corpus_is_cleaned_as_in_its_report(tmp_path):
    poems = ["t:床前明月光，疑是地上霜。", "t:春眠（一作睡）不觉曉。", "t:短", "t:" + "月" * 60 + "尾尾尾尾"]
    path = tmp_path / "poems.txt"
    path.write_text("\n".join(poems * 9) + "\n", "utf-8")
    options = train_of(load_recipe("tang-large"), "tang-large", corpus=str(path), reader="titled", batch_size=2)
    experiment = prepare(options.corpus, options.training, options.model)
    assert set(experiment.corpus.texts) == {"床前明月光，疑是地上霜。", "月" * 60 + "尾尾尾尾"}
    assert "尾" not in experiment.vocabulary.symbols, "what is cut off is not read"
    assert "霜" in experiment.vocabulary.symbols
    assert (ModelConfig(), TrainingConfig()) != (options.model, options.training)
