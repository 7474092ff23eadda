"""The reports: whole, self-contained, truthful, and deaf to what names and texts say."""

import json

import pytest
from made_up import (
    IMPLS,
    NASTY,
    check_row,
    make_result,
    make_run,
    make_study,
    read_page,
    read_svg,
    study_row,
)

from runner import report
from runner.cli import parse
from runner.report import write_comparison, write_report, write_run_report
from runner.reporting import pages
from runner.reporting.study_page import runs_of, write_study_report
from runner.text import visible
from shared.errors import UserError
from shared.files import strict_json
from shared.statistics import MEASURES

WITH_PNG = ("test_comparison_files", "test_same_input_same_bytes", "test_a_run_shows_speed_machine_and_gradient_norms")


@pytest.fixture(autouse=True)
def without_png(request, monkeypatch):
    """PNG takes as long as SVG and shows the same."""
    if request.node.name not in WITH_PNG:
        monkeypatch.setattr(pages, "png", lambda *_, **__: b"")


def test_comparison_files(tmp_path):
    page = read_page(write_comparison(make_result(), tmp_path))
    pictures = [f"{name}.{kind}" for name in ("agreement", "comparison", "growth", "timing") for kind in ("png", "svg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["comparison.html", *pictures])
    assert all((tmp_path / each).read_bytes().startswith((b"\x89PNG", b"<?xml")) for each in pictures)
    assert "All four implementations agree" in page.text
    assert page.tags.count("svg") == 3
    assert page.text.count("日照香爐生紫煙。\n　遙看瀑布掛前川。") == 4
    assert ("lang", "zh") in page.attributes
    drawn = read_svg((tmp_path / "comparison.svg").read_text("utf-8"))
    assert "唐詩" in drawn
    assert all(name in drawn for name in (*IMPLS, "held-out", "unigram", "from numpy"))
    assert "130" in read_svg((tmp_path / "timing.svg").read_text("utf-8"))


def test_same_input_same_bytes(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_comparison(make_result(), tmp_path / folder)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_names_and_texts_cannot_act(tmp_path):
    result = make_result(name=NASTY, text=NASTY)
    for row in result["samples"]:
        row["prompt"] = NASTY
    result["failures"], result["ok"] = [{"impl": NASTY, "what": NASTY}], False
    result["machine"][NASTY] = result["participants"][0]["versions"][NASTY] = NASTY
    page = read_page(write_comparison(result, tmp_path))
    shown = visible(NASTY)
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert page.text.count(shown) > 12
    assert shown[:50] in read_svg((tmp_path / "comparison.svg").read_text("utf-8"))


def test_implementation_names_cannot_act_in_figures(tmp_path):
    result = make_result(impls=(NASTY, "torch"))
    read_page(write_comparison(result, tmp_path))
    for name in ("comparison", "timing"):
        assert visible(NASTY)[:20] in read_svg((tmp_path / f"{name}.svg").read_text("utf-8"))


def test_one_participant(tmp_path):
    page = read_page(write_comparison(make_result(impls=("numpy",)), tmp_path))
    assert "One implementation took part, so there is nothing to compare" in page.text
    assert "from numpy" not in (tmp_path / "comparison.svg").read_text("utf-8")


OPTIONAL = ("check", "training", "growth", "timing", "samples", "agreement", "corpus", "machine")


@pytest.mark.parametrize("absent", OPTIONAL)
def test_a_part_may_be_absent(tmp_path, absent):
    result = make_result(impls=("numpy", "tf"))
    del result[absent]
    read_page(write_comparison(result, tmp_path))


def test_all_parts_may_be_empty(tmp_path):
    full = make_result()
    empty = {name: type(value)() for name, value in full.items() if isinstance(value, list | dict)}
    page = read_page(write_comparison(full | empty, tmp_path))
    assert "No implementations took part" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.html"]


def test_unproven_work_has_no_time(tmp_path):
    result = make_result()
    for row in result["timing"]:
        row["same_work"] = row["impl"] != "jax"
        row["tokens_per_second"] = 77777.0 if row["impl"] == "jax" else row["tokens_per_second"]
    page = read_page(write_comparison(result, tmp_path))
    assert page.text.count("no time: not proven to be the same work") == 2
    assert "77,777" not in page.text
    assert "jax" not in read_svg((tmp_path / "timing.svg").read_text("utf-8"))


def test_nothing_timed_draws_nothing(tmp_path):
    result = make_result()
    result["timing"] = [row | {"same_work": False} for row in result["timing"]]
    write_comparison(result, tmp_path)
    assert not (tmp_path / "timing.svg").exists()


def test_failures_stand_at_the_top(tmp_path):
    result = make_result() | {"failures": [{"impl": "tf", "what": "no answer"}], "ok": False}
    text = read_page(write_comparison(result, tmp_path)).text
    assert "implementations agree" not in text
    assert text.index("Not everything agrees") < text.index("no answer") < text.index("Learning")


def test_the_reference_does_not_grow_apart_from_itself(tmp_path):
    result = make_result()
    (tmp_path / "without").mkdir()
    (tmp_path / "with").mkdir()
    points = [{"step": 9, "max_relative_difference": 0.0}]
    reference = {"impl": "numpy", "dtype": "float64", "bound": 1e-9, "ok": True, "points": points}
    text = read_page(write_comparison(result, tmp_path / "without")).text
    result["growth"].insert(0, reference)
    assert read_page(write_comparison(result, tmp_path / "with")).text == text


def test_float32_texts_may_part(tmp_path):
    result = make_result() | {"samples_identical": False}
    result["samples"][1]["text"] = result["samples"][1]["text"].replace("瀑", "暴")
    page = read_page(write_comparison(result, tmp_path))
    assert "All four implementations agree" in page.text
    assert "Not identical" in page.text
    assert page.tags.count("mark") == 5


def test_many_problems_are_counted(tmp_path):
    result = make_result()
    result["check"] += [check_row("tf", f"trace: {place}", 1.0) for place in range(30)]
    text = read_page(write_comparison(result, tmp_path)).text
    assert "30 problems" in text
    assert "and 18 more" in text


def test_run_report(tmp_path):
    path = write_run_report(make_run(tmp_path))
    page = read_page(path)
    assert path == tmp_path / "report.html"
    assert "jax on 唐詩: held-out perplexity 7.50" in page.text
    assert "Finished, 30 steps · best at step 20" in page.text
    assert "　日照。" in page.text
    assert "月\n\n光。" in page.text
    assert "jax on 唐詩" in read_svg((tmp_path / "curves.svg").read_text("utf-8"))


def test_run_report_cannot_be_acted_on(tmp_path):
    samples = f"temperature 0.5\n{NASTY}\n"
    page = read_page(write_run_report(make_run(tmp_path, name=NASTY, samples=samples)))
    assert page.text.count(visible(NASTY)) >= 3
    read_svg((tmp_path / "curves.svg").read_text("utf-8"))


def test_unfinished_run(tmp_path):
    make_run(tmp_path, result=False)
    (tmp_path / "samples.txt").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "split": "tr')
    page = read_page(write_run_report(tmp_path))
    assert "Not finished" in page.text
    assert "Samples" not in page.text


def test_run_without_a_step(tmp_path):
    make_run(tmp_path, result=False)
    (tmp_path / "metrics.jsonl").unlink()
    assert "No step is logged yet" in read_page(write_run_report(tmp_path)).text


def test_samples_without_temperatures_are_shown_whole(tmp_path):
    assert "just text" in read_page(write_run_report(make_run(tmp_path, samples="just text\n"))).text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "Give the folder of a run"),
        ("config.json", b"[]", "is not the JSON of a run"),
        ("config.json", b"{}", "is not the JSON of a run"),
        ("config.json", b"\xff", "Cannot read"),
        ("metrics.jsonl", b"{\n", "a line is not JSON"),
    ],
)
def test_not_a_run_directory(tmp_path, name, content, message):
    make_run(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_run_report(tmp_path)


def test_a_run_shows_speed_machine_and_gradient_norms(tmp_path):
    page = read_page(write_run_report(make_run(tmp_path)))
    assert "901 to 903" in page.text
    assert "made up" in page.text
    assert "The learning rate is 0.002 throughout" in page.text
    drawn = read_svg((tmp_path / "curves.svg").read_text("utf-8"))
    assert "gradient norm" in drawn
    assert "clipped" in drawn
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_copied_passages_are_marked(tmp_path):
    page = read_page(write_run_report(make_run(tmp_path)))
    assert [value for name, value in page.attributes if value == "copied" and name == "class"] == ["copied"] * 2
    assert '<mark class="copied">　日照</mark>。' in (tmp_path / "report.html").read_text("utf-8")


def test_a_comparison_is_read_back(tmp_path, capsys):
    result = make_result()
    result["check"] += [check_row("tf", "trace: a", float("inf"))]
    (tmp_path / "comparison.json").write_text(strict_json(result), "utf-8")
    assert report.run(parse(["report", str(tmp_path)])) == 0
    page = read_page(tmp_path / "comparison.html")
    assert "trace: a differs by inf" in page.text
    assert "comparison.html" in capsys.readouterr().out.replace("\n", "")


def test_a_check_is_a_comparison_that_only_checked(tmp_path):
    rows = [check_row(impl, quantity) for impl in ("numpy", "tf") for quantity in ("logits", "gradient: a")]
    path = tmp_path / "checked.json"
    path.write_text(strict_json({"ok": True, "reference": "numpy", "rows": rows}), "utf-8")
    page = read_page(write_report(path))
    assert "Both implementations agree" in page.text
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "agreement.png",
        "agreement.svg",
        "checked.html",
        "checked.json",
    ]
    path.write_text(strict_json({"ok": False, "rows": [check_row("tf", "logits", float("inf"))]}), "utf-8")
    assert "logits differs by inf" in read_page(write_report(path)).text


