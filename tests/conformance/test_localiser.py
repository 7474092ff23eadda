"""The localiser names the deliberate defects of test_defects: where they show first, and what was done wrong."""

import json

import numpy as np
import pytest
import test_defects
from test_defects import DEFECTS, PAIRS, Inline, reference

from runner import check
from runner.causes import causes
from runner.cli import Check
from runner.examination import CASES, PARTS, SEED, Examinee, V, at, compare, make_case, numbers_of, training
from runner.localiser import explain, finding, sentences
from runner.mistaken_model import MistakenModel
from runner.places import first_place
from runner.workers import Worker, WorkerError

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
    "mask missing from the loss": "mask ignored",
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


def stages(case):
    """Stage, of the catalogue, and optimizer of everything that a case measures."""
    first = next(iter(case.optimizers))
    parts = [part for part in case.parts if part != "traced"]
    return [(part, first) for part in parts] + [("training", label) for label in case.optimizers]


def imitated(case, stage, label, made=(), train=training):
    model = MistakenModel(case.model, case.optimizers[label], V, SEED, made)
    model.load_parameters(case.parameters)
    with np.errstate(all="ignore"):
        return numbers_of(train(model, case, label) if stage == "training" else PARTS[stage](model, case))


def short_training(model, case, label):
    """Six steps, the learning rate falling, the optimizer handed over after the fourth; one row starts anew."""
    state, rates = case.state, np.array([0.02, 0.02, 0.02, 0.01, 0.01, 0.01])
    for part in (slice(0, 4), slice(4, 6)):
        steps = model.train_steps(at(case.batches, part), state, rates[part])
        state = steps.state
        model.load_optimizer(*model.dump_optimizer())
    return {f"{label}: losses": steps.losses, f"{label}: decoder.bias": model.dump_parameters()["decoder.bias"]}


@pytest.mark.parametrize("name", CASES)
def test_without_a_mistake_the_imitation_is_the_reference(name):
    case = make_case(name, CASES[name])
    found = {}
    for stage, label in stages(case):
        found |= imitated(case, stage, label)
    expected = {each: value for each, value in reference(name).items() if not each.startswith("trace")}
    assert found.keys() == expected.keys()
    assert [row for row in compare(found, expected, "float64") if not row["ok"]] == []


EFFECTIVE = {
    "forward": CASES,
    "evaluation": ("rnn", "lstm many-to-one"),
    "gradients": CASES,
    "tokens": ("rnn",),
    "training": (
        "rnn",
        "lstm dropout, tied",
        "rnn relu, activation",
        "gru residual, dropout",
        "gru reset before",
        "lstm one-hot, residual",
    ),
}
"""Stage -> cases in which all its causes show."""


@pytest.mark.parametrize("stage", EFFECTIVE)
def test_every_cause_of_the_catalogue_changes_something(stage):
    named, effective = set(), set()
    for name in EFFECTIVE[stage]:
        case = make_case(name, CASES[name])
        for label in [label for part, label in stages(case) if part == stage]:
            right = imitated(case, stage, label, (), short_training)
            named |= (catalogue := causes(stage, case.model, case.optimizers[label])).keys()
            for cause in catalogue.keys() - effective:
                found = imitated(case, stage, label, {cause}, short_training)
                if not all(row["ok"] for row in compare(found, right, "float64")):
                    effective.add(cause)
    assert named - effective == set()


def test_the_first_step_comes_first_then_the_lower_layer_then_the_earlier_gate():
    case = make_case("lstm", CASES["lstm"])
    right = {f"trace: {field}_l{layer}": np.ones((3, 6, 7)) for layer in (1, 0) for field in ("hidden", "cell")}
    wrong = {name: value.copy() for name, value in right.items()}
    wrong["trace: hidden_l0"][1, 4, 2] = 9
    assert first_place(case, "float64", right, right) is None
    assert first_place(case, "float64", wrong, right).words == "row 1, step 4, unit 2"
    wrong["trace: cell_l1"][:, 3, :] = np.nan
    assert first_place(case, "float64", wrong, right)[:2] == ("trace: cell_l1", (0, 3, 0))
    wrong["trace: hidden_l0"][2, 3, 5] = 1 + 1e-9
    place = first_place(case, "float64", wrong, right)
    assert place[:3] == ("trace: hidden_l0", (2, 3, 5), "row 2, step 3, unit 5")
    assert place.relative == pytest.approx(1e-9)
    assert place.ulps == pytest.approx(1e-9 / 2**-52)
    wrong["trace: cell_l0"][2, 3, 5] = 2
    assert first_place(case, "float64", wrong, right).quantity == "trace: cell_l0"
    wrong["trace: hidden_l1"] = np.ones((3, 6, 8))
    assert first_place(case, "float64", wrong, right).words == "shape [3, 6, 8], expected [3, 6, 7]"


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


def test_a_small_step_towards_a_cause_is_no_proof_of_it():
    """In float32 the bounds are wide: what is somewhat imprecise must not be taken for a cause that does little."""
    case = make_case("lstm", CASES["lstm"])
    expected = {name: reference("lstm")[name] for name in ("logits", "logits: next batch")}
    found = {
        name: value + 4e-4 * np.sin(np.arange(value.size)).reshape(value.shape) for name, value in expected.items()
    }
    who = {"impl": "torch", "engine": "native", "dtype": "float32", "case": "lstm"}
    (located,) = finding(who, case, found, expected, None, None)
    assert located["causes"] == []
    assert "TF32" in located["explanation"]


def test_who_broke_down_is_not_asked_again():
    class Dead:
        def call(self, *arguments):
            raise WorkerError("jax: the worker died (signal SIGKILL)")

    case = make_case("rnn", CASES["rnn"])
    rows = [{"impl": "jax", "engine": "scratch", "case": "rnn", "dtype": "float64", "ok": False}]
    assert explain(rows, [case], None, {"jax": [Dead()]}) == []
    assert explain([rows[0] | {"engine": ""}], [case], None, {}) == []
