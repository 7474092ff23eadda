"""`check --module` on files written in PyTorch, JAX and TensorFlow: gradients by each framework's autograd."""

import json

import pytest

from runner import cli
from runner.module import check as module_check

FORWARD = """
FRAMEWORK = "{framework}"
CELL = "gru"


def forward(x, state, weights):
    h = state["hidden"]
    size = h.shape[1]
    projected = x @ transpose(weights["weight_ih"]) + weights["bias"]
    recurrent = h @ transpose(weights["weight_hh"])
    r, z, n = (slice(k * size, (k + 1) * size) for k in range(3))
    reset, update = (sigmoid(projected[:, each] + recurrent[:, each]) for each in (r, z))
    new = tanh(projected[:, n] + reset * (recurrent[:, n] + weights["bias_hn"]))
    return {{"hidden": (1 - update) * new + update * h}}
"""
IMPORTS = {
    "torch": "from torch import sigmoid, t as transpose, tanh",
    "jax": "from jax.nn import sigmoid\nfrom jax.numpy import tanh, transpose",
    "tf": "from tensorflow import sigmoid, tanh, transpose",
}
BY_HAND = """

def backward(d_state, x, state, weights):
    forgotten = {name: 0 * each for name, each in state.items()}
    return 0 * x, forgotten, {name: 0 * each for name, each in weights.items()}
"""


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Examine a text as a file -> exit status, what was shown in one line, and the report."""
    monkeypatch.setattr("runner.module.cells.ENTRIES", 4)

    def run(text):
        path, report = tmp_path / "mine.py", tmp_path / "out.json"
        path.write_text(text, "utf-8")
        status = module_check.run(cli.Check(module=path, timeout=120, json=report))
        return status, " ".join(capsys.readouterr().out.split()), json.loads(report.read_text("utf-8"))

    return run


@pytest.mark.parametrize("framework", IMPORTS)
def test_a_right_cell_agrees(examine, framework):
    status, shown, report = examine(IMPORTS[framework] + FORWARD.format(framework=framework))
    assert status == 0, shown
    assert "mine.py agrees: 13 quantities compared, 0 differ" in shown
    assert "differentiated by the framework" in shown
    assert max(row["max_relative_error"] for row in report["rows"]) < 1e-13


@pytest.mark.parametrize("framework", IMPORTS)
def test_keras_order_of_the_gates_is_named(examine, framework):
    text = FORWARD.format(framework=framework).replace("r, z, n = (", "z, r, n = (")
    status, shown, report = examine(IMPORTS[framework] + text)
    assert status == 1
    assert "taken as z r n, not r z n: Keras' and ONNX's order" in shown
    assert len(report["hints"]) == 1
    assert not any(row["ok"] for row in report["rows"])


def test_a_backward_by_hand_goes_before_autograd(examine):
    status, shown, _ = examine(IMPORTS["torch"] + FORWARD.format(framework="torch") + BY_HAND)
    assert status == 1
    assert "forward and backward, in PyTorch" in shown
    assert "zero everywhere" in shown


def test_a_detached_state_is_found(examine):
    text = FORWARD.format(framework="torch").replace('h = state["hidden"]', 'h = state["hidden"].detach()')
    status, _, report = examine(IMPORTS["torch"] + text)
    assert status == 1
    assert [row["quantity"] for row in report["rows"] if row["quantity"].startswith("forward") and not row["ok"]] == []
    hidden = next(row for row in report["rows"] if row["quantity"] == "one step back: hidden before")
    assert hidden["yours"] == 0
    assert "no gradient is handed to the step before" in report["hints"][0]
