"""The localiser names the deliberate defects of test_defects: where they show first, and what was done wrong."""

import json

import pytest
import test_defects
from test_defects import DEFECTS, PAIRS, Inline

from runner import check
from runner.cli import Check
from runner.diagnosis.localiser import finding, sentences
from runner.examination.bounds import compare
from runner.examination.cases import CASES, make_case
from runner.examination.examinee import PARTS, Examinee
from runner.workers import Worker

mutated = test_defects.mutated  # the fixture
UNNAMED = "located, and no cause of the catalogue"
CAUSES = {
    "input and forget gate swapped": "order figo",
    "candidate and output gate swapped": "order ifog",
    "cell kept by the input gate": "kept by input",
    "old cell added whole": "forget missing",
    "reset and update swapped": "inputs in order zrn",
    "update gate inverted": "update inverted",
    "bias_hn missing": "bias_hn missing",
    "bias_hn outside the reset product": "bias_hn outside",
    "reset before the product": "reset missing",
    "reset after the product": "reset missing",
    "the second layer has no bias": "bias_b missing",
    "residual connection missing": "residual left out",
    "dropout behind the last layer too": "dropout behind the last layer too",
    "no dropout behind the last layer": "dropout behind the last layer left out",
    "recurrent weight transposed": "weight_hh transposed",
    "bias missing": "bias missing",
    "bias counted twice": "bias twice",
    "every layer starts from the first layer's state": "first layer's state for all layers",
    "state of the last step stale": "state one step behind",
    "wrnn: the skip sees the new state": "new first skips",
    "masks of another layout": "masks laid out by time",
    "the same mask behind every layer": "one mask for all layers",
    "an arithmetic shift for a logical one": UNNAMED,
    "words compared with their sign": UNNAMED,
    "what is kept not scaled up": "kept not scaled up",
    "the same masks at every step": "the same masks at every step",
    "activation forgotten": "activation left out",
    "the last step, padding or not": "the window's last step predicts",
    "an empty row counted": "empty rows counted",
    "reset ignored in training": "reset ignored",
    "state not carried from batch to batch": "state not carried in training",
    "optimizer handed over without its step": "count of updates lost between calls",
    "state of an ended row kept": "state of ended rows kept",
    "mask missing from the loss": ("mask ignored", "mask ignored in the loss"),
    "mean over padding too": "mean over padding",
    "clipping per tensor": "clipping per tensor",
    "clipping forgotten": "clipping left out",
    "norm before the other clippings": "norm before the other clippings",
    "epsilon inside the root": ("epsilon inside", "epsilon's root"),
    "epsilon of another library": "epsilon 1e-7",
    "moments swapped": "betas swapped",
    "bias correction one step late": "bias correction one step late",
    "epsilon after the bias correction": "epsilon outside",
    "mean not subtracted from the squares": "mean not subtracted",
    "nesterov without its velocity": "nesterov without velocity",
    "one learning rate for all steps": "one learning rate for all steps",
    "temperature multiplies": "temperature multiplies",
    "top-k keeps one more": "top-k keeps one more",
    "top-p on the sum after": "top-p on the sum after",
    "short prompts read into the padding": "one token too many read",
    "a transposed gradient applied scrambled": "gradient's memory scrambled",
    "recurrent weight transposed in the backward pass": "weight_hh transposed back",
    "sigmoid's derivative for tanh's": "sigmoid slope of tanh",
    "relu lets everything back": "relu slope missing",
    "cell's gradient not carried": "cell not handed back",
    "cell's gradient without the output gate": "cell without output",
    "candidate's derivative of the input gate": "sigmoid slope of g",
    "reset gate's gradient without the product": UNNAMED,
    "update gate's path back missing": "kept path missing",
    "reset gate missing on the way back": "reset missing back",
    "bias_hn's gradient of another gate": "bias_hn's gradient of r",
    "reset before: candidate's weight sees the whole state": "kept by whole",
    "reset before: the reset gate missing on the way back": UNNAMED,
    "wrnn: the skip forgotten on the way back": "skip missing back",
    "wrnn: nothing carried through time": "first not received",
    "wrnn: tanh's derivative for sigmoid's": "tanh slope of a",
    "wrnn: the skip's weight sees the new state": "weight_skip's gradient sees the new state",
    "weights see the state after the step": "after for before",
    "residual connection forgotten on the way back": "plain residual left out on the way back",
    "projected connection forgotten on the way back": "projected residual left out on the way back",
    "dropout forgotten on the way back": "dropout left out on the way back",
    "dropout where none was asked for": "dropout always",
    "tied gradient of the decoder alone": "tied gradient of the decoder alone",
    "activation's slope forgotten": "activation's slope left out",
    "repeated tokens dropped": "repeated tokens not added up",
    "gradient of a reset row's state": "gradient of a reset row kept",
    "second layer reads the first one's state": "first layer's state on the way back",
    "mean over padding in the loss": "mean over padding",
    "norm of each tensor alone": "clipping per tensor",
    "clipping by value on one side": "value clipping from above only",
    "a layer's limit for all layers": "layer's limit for all layers",
    "epsilon before the bias correction": "epsilon uncorrected",
    "no bias correction of the mean": "mean not corrected",
    "learning rate outside the velocity": UNNAMED,
    "nesterov looks back": "nesterov without momentum",
    "weight decay without the learning rate": "decay without the learning rate",
    "adagrad starts from zero": "squares start from zero",
    "state forgotten between calls": "state lost between calls",
    "step not counted": "updates not counted",
    "ended rows go on": "ended rows go on",
}
"""Defect -> the cause that must be among the confirmed ones; of several, one."""


