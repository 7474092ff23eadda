"""`check --module`: right and wrong files of a user's; each wrong one gets a clear verdict, and the checker lives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner import cli
from runner.diagnosis.hypotheses import explain
from runner.diagnosis.mistakes import ALL, backward_mistakes, forward_mistakes
from runner.module import check as module_check
from runner.module.cells import PARTS, MistakenCell, ReferenceCell, cell_differences, make_fixture
from runner.module.subject import InterfaceError
from shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
LSTM = (EXAMPLES / "my_lstm.py").read_text("utf-8")
MODEL = """
import numpy as np

MODEL = {"cell": "rnn"}


def loss_and_gradients(parameters, tokens, targets, mask, state):
    table, w, u = (parameters[name] for name in ("embedding.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"))
    x, h, states = table[tokens], state["hidden_l0"], [state["hidden_l0"]]
    for t in range(tokens.shape[1]):
        h = np.tanh(x[:, t] @ w.T + h @ u.T + parameters["rnn.bias_l0"])
        states.append(h)
    outputs = np.stack(states[1:], 1)
    logits = outputs @ parameters["decoder.weight"].T + parameters["decoder.bias"]
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    count = mask.sum()
    loss = -(np.log(np.take_along_axis(chances, targets[..., None], -1)[..., 0]) * mask).sum() / count
    d_logits = (chances - np.eye(len(table))[targets]) * mask[..., None] / count
    d_outputs, d_h = d_logits @ parameters["decoder.weight"], 0
    found = {name: np.zeros_like(value) for name, value in parameters.items()}
    found["decoder.weight"] = np.einsum("btv,bth->vh", d_logits, outputs)
    found["decoder.bias"] = d_logits.sum((0, 1))
    for t in reversed(range(tokens.shape[1])):
        d_sum = (d_outputs[:, t] + d_h) * (1 - states[t + 1] ** 2)
        found["rnn.weight_ih_l0"] += d_sum.T @ x[:, t]
        found["rnn.weight_hh_l0"] += d_sum.T @ states[t]
        found["rnn.bias_l0"] += d_sum.sum(0)
        np.add.at(found["embedding.weight"], tokens[:, t], d_sum @ w)
        d_h = d_sum @ u
    return loss, found