def test_a_run_is_written_anew(tmp_path):
    assert write_report(make_run(tmp_path)) == tmp_path / "report.html"


def test_a_study(tmp_path):
    told = {"title": "Optimizers", "source": "a report", "study": "optimizers", "columns": ["held_out_loss", "steps"]}
    rows = [
        study_row("plain", "sgd"),
        study_row("Adam", "adam 2", impl="tf", status="failed", error="out of memory", figures={}),
        study_row("to come", "elsewhere", status="waiting", figures={}),
    ]
    (tmp_path / "study.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", "utf-8")
    page = read_page(write_report(make_study(tmp_path, **told, runs=rows)))
    for words in (
        "Optimizers",
        "a report",
        "python -m runner study optimizers",
        "1.25",
        "# to come",
        "out of memory",
        "failed",
    ):
        assert words in page.text
    assert "plain, jax" in page.text
    assert page.tags.count("img") == 1
    assert page.text.count("　日照。") == 2
    drawn = read_svg((tmp_path / "curves.svg").read_text("utf-8"))
    assert all(words in drawn for words in ("Optimizers", "plain", "Adam", "held-out nats", "gradient norm"))
    assert "to come" not in drawn
    assert (tmp_path / "curves.png").exists()
    assert (tmp_path / "study.svg").stat().st_size == 41