@pytest.fixture(scope="module")
def true_reference():
    """In its own process, where no defect is loaded."""
    with Worker("reference", Examinee, "numpy", "cpu") as worker:
        worker.call("answer", PARTS["forward"], make_case("rnn", CASES["rnn"]), "float64")  # now all is imported
        yield worker


def until_it_differs(examinee, case, expected):
    """The quantities of the first parts, up to one that differs."""
    found = {}
    for part in examinee.target.parts(case, "float64"):
        found |= part
        if not all(row["ok"] for row in compare(part, {name: expected[name] for name in part}, "float64")):
            break
    return found


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutated", PAIRS, indirect=True, ids=[f"{impl}-{defect.what}" for impl, defect in PAIRS])
def test_a_defect_is_named(true_reference, mutated):
    impl, defect, expected = mutated
    case = make_case(defect.case, CASES[defect.case])
    with Inline(impl, Examinee, impl, "cpu") as examinee:
        found = until_it_differs(examinee, case, expected)
        who = {"impl": impl, "engine": "scratch", "dtype": "float64", "case": case.name}
        (located,) = finding(who, case, found, expected, examinee, true_reference)
    where, why = sentences(located)
    assert defect.case in where
    assert located["value"] != located["reference"]
    wanted = CAUSES[defect.what]
    if wanted == UNNAMED:
        assert not located["causes"], "named after all: say so in CAUSES"
        assert why.startswith("not explained: ")
    else:
        assert set(located["causes"]) & {wanted, *([] if isinstance(wanted, str) else wanted)}
        assert len(located["causes"]) <= 2
        assert why.startswith("cause, confirmed ")


def test_nine_of_ten_defects_have_a_name(impl):
    unnamed = [defect.what for defect in DEFECTS[impl] if CAUSES[defect.what] == UNNAMED]
    print(f"{impl}: {len(DEFECTS[impl]) - len(unnamed)} of {len(DEFECTS[impl])} defects named; not: {unnamed}")
    assert 10 * len(unnamed) <= len(DEFECTS[impl])


class Transposed(Examinee):
    """One whose weight_hh is transposed."""

    def create(self, case, *how):
        turned = {name: value.T if "weight_hh" in name else value for name, value in case.parameters.items()}
        return super().create(case._replace(parameters=turned), *how)


def test_the_command_says_where_and_why(monkeypatch, capsys, tmp_path, impl):
    test_defects.one_case(monkeypatch)
    monkeypatch.setattr(Examinee, "finite_differences", lambda self, case: 1e-12)

    def open_worker(name, factory, *arguments):
        return Inline(name, Examinee if name == "reference" else Transposed, *arguments)

    options = Check(impl=impl, cell="rnn", dtype="float64", json=tmp_path / "check.json")
    assert check.run(options, open_worker) == 1
    shown = capsys.readouterr().out
    assert f"{impl} scratch float64, rnn: differs first in trace: hidden_l0, row " in shown
    assert "confirmed by making it: these numbers come out when weight_hh is transposed" in shown
    (located,) = json.loads((tmp_path / "check.json").read_text("utf-8"))["findings"]
    assert located["causes"] == ["weight_hh transposed"]
    assert located["confirmed"] is True
    assert located["indices"][1] == 0