"""


@pytest.fixture
def examine(tmp_path, capsys, monkeypatch):
    """Examine a text as a file -> exit status, what was shown in one line, and the report."""

    monkeypatch.setattr("runner.module.cells.ENTRIES", 4)  # finite differences of all are tested once

    def run(text, old="", new="", timeout=20.0, name="mine.py"):
        assert old in text
        path, report = tmp_path / name, tmp_path / "out.json"
        path.write_text(text.replace(old, new) if old else text, "utf-8")
        report.unlink(missing_ok=True)
        status = module_check.run(cli.Check(module=path, timeout=timeout, json=report))
        assert not (tmp_path / "__pycache__").exists()
        return status, " ".join(capsys.readouterr().out.split()), json.loads(report.read_text("utf-8"))

    return run


def test_a_right_cell_agrees(examine):
    status, shown, report = examine(LSTM)
    assert status == 0
    assert "mine.py agrees: 14 quantities compared, 0 differ" in shown
    assert "runs here" in shown
    assert report["ok"]
    assert max(row["max_relative_error"] for row in report["rows"]) < 1e-14
    assert 0 < max(row["differences"] or 0 for row in report["rows"]) < 1e-10


def test_without_backward_the_forward_pass_alone_is_examined(examine):
    status, shown, report = examine(LSTM.partition("def backward")[0])
    assert (status, len(report["rows"])) == (0, 2)
    assert "without backward no gradient is examined" in shown


WRONG = {
    "taken as i g f o, not i f g o: that of old TensorFlow": ("i, f, g, o = np.split", "i, g, f, o = np.split"),
    "stacked as f i g o": ("[d_i, d_f, d_g, d_o]", "[d_f, d_i, d_g, d_o]"),
    "without the tanh around the cell": ('"hidden": o * np.tanh(cell)', '"hidden": o * cell'),
    "takes the cell before the step": ('o * np.tanh(cell), "cell"', 'o * np.tanh(state["cell"]), "cell"'),
    "the bias is left out": (' + weights["bias"]', ""),
    "weight_hh is transposed": (
        'weights["weight_hh"].T',
        'np.concatenate([each.T for each in np.split(weights["weight_hh"], 4)]).T',
    ),
    "the candidate's slope is sigmoid's, not tanh's": ("i * (1 - g**2)", "i * g * (1 - g)"),
    "the forget gate's slope is tanh's, not sigmoid's": ("f * (1 - f)", "(1 - f**2)"),
    "handed to the cell before": ('"cell": d_cell * f}', '"cell": 0 * f}'),
    "comes with d_state['cell'] is not used": ('d_state["cell"] + d_state', "d_state"),
    "take the state after the step": ('d_sums.T @ state["hidden"]', 'd_sums.T @ forward(x, state, weights)["hidden"]'),
    "Your gradient of bias (one step back) and your gradient of bias (back through time) are of the wrong sign": (
        "d_sums.sum(0)",
        "-d_sums.sum(0)",
    ),
    "averaged over the 3 rows": ("d_sums.sum(0)", "d_sums.mean(0)"),
    "zero everywhere": ("d_sums.sum(0)", "0 * d_sums.sum(0)"),
    "right but for rounding": ("return sigmoid(i)", "i = i.astype(np.float32)\n    return sigmoid(i)"),
    "no mistake was found that gives them": ("i * (1 - g**2)", "i * (1.7 - g**2)"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_cell_is_told_why(examine, words):
    status, shown, report = examine(LSTM, *WRONG[words])
    assert status == 1
    assert "mine.py DIFFERS" in shown
    assert words in shown
    assert any(words in hint for hint in report["hints"])


def test_two_mistakes_at_once_are_told_apart(examine):
    text = LSTM.replace("i * (1 - g**2)", "i * g * (1 - g)").replace('"cell": d_cell * f}', '"cell": 0 * f}')
    _, shown, report = examine(text)
    assert "the candidate's slope is sigmoid's, not tanh's" in shown
    assert "no gradient is handed to the cell before" in shown
    assert len(report["hints"]) == 1


def test_the_first_step_that_differs_is_named(examine):
    """A cell that errs from its third step on."""
    text = LSTM.replace("CELL =", "calls = []\nCELL =").replace(
        "    cell = f * state", "    calls.append(x)\n    f = f + 1e-3 * (len(calls) == 3)\n    cell = f * state"
    )
    _, _, report = examine(text)
    hidden = next(row for row in report["rows"] if row["quantity"] == "forward: hidden")
    assert not hidden["ok"]
    assert hidden["place"].startswith("step 3 [")
    assert hidden["yours"] != hidden["reference"]


RETURNED = 'return {"hidden": o * np.tanh(cell), "cell": cell}'
MISBEHAVING = {
    "forward raised ValueError: no such gate (mine.py, line 22: raise ValueError('no such gate'))": (
        "    cell = f",
        "    raise ValueError('no such gate')\n    cell = f",
    ),
    "(mine.py, line 22: np.linalg.inv(f))": ("    cell = f", "    np.linalg.inv(f)\n    cell = f"),
    "cell has shape [7, 3], expected [3, 7] (mine.py, line 19)": ('"cell": cell}', '"cell": cell.T}'),
    "the returned state is None, expected a dict with hidden [3, 7], cell [3, 7]": (RETURNED, "pass"),
    "is ndarray [3, 7], expected a dict": (RETURNED, "return cell"),
    "cell is str, expected an array of numbers": ('"cell": cell}', '"cell": "cell"}'),
    "missing cell [3, 7]": (', "cell": cell}', "}"),
    "forward raised SystemExit: 0": ("    cell = f", "    import sys\n    sys.exit(0)\n    cell = f"),
    "expected three things": (", d_weights\n", "\n"),
    "missing bias [28]; unexpected biases": ('"bias": d_sums', '"biases": d_sums'),
    "bias has shape [3, 28], expected [28]": ("d_sums.sum(0)", "d_sums"),
}


@pytest.mark.parametrize("words", MISBEHAVING)
def test_a_file_that_misbehaves_gets_a_verdict(examine, words):
    status, shown, report = examine(LSTM, *MISBEHAVING[words])
    assert status == 1
    assert "mine.py FAILED" in shown
    assert words in shown
    assert report["failures"]
    assert all(row["ok"] for row in report["rows"])


def test_what_is_not_a_number_is_found(examine):
    status, shown, _ = examine(LSTM, '"cell": cell}', '"cell": cell * np.log(-1 - 0 * cell)}')
    assert status == 1
    assert "not numbers (nan or inf)" in shown


def test_what_it_prints_cannot_steer_the_terminal(examine):
    status, shown, _ = examine(LSTM, "    cell = f", '    print("at \\x1b[31m", 1)\n    cell = f')
    assert status == 0
    assert "the first: at ␛[31m 1" in shown


def test_one_that_never_returns_is_ended(examine):
    status, shown, _ = examine(LSTM, "    cell = f", "    while True:\n        pass\n    cell = f", timeout=0.5)
    assert status == 1
    assert "forward did not return within 0.5 s (mine.py, line" in shown


def test_one_that_does_not_even_hear_the_clock_is_ended(examine, monkeypatch):
    monkeypatch.setattr(module_check, "GRACE", 0.5)
    deaf = "    import signal\n    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n    while True: pass\n    cell = f"
    status, shown, _ = examine(LSTM, "    cell = f", deaf, timeout=0.2)
    assert status == 1
    assert "the worker was ended" in shown


def test_one_that_dies_is_told(examine):
    status, shown, _ = examine(LSTM, "    cell = f", "    import os\n    os.kill(os.getpid(), 11)\n    cell = f")
    assert status == 1
    assert "SIGSEGV" in shown


FUNCTION = "def forward(x, state, weights): ..."
MODEL_FUNCTION = "def loss_and_gradients(*given): ..."
UNUSABLE = {
    "neither CELL nor MODEL": "",
    "both CELL and MODEL": 'CELL = "lstm"\nMODEL = {}',
    "has no function forward": 'CELL = "lstm"',
    "CELL must be one of rnn, rnn-relu, lstm": 'CELL = "lstn"',
    "FRAMEWORK must be one of": f'CELL = "rnn"\nFRAMEWORK = "mxnet"\n{FUNCTION}',
    "MODEL is no model": f'MODEL = {{"cel": 1}}\n{MODEL_FUNCTION}',
    "at least 1, got 0": f'MODEL = {{"hidden_size": 0}}\n{MODEL_FUNCTION}',
    "is not Python: invalid syntax (mine.py, line 1: CELL = = 1)": "CELL = = 1",
    "raised ZeroDivisionError: division by zero (mine.py, line 2: 1 / 0)": "\n1 / 0",
    "did not return within 1 s (mine.py, line": "while True:\n    pass",
}


@pytest.mark.parametrize("words", UNUSABLE)
def test_a_file_without_an_interface_is_refused(examine, words):
    with pytest.raises(InterfaceError, match=re.escape(words)) as error:
        examine(UNUSABLE[words], timeout=1)
    assert error.value.exit_status == 2


def test_options_that_could_have_no_effect_are_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LSTM, "utf-8")
    with pytest.raises(ConfigError, match="--module examines"):
        module_check.run(cli.Check(module=path, cell="gru"))
    with pytest.raises(ConfigError, match="positive"):
        module_check.run(cli.Check(module=path, timeout=0))
    with pytest.raises(InterfaceError, match="there is no file"):
        module_check.run(cli.Check(module=tmp_path / "nowhere.py"))


MODELS = {
    "": ("", ""),
    "all 4 gradients that differ are what comes out when nothing is carried back": ("d_h = d_sum @ u", "d_h = 0"),
    "the nats are summed, not averaged": ("count = mask.sum()", "count = 1"),
    "the sum is divided by all tokens, padding too": ("count = mask.sum()", "count = mask.size"),
    "the mask is not looked at": ("count = mask.sum()", "mask = np.ones_like(mask)\n    count = mask.sum()"),
    "the given state is not used": ('state["hidden_l0"], [state["hidden_l0"]]', "np.zeros((3, 7)), [np.zeros((3, 7))]"),
    "np.add.at adds all": (
        'np.add.at(found["embedding.weight"], tokens[:, t], d_sum @ w)',
        'found["embedding.weight"][tokens[:, t]] += d_sum @ w',
    ),
    "weight_hh is transposed": ("d_sum.T @ states[t]", "(d_sum.T @ states[t]).T"),
}


@pytest.mark.parametrize("words", MODELS)
def test_a_model(examine, words):
    text = MODEL.replace("    x, h,", "    u = u.T\n    x, h,") if "transposed" in words else MODEL
    status, shown, _ = examine(text, *MODELS[words])
    assert status == bool(words)
    assert words.lower() in shown.lower()


@pytest.mark.parametrize("cell", ALL)
def test_the_cell_without_a_mistake_is_the_reference(cell):
    fixture, reference, none = make_fixture(cell), ReferenceCell(cell), MistakenCell(cell, ())
    for part in PARTS:
        expected = fixture.part(part, reference)
        for name, value in fixture.part(part, none).items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-13, err_msg=name)
    expected = fixture.part("back through time", reference)
    for name, slopes in cell_differences(fixture).items():
        assert np.nanmax(np.abs(slopes - expected[name])) < 1e-10 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("cell", ALL)
def test_every_mistake_shows_and_is_found(cell):
    fixture, reference = make_fixture(cell), ReferenceCell(cell)
    expected = {name: value for part in PARTS for name, value in fixture.part(part, reference).items()}
    usual = {"stacked ifgo", "stacked rzn"}
    for made, words in (forward_mistakes(cell) | backward_mistakes(cell)).items():
        found = {n: v for part in PARTS for n, v in fixture.part(part, MistakenCell(cell, (made,))).items()}
        reasons = explain(fixture, found, expected)
        assert (not reasons) if made in usual else any(words in reason for reason in reasons), made


def blocks():
    """Command -> what docs/check-module.md says that it shows."""
    page = (ROOT / "docs/check-module.md").read_text("utf-8")
    found = re.findall(r"```text\n\$ python -m runner ([^\n]+)\n(.*?)```", page, re.DOTALL)
    return dict(found)


def steady(text):
    """Lines without the numbers that rounding alone makes, and without what is beside an agreement."""
    lines = [" ".join(re.sub(r"\b\d(\.\d+)?e-1\d\b", "tiny", line).split()) for line in text.splitlines()]
    return [re.sub(r"^(.*? ok)\b.*", r"\1", line) for line in lines if line]


@pytest.mark.parametrize("example", ["my_lstm.py", "published_wrnn.py"])
def test_the_page_shows_what_the_command_says(example):
    command = f"check --module docs/examples/{example}"
    settings = {**os.environ, "COLUMNS": "120"}
    words = [sys.executable, "-m", "runner", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=settings, timeout=60)
    assert done.stderr == ""
    assert done.returncode == (example == "published_wrnn.py")
    assert steady(blocks()[command]) == steady(done.stdout)
