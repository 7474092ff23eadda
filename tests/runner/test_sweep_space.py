"""What a sweep may vary: names, values, files, points; mistakes are said with the nearest name."""

import random
from dataclasses import replace
from itertools import islice

import pytest

from runner import cli
from runner.cli import Sweep, Train
from runner.sweeping import space
from runner.sweeping.plan import Plan, distribution, point_of, queue
from runner.sweeping.storage import refuse_shared_sqlite
from shared.config import ModelConfig
from shared.errors import ConfigError

BASE = Train()


def dimensions(*given):
    return space.space_of([each.split() for each in given], None)


@pytest.mark.parametrize("name", ["hidden-size", "hidden_size", "model.hidden_size", "--hidden-size"])
def test_an_option_by_any_of_its_names(name):
    (found,) = dimensions(f"{name} 64,128")
    assert (found.name, found.choices) == ("model.hidden_size", (64, 128))


def test_values_of_every_form():
    steps, log, words, truth, impl = dimensions(
        "seq_length range 25 95 10",
        "learning_rate log 1e-4 1e-1",
        "optimizer adam,sgd",
        "residual true,false",
        "impl numpy,torch",
    )
    assert list(steps.values()) == [25, 35, 45, 55, 65, 75, 85, 95]
    assert log.values() is None
    assert words.choices == ("adam", "sgd")
    assert truth.choices == (True, False)
    assert (impl.name, impl.choices) == ("implementation", ("numpy", "torch"))
    chance = random.Random(0)
    assert all(1e-4 <= log.draw(chance) <= 1e-1 for _ in range(100))
    assert sum(log.draw(chance) < 10**-2.5 for _ in range(1000)) in range(420, 580)


def test_a_step_that_binary_fractions_do_not_meet_loses_no_value():
    (found,) = dimensions("dropout range 0.1 0.7 0.2")
    assert len(found.values()) == 4
    assert found.values()[-1] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hidden_sise 64", "did you mean model.hidden_size"),
        ("learnin_rate 0.1", "did you mean training.learning_rate"),
        ("model.hidden_size", "takes an option and its values"),
        ("hidden_size 64,x", "must be int, got 'x'"),
        ("hidden_size 64,64", "the value 64 twice"),
        ("optimizer adam,adamm", "must be one of sgd,"),
        ("optimizer range 1 2", "is no number"),
        ("hidden_size range 64 32", "low end must lie below"),
        ("hidden_size range 1.5 3", "needs numbers"),
        ("learning_rate log 0 1", "starts above 0"),
        ("learning_rate log 1", "takes an option and its values"),
        ("learning_rate range 0 nan", "low end must lie below"),
        ("betas 0.9", "give its values in a file"),
        ("threads 1,2", "the same in a whole sweep"),
        ("residual yes", "must be true or false"),
    ],
)
def test_mistakes_are_explained(given, message):
    with pytest.raises(ConfigError, match=message):
        dimensions(given)


def test_nothing_to_vary_and_twice_the_same():
    with pytest.raises(ConfigError, match="needs something to vary"):
        dimensions()
    with pytest.raises(ConfigError, match="given twice"):
        dimensions("hidden_size 1,2", "model.hidden_size 3")


def test_the_reports_space_has_640_points():
    found = space.space_of((), space.find("novel-search"))
    points = space.grid(BASE, found, random.Random(0))
    assert len(points) == len({space.key(point) for point in points}) == 640
    assert {point["model.hidden_size"] for point in points} == set(range(50, 1001, 50))


