"""The localiser's catalogue: its imitation without a mistake is the reference, and each mistake changes something."""

import numpy as np
import pytest
from conftest import reference

from runner.diagnosis.causes import causes
from runner.diagnosis.localiser import explain, finding
from runner.diagnosis.mistaken_model import MistakenModel
from runner.diagnosis.places import first_place
from runner.examination.bounds import compare
from runner.examination.cases import CASES, V, make_case
from runner.examination.examinee import PARTS, SEED, at, numbers_of, training
from runner.workers import WorkerError


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
