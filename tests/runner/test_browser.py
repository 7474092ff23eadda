"""The pages in a real browser, as readers see them: nothing sticks out, nothing is said on the console, nothing runs.

Skips where no Chromium is installed; ROSETTA_BROWSER=required makes that a failure.
"""

import pytest
from browser import open_browser
from made_up import NASTY, make_result, make_run, make_study, study_row

from runner.report import write_comparison, write_run_report
from runner.reporting.study_page import write_study_report
from runner.text import visible

ACTS = (
    f"{NASTY}</pre></style><style>main{{display:none}}</style><img src=x onerror=window.acted=1>&#x202e;"
    + "\u2067宽" * 60
    + "W" * 300
)
PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" onload="parent.acted = 1">
<script>parent.acted = 2; throw 3</script><image href="http://127.0.0.1:9/x.png"/><rect width="9" height="9"/></svg>"""
"""A figure that would do more than be looked at."""
STRANGE = "script, iframe, object, link, style ~ style, img:not([src^='data:image/svg+xml;base64,'])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each kind of page, with texts that are usual, and with one that would do harm and needs much room."""
    found = {}
    for kind, text in (("usual", "白日依山尽，黄河入海流。\n"), ("hostile", ACTS)):
        name = "唐詩" if kind == "usual" else text
        folder = tmp_path_factory.mktemp(kind)
        for each in ("run", "comparison", "study"):
            (folder / each).mkdir()
        make_run(folder / "run", name, samples=f"temperature 0.5\n{text}\ntemperature 1.0\n{text}\n")
        found["run", kind] = write_run_report(folder / "run")
        result = make_result(name=name, text=text)
        result["samples"] = [row | {"prompt": name, "copied": [[0, 5]]} for row in result["samples"]]
        result["machine"][name] = name
        if kind != "usual":
            result |= {"failures": [{"impl": name, "what": name}], "ok": False, "samples_identical": False}
            result["samples"][1]["text"] = text[:40]
        found["comparison", kind] = write_comparison(result, folder / "comparison")
        rows = [study_row(name, "a", error=name), study_row("b", "W" * 200, status=name, impl=name, command=name)]
        told = dict.fromkeys(("title", "source", "study"), name) | {"columns": ["held_out_loss", name], "runs": rows}
        make_study(folder / "study", ["a", "W" * 200], **told)
        (folder / "study/study.svg").write_text(PICTURE, "utf-8")
        found["study", kind] = write_study_report(folder / "study")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("text", ["usual", "hostile"])
@pytest.mark.parametrize("kind", ["run", "comparison", "study"])
def test_a_page_is_quiet_and_fits(browser, pages, kind, text, width, scheme):
    browser.open(pages[kind, text], width, scheme)
    assert browser.console() == []
    assert browser.overflow() == (0, [])
    assert browser.ask("document.querySelectorAll('main > section').length") >= 3
    assert browser.ask("getComputedStyle(document.querySelector('main')).display") == "block"


@pytest.mark.parametrize("kind", ["run", "comparison", "study"])
def test_hostile_text_is_shown_and_does_nothing(browser, pages, kind):
    browser.open(pages[kind, "hostile"], 1400)
    assert browser.ask("window.acted") is None
    assert browser.ask(f"document.querySelectorAll({STRANGE!r}).length") == 0
    shown = browser.ask("document.body.textContent")
    assert visible(ACTS) in shown
    assert not {"\u202e", "\u2067", "\x1b"} & set(shown)


def test_light_and_dark_are_what_the_reader_prefers(browser, pages):
    grounds = []
    for scheme in ("light", "dark"):
        browser.open(pages["run", "usual"], 1400, scheme)
        style = "getComputedStyle(document.body)"
        ground, ink = (channels(browser.ask(f"{style}.{name}")) for name in ("backgroundColor", "color"))
        assert abs(sum(ground) - sum(ink)) > 500
        grounds.append(sum(ground))
    assert grounds[0] > 700 > 100 > grounds[1]


def channels(colour):
    """rgb(1, 2, 3) -> [1, 2, 3]"""
    return [int(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]


def test_chinese_is_set_in_chinese_fonts(browser, pages):
    browser.open(pages["run", "usual"], 400)
    family = browser.ask("getComputedStyle(document.querySelector('pre:lang(zh)')).fontFamily")
    assert "Noto Serif CJK SC" in family
    assert browser.ask("document.querySelectorAll('pre.poem:lang(zh)').length") == 2


def test_nothing_is_fetched(browser, pages):
    for page in pages.values():
        browser.open(page, 1400)
        names = browser.ask("performance.getEntriesByType('resource').map(each => each.name)")
        assert [name for name in names if not name.startswith("data:")] == []