def test_a_study_needs_no_description(tmp_path):
    (tmp_path / "a study").mkdir()
    page = read_page(write_study_report(make_study(tmp_path / "a study")))
    assert "a study" in page.text
    assert page.text.index("adam 2") < page.text.index("adam 10")
    assert page.text.count("python -m runner") == 3


def test_a_study_that_has_not_begun(tmp_path):
    page = read_page(write_report(make_study(tmp_path, (), title="Soon", runs=[study_row("a", "01-a")])))
    assert "0 finished" in page.text


def test_text_statistics_of_a_study(tmp_path):
    make_study(tmp_path, ["a"])
    found = {"temperature": 0.8, **dict.fromkeys(MEASURES, None), "characters": 1234}
    (tmp_path / "a/statistics.json").write_text(json.dumps({"held_out": None, "temperatures": [found]}), "utf-8")
    assert "1,234" in read_page(write_study_report(tmp_path)).text


def test_a_study_cannot_be_acted_on(tmp_path):
    name = NASTY.replace("/", "")
    rows = [study_row(NASTY, name, status=NASTY, error=NASTY, command=NASTY), study_row("..", "../../etc")]
    make_study(tmp_path, [name], **dict.fromkeys(("title", "source", "study"), NASTY), columns=[NASTY], runs=rows)
    make_run(tmp_path / name, name=NASTY, samples=f"temperature 0.5\n{NASTY}\n")
    (tmp_path / "study.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "utf-8"
    )
    page = read_page(write_study_report(tmp_path))
    assert page.text.count(visible(NASTY)) >= 8
    read_svg((tmp_path / "curves.svg").read_text("utf-8"))


def test_runs_are_in_the_order_of_their_numbers(tmp_path):
    names = ["lr 10", "lr 9", "lr 9.5", "b", "a 2 of 3"]
    assert [path.name for path in runs_of(make_study(tmp_path, names))] == ["a 2 of 3", "b", "lr 9", "lr 9.5", "lr 10"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nothing", ""),
        ("config.json", "{"),
        ("config.json", '{"impl": 3, "corpus": []}'),
        ("comparison.json", "[]"),
        ("comparison.json", '{"check": [{}], "ok": true}'),
        ("comparison.json", '{"check": 7}'),
    ],
)
def test_what_is_no_report_is_said(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"config.json|not as `train`, `compare`|JSON of a comparison"):
        report.run(parse(["report", str(tmp_path)]))
