"""Nothing that stands in a text, a name or a file can act: on no page, no terminal, no path, and not as code."""

import ast
import html.parser
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runner"))
from made_up import make_result

from runner.__main__ import main
from runner.cli import Train
from runner.console import console, say, show_table
from runner.report import write_comparison, write_run_report
from runner.reporting.pages import ENVIRONMENT, inline
from runner.rundir import RunDirectory
from runner.text import visible
from shared.config import CorpusConfig
from shared.corpora import REGISTRY

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("shared", "runner", "tests", "docs", *(each.name for each in ROOT.glob("impl_*")))
    for path in sorted((ROOT / folder).rglob("*.py"))
]
TEMPLATES = sorted((ROOT / "runner" / "templates").iterdir())
ATTACKS = (
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "' onmouseover='alert(1)",
    "</title><img src=x onerror=alert(1)>",
    "</pre></style></dl><iframe srcdoc=x>",
    "{{ 7*7 }}{% for x in y %}${7*7}",
    "javascript:alert(1)",
    "]]><svg onload=alert(1)>",
    "<!-- ",
    "&lt;b&gt; &#60;b>",
)
STEERING = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;cHduZWQ=\x07",
    "\x9b31mC1",
    "\x9d0;title\x9c",
    "\u202egnp.exe",
    "\u2066\u2069\u200f",
    "bell\x07back\x08\x7f",
    "over\rwritten",
    "\x00nul",
)
MARKUP = ("[bold red]x[/bold red]", "[/]", "[link=http://x]y[/link]", ":smile:")
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""What a terminal obeys, but for line ends and tabs."""


# ---- nothing is executed

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"exec_module", "run_path", "enable_unsafe_deserialization", "Unpickler", "from_string"}
ALLOWED = {
    ("runner/module/subject.py", "exec_module"),  # `check --module` is asked to execute a file of the user's
    ("runner/reporting/pages.py", "Markup"),  # around matplotlib's pictures; what is drawn in them is tested below
    ("tests/faults/test_injection.py", "from_string"),  # the smallest templates
    ("tests/runner/test_pages.py", "from_string"),
    ("tests/parity/test_faults_formats.py", "pickle"),  # makes the files that must not be executed
    ("tests/parity/test_convert.py", "load_model"),  # opens what was just written
}


def called(node: ast.Call) -> str:
    """The dotted name of what is called."""
    return ast.unparse(node.func)


def keyword(node: ast.Call, name: str) -> Any:
    """The constant given under a name; None where there is none."""
    given = [each.value for each in node.keywords if each.arg == name]
    return given[0].value if given and isinstance(given[0], ast.Constant) else None


def dangers(tree: ast.AST) -> Iterator[str]:
    """What could execute something that stands in data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            yield from (each.partition(".")[0] for each in modules if each.partition(".")[0] in FORBIDDEN_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        last = name.rpartition(".")[2]
        if name in FORBIDDEN_CALLS or last in (
            "exec_module",
            "enable_unsafe_deserialization",
            "Unpickler",
            "from_string",
        ):
            yield last
        if name in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is not False:
            yield "np.load"
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            yield "torch.load"
        if last == "load_model" and "saving" in name and keyword(node, "safe_mode") is not True:
            yield "load_model"
        if last == "Environment" and keyword(node, "autoescape") is not True:
            yield "Environment"
        if keyword(node, "shell") or name in ("os.system", "os.popen", "subprocess.getoutput"):
            yield "shell"
        if last == "Markup":
            yield "Markup"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_executes_what_stands_in_data(path: Path) -> None:
    """Pipes between our own processes (multiprocessing) do pickle, and carry nothing that was read from a file as it
    is; `check --module` executes the user's own file, as it says."""
    here = path.relative_to(ROOT).as_posix()
    allowed = {what for where, what in ALLOWED if where == here}
    assert set(dangers(ast.parse(path.read_text("utf-8")))) - allowed == set()


@pytest.mark.parametrize(
    ("code", "danger"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import os, marshal", "marshal"),
        ("eval(x)", "eval"),
        ("exec(x)", "exec"),
        ("import yaml\nyaml.load(x)", "yaml"),
        ("np.load(path)", "np.load"),
        ("np.load(path, allow_pickle=True)", "np.load"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("keras.saving.load_model(path)", "load_model"),
        ("subprocess.run(x, shell=True)", "shell"),
        ("os.system(x)", "shell"),
        ("jinja2.Environment(loader=x)", "Environment"),
        ("Environment(autoescape=False)", "Environment"),
        ("Markup(x)", "Markup"),
        ("spec.loader.exec_module(module)", "exec_module"),
        ("keras.config.enable_unsafe_deserialization()", "enable_unsafe_deserialization"),
    ],
)
def test_the_search_finds(code: str, danger: str) -> None:
    assert danger in set(dangers(ast.parse(code)))


def test_the_search_lets_pass() -> None:
    fine = (
        "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); Environment(autoescape=True); model.eval()"
    )
    assert list(dangers(ast.parse(fine))) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_mark_nothing_as_safe(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"\|\s*safe\b|autoescape|<script|\son\w+\s*=|javascript:|https?://", text)
    # An attribute's value is always quoted, or escaping would not hold it.
    assert not re.search(r"<[^>{]*=\{\{", text)


# ---- pages


class Page(html.parser.HTMLParser):
    """The elements and attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.comments = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments += 1


def assert_harmless(text: str) -> Page:
    """No element, attribute or sign that our templates and pictures do not have."""
    page = Page(text)
    assert not page.elements & {"script", "iframe", "img", "object", "embed", "link", "form", "a", "base", "input"}
    acting = ("href", "src", "srcdoc", "action", "formaction")
    assert not [name for name in page.attributes if name.startswith("on") or name in acting]
    assert not ACTING.search(text)
    assert page.comments == 0
    return page


def hostile(value: Any, attack: str) -> Any:
    """The same structure with an attack behind every string that is no name of a number or of a choice."""
    if isinstance(value, dict):
        kept = ("split", "dtype", "phase")
        return {name: each if name in kept else hostile(each, attack) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each, attack) for each in value]
    return value + attack if isinstance(value, str) else value


def run_directory(folder: Path, attack: str) -> Path:
    """What `train` leaves, with an attack in every string."""
    folder.mkdir()
    config = {
        "command": "python -m runner", "impl": "numpy", "engine": "scratch", "kernel": "k", "device": "cpu",
        "dtype": "float32", "threads": 1, "versions": {"numpy": "2", attack: attack},
        "corpus": {"name": "n", "source": "s", "unigram_perplexity": 9.0, "corpus": "c", attack: attack},
        "model": {"cell": "lstm", attack: attack}, "training": {"seed": 1}, "optimizer": {"x": None},
        "schedule": {}, "result": {"reason": "finished", "steps": 2, "seconds": 1.0, "best_step": 1},
    }  # fmt: skip
    config = {name: each if name == "dtype" else hostile(each, attack) for name, each in config.items()}
    (folder / "config.json").write_text(json.dumps(config))
    base = {"epoch": 1, "loss": 2.0, "perplexity": 7.0, "bits_per_character": 3.0, "learning_rate": 0.1}
    lines = [{"step": k, "split": split, **base} for k, split in ((1, "train"), (2, "train"), (2, "held-out"))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "samples.txt").write_text(f"temperature 0.5\n山{attack}\n", "utf-8", "surrogatepass", newline="")
    return folder


ALL = " ".join([*ATTACKS, *STEERING, *MARKUP, "{{ config }}{% endblock %}$x^2$ \\frac{"])


def test_the_page_of_a_run(tmp_path: Path) -> None:
    page = assert_harmless(write_run_report(run_directory(tmp_path / "run", ALL)).read_text("utf-8"))
    assert page.text.count(visible(ALL)) >= 8
    drawn = (tmp_path / "run" / "curves.svg").read_text("utf-8")
    assert "<script" not in drawn
    assert not ACTING.search(drawn)


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    result = hostile(make_result(("numpy", "jax")), ALL)
    page = assert_harmless(write_comparison(result, tmp_path).read_text("utf-8"))
    assert page.text.count(visible(ALL)) >= 20


TEMPLATE = """<p title="{{ x }}">{{ x }}</p><pre>{{ x|trim }}{{ ' ' ~ x }}</pre>{{ [x]|join }}{{ {x: 1} }}"""


@pytest.mark.parametrize("attack", [*ATTACKS, *STEERING, *MARKUP])
def test_every_expression_is_escaped_and_made_visible(attack: str) -> None:
    text = ENVIRONMENT.from_string(TEMPLATE).render(x=attack)
    assert_harmless(text)
    assert "49" not in text


def test_pictures_escape_what_is_written_in_them() -> None:
    from runner.reporting.pictures import Series, curves, svg

    drawn = svg(curves, {ALL: Series([1, 2], [2.0, 1.0], [(2, 1.5)])}, ALL, None)
    assert "<script" not in drawn
    assert_harmless(str(inline(drawn)))


# ---- terminals


@pytest.mark.parametrize("text", [*STEERING, *MARKUP, *ATTACKS])
def test_what_is_said_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    show_table(text, (text, "b"), [(text, "1")])
    said = capsys.readouterr().out
    assert not ACTING.search(said)
    if text in (*MARKUP, *ATTACKS):
        assert said.count(text) == 4


def test_on_a_terminal_only_our_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    with console.capture() as caught:
        for text in STEERING:
            say(text, "bold")
            show_table("t", ("a",), [(text,)])
            with console.status(visible(text)):
                pass
    assert not re.search(r"\x1b\]|\x1b\[2J|\x1b\[31m|\x9b|\x07|\x08|\u202e", caught.get())


def status_of(arguments: list[str]) -> int:
    """How the command line ends."""
    try:
        return main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize("text", STEERING)
def test_errors_do_not_steer_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = text.replace("\x00", "")
    for arguments in (
        ["sample", "--checkpoint", f"gone{name}.safetensors"],
        ["--corpus", f"gone{name}.txt"],
        ["--resume", f"gone{name}"],
        ["evaluate", "--checkpoint", f"gone{name}"],
        ["convert", f"gone{name}.safetensors", "x.pt"],
        ["check", "--impl", f"numpy,{name}"],
        ["check", "--module", f"gone{name}.py"],
        ["corpora", "show", f"gone{name}"],
        ["--impl", f"numpy{name}"],
        [f"--{name}", "3"],
    ):
        assert status_of(arguments) == 2
        said = capsys.readouterr()
        assert not ACTING.search(said.err + said.out), arguments


# ---- the whole way, by the command line


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file and a run directory with the worst names there can be, and a text that is as bad as one is let in."""
    folder = tmp_path_factory.mktemp("inject")
    name = "'\"><script>alert(1)<>\x1b[31m\u202e{{7*7}}[bold]\n$(touch x)"
    corpus, run = folder / f"{name}.txt", folder / f"run {name}"
    corpus.write_text(re.sub("[\x00-\x1f]", "", ALL) * 3, "utf-8")
    size = "--hidden-size=4 --embedding-size=3 --batch-size=2 --seq-length=10 --max-steps=2 --length=40"
    prompt = ["--prompt", "<script>\x9b31mC1\u202e"]
    before = set(folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["--corpus", str(corpus), "--reader", "text", "--run-dir", str(run), *size.split(), *prompt]) == 0
    assert set(folder.iterdir()) - before == {run}
    return corpus, run


def test_the_page_after_training(hostile_run: tuple[Path, Path]) -> None:
    corpus, run = hostile_run
    page = assert_harmless((run / "report.html").read_text("utf-8"))
    assert visible(corpus.name) in page.text
    assert "$(touch x)" in page.text
    assert not ACTING.search((run / "curves.svg").read_text("utf-8"))


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--length", "60", "--temperature", "2", "--checkpoint", "RUN"],
        ["sample", "--prompt", "\x1b]0;unseen\x07\u202e山", "--checkpoint", "RUN"],
        ["evaluate", "--checkpoint", "RUN"],
        ["evaluate", "--checkpoint", "RUN", "--corpus", "CORPUS", "--reader", "text"],
        ["convert", "RUN", "x.safetensors"],
        ["convert", "RUN", "x\x1b[2J.pt\x1b"],
        ["corpora", "show", "CORPUS"],
        ["--resume", "RUN", "--epochs", "1"],
        ["--resume", "RUN", "--hidden-size", "5"],
        ["--run-dir", "RUN"],
    ],
    ids=lambda command: " ".join(command).encode("ascii", "replace").decode(),
)
def test_no_command_lets_a_text_act(
    hostile_run: tuple[Path, Path], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run = hostile_run
    status = status_of([{"RUN": str(run), "CORPUS": str(corpus)}.get(word, word) for word in command])
    said = capsys.readouterr()
    assert status in (0, 2)
    assert said.out or said.err
    assert not ACTING.search(said.out + said.err)


@pytest.mark.parametrize("name", ["../../up.txt", "..", "a/../../b.txt", "x\x1b[2J.txt", "-rf.txt", " .txt", "山.txt"])
def test_a_run_stays_below_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the text is called, the directory of its run is a new one under runs/."""
    monkeypatch.chdir(tmp_path)
    made = RunDirectory.create(Train(corpus=CorpusConfig(name))).path
    assert made.resolve().parent == tmp_path / "runs"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_corpus_name_is_no_way_out_of_the_cache() -> None:
    """Only names in the registry become paths; anything else is the path of a file that is read."""
    for name in REGISTRY:
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert all(re.fullmatch(r"[\w.-]+", file.name) and file.name.strip(".") for file in REGISTRY[name].files)