def test_a_file_is_the_default_and_flags_win(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[options]\nimpl = "torch"\nhidden_size = 24\n[space]\nbetas = [[0.9, 0.999], [0.5, 0.99]]\n'
        'seq_length = { low = 5, high = 9 }\n[sweep]\nmethod = "grid"\n',
        "utf-8",
    )
    words = ["sweep", "--space", str(file), "--hidden-size", "12", "--vary", "seq_length", "6,7"]
    options = cli.parse(words, space.default_of(words))
    assert (options.impl, options.method, options.model.hidden_size) == ("torch", "grid", 12)
    betas, length = space.space_of(options.vary, file)
    assert betas.choices == ((0.9, 0.999), (0.5, 0.99))
    assert length.choices == (6, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[spaces]\n", "unknown spaces"),
        ("[options]\nhidden_size = 3\n", r"needs a table \[space\]"),
        ("[space]\nhidden_size = 3\n", "must be a list of values"),
        ("[space]\nhidden_size = [3, '4']\n", "must be int, got '4'"),
        ("[space]\nhidden_size = []\n", "no values"),
        ("[space]\nhidden_sise = [3]\n", "did you mean model.hidden_size"),
        ("[space]\nhidden_size = [3]\n[sweep]\nspeed = 3\n", r"\[sweep\] takes method"),
        ("[space]\nhidden_size = [3]\n[options]\nimpl = 'nimpy'\n", "impl must be one of"),
        ("[space\n", "Expected"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    words = ["sweep", "--space", str(file)]
    with pytest.raises(ConfigError, match=message):
        space.space_of((), file) if space.default_of(words) else None


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no such file\. Shipped spaces: novel-search"):
        space.find("novel-serch")


def test_points_whose_options_contradict_each_other_are_left_out():
    found = dimensions("cell rnn,lstm", "forget_bias 0,1")
    points = space.grid(BASE, found, random.Random(0))
    assert len(points) == 3
    assert {"model.cell": "rnn", "model.forget_bias": 1.0} not in points
    assert len(list(space.drawn(BASE, found, random.Random(0)))) == 3
    wrong = dimensions("cell rnn,gru", "forget_bias 1,2")
    for plan in (Plan(BASE, wrong, method, "none", 4) for method in ("grid", "random", "tpe")):
        with pytest.raises(ConfigError, match="belongs to --cell lstm"):
            queue(plan)


def test_a_grid_needs_steps():
    with pytest.raises(ConfigError, match=r"grid needs values .* training.learning_rate"):
        space.grid(BASE, dimensions("learning_rate log 1e-3 1"), random.Random(0))


def test_points_become_options():
    point = {"model.hidden_size": 7, "implementation": "jax", "optimizer.betas": (0.5, 0.9)}
    options = space.configured(BASE, point)
    assert (options.impl, options.model, options.optimizer.betas) == ("jax", ModelConfig(hidden_size=7), (0.5, 0.9))
    assert options.training == BASE.training


def test_random_points_repeat_nothing_and_are_the_same_for_the_same_seed():
    found = dimensions("hidden_size 1,2,3", "seq_length 4,5")
    first, again = (list(islice(space.drawn(BASE, found, random.Random(3)), 9)) for _ in range(2))
    assert first == again
    assert len({space.key(point) for point in first}) == len(first) == 6


def test_a_plan_survives_json_and_optunas_values_are_ours():
    file = {"betas": [[0.9, 0.999], [0.5, 0.99]], "hidden_size": {"low": 2, "high": 64, "log": True}}
    found = tuple(space.from_table(name, value) for name, value in file.items())
    plan = Plan(replace(BASE, impl="tf"), found, "tpe", "median", 5, stall=3, folder="x")
    assert Plan.from_json(plan.to_json()) == plan
    kept = {found[0].name: distribution(found[0]).choices[1], found[1].name: 9}
    assert point_of(found, kept) == {"optimizer.betas": (0.5, 0.99), "model.hidden_size": 9}
    with pytest.raises(ConfigError, match="holds no search of this version"):
        Plan.from_json({"space": []})


def test_sqlite_takes_one_worker():
    refuse_shared_sqlite("sqlite:///x.db", 1)
    refuse_shared_sqlite("postgresql://host/x", 9)
    with pytest.raises(ConfigError, match=r"takes one worker, not 2: SQLite locks its whole file"):
        refuse_shared_sqlite("sqlite:///x.db", 2)


def test_numbers_of_the_command_line_have_bounds():
    for name in ("trials", "workers", "stall", "seconds"):
        with pytest.raises(ConfigError, match=f"--{name}"):
            Sweep(**{name: -1})
