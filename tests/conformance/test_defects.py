"""The tests' own tests: deliberate defects in an implementation's source, each of which the examination must catch.

A defect is a replacement in one file. The mutated package is loaded in place of the real one and examined with the very
code of `check`; the reference was measured before. The compiled frameworks take a selection, since each must compile anew.
"""

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import REQUIRED, reference

from runner import check
from runner.examination.bounds import compare
from runner.examination.cases import CASES, make_case
from runner.examination.examinee import Examinee
from runner.workers import WorkerError

ROOT = Path(__file__).parents[2]


class Defect(NamedTuple):
    what: str
    case: str
    file: str
    old: str
    new: str


# Text that the four implementations share.
COMMON = [
    Defect("input and forget gate swapped", "lstm", "lstm.py", "i, f, g, o =", "f, i, g, o ="),
    Defect("candidate and output gate swapped", "lstm", "lstm.py", "i, f, g, o =", "i, f, o, g ="),
    Defect("cell kept by the input gate", "lstm", "lstm.py", "gates.forget_gate * state.cell", "gates.input_gate * state.cell"),
    Defect("old cell added whole", "lstm", "lstm.py", "gates.forget_gate * state.cell", "state.cell"),
    Defect("reset and update swapped", "gru", "gru.py", "x_r, x_z, x_n =", "x_z, x_r, x_n ="),
    Defect("update gate inverted", "gru", "gru.py", "(1 - update) * candidate + update *", "update * candidate + (1 - update) *"),
    Defect("bias_hn missing", "gru", "gru.py", "h_n + weights.bias_hn", "h_n + 0 * weights.bias_hn"),
    Defect("bias_hn outside the reset product", "gru", "gru.py", "x_n + reset * recurrent", "x_n + weights.bias_hn + reset * h_n"),
    Defect("reset before the product", "gru", "gru.py", "reset * recurrent", "recurrent"),
    Defect("reset after the product", "gru reset before", "gru.py", "reset * state.hidden", "state.hidden"),
    Defect("the second layer has no bias", "wrnn", "wrnn.py", " + weights.bias_b", " + 0 * weights.bias_b"),
    Defect("residual connection missing", "lstm one-hot, residual", "unroll.py", "outputs = outputs + shortcut(", "outputs = outputs + 0 * shortcut("),
    Defect("dropout behind the last layer too", "gru residual, dropout", "unroll.py", "if dropout and dropout.rates[k]:", "if dropout and (dropout := dropout._replace(rates=dropout.rates[:1] * len(states))):"),
    Defect("no dropout behind the last layer", "lstm dropout, tied", "unroll.py", "dropout.rates[k]:", "dropout.rates[k] and k + 1 < model.num_layers:"),
    Defect("state of an ended row kept", "rnn", "model.py", ", ~batch.mask[:, -1])", ", ~batch.mask[:, -1] & False)"),
]  # fmt: skip
CELLS_ONLY = [
    Defect("recurrent weight transposed", "rnn", "rnn.py", "tanh(projected + state.hidden @ weights.weight_hh.T", "tanh(projected + state.hidden @ weights.weight_hh"),
    Defect("bias missing", "rnn", "unroll.py", "weights.weight_ih, weights.bias)", "weights.weight_ih, 0 * weights.bias)"),
    Defect("bias counted twice", "lstm", "unroll.py", "weights.weight_ih, weights.bias)", "weights.weight_ih, 2 * weights.bias)"),
    Defect("every layer starts from the first layer's state", "gru", "unroll.py", "engine(cell, inputs, state,", "engine(cell, inputs, states[0],"),
    Defect("state of the last step stale", "lstm", "unroll.py", "return outputs, state,", "return outputs, states[max(len(states) - 2, 0)],"),
    Defect("wrnn: the skip sees the new state", "wrnn", "wrnn.py", "state.first @ weights.weight_skip.T", "first @ weights.weight_skip.T"),
    Defect("masks of another layout", "lstm dropout, tied", "dropout.py", "rows[:, None] * T + times[:, None, None]", "times[:, None, None] * B + rows[:, None]"),
    Defect("the same mask behind every layer", "lstm dropout, tied", "dropout.py", "keys[layer].unbind()", "keys[0].unbind()"),
    Defect("an arithmetic shift for a logical one", "lstm dropout, tied", "dropout.py", ".bitwise_and_(0xFFFF)\n    x *= 0x7FEB352D", "\n    x *= 0x7FEB352D"),
    Defect("words compared with their sign", "lstm dropout, tied", "dropout.py", "bits.bitwise_xor_(-(2**31)) >=", "bits >="),
    Defect("what is kept not scaled up", "lstm dropout, tied", "dropout.py", "(1 / (1 - dropout.rates[layer]))", "1"),
    Defect("the same masks at every step", "lstm dropout, tied", "model.py", "self._dropout(self._step)", "self._dropout(0)"),
    Defect("activation forgotten", "rnn relu, activation", "embedding.py", "ACTIVATIONS[activation](", "("),
    Defect("the last step, padding or not", "lstm many-to-one", "loss.py", "(batch.mask.sum(1) - 1).clamp(min=0)", "torch.full_like(batch.mask.sum(1), batch.mask.shape[1] - 1)"),
    Defect("an empty row counted", "lstm many-to-one", "loss.py", "batch.mask.any(1)[None]", "torch.ones_like(batch.mask[:, 0])[None]"),
    Defect("reset ignored in training", "rnn", "model.py", "zero_rows(state, batch.reset), places", "state, places"),
    Defect("state not carried from batch to batch", "rnn", "model.py", "loss, norm, finite, state = self._train_step", "loss, norm, finite, _ = self._train_step"),
    Defect("optimizer handed over without its step", "rnn", "model.py", "self._step.fill_(step)", "self._step.fill_(0)"),
    Defect("mask missing from the loss", "rnn", "model.py", "targets, mask = unmasked(*predictions(outputs, batch, self._model.many_to_one), rows)\n        after", "targets, mask = predictions(outputs, batch, self._model.many_to_one)\n        mask = torch.ones_like(mask)\n        after"),
    Defect("mean over padding too", "rnn", "model.py", "targets, mask, count), after", "targets, mask, torch.tensor(batch.mask.numel())), after"),
    Defect("clipping per tensor", "rnn", "optimizer.py", "gradient * scale.to(gradient.dtype)", "gradient * (limit / gradient.norm().clamp(min=limit))"),
    Defect("clipping forgotten", "rnn", "optimizer.py", "gradient * scale.to(gradient.dtype)", "gradient"),
    Defect("norm before the other clippings", "gru reset before", "optimizer.py", "global_norm(gradients) if changed else norm", "norm"),
    Defect("epsilon inside the root", "rnn", "optimizer.py", "eps=how.epsilon", "eps=how.epsilon ** 0.5"),
    Defect("epsilon of another library", "rnn", "optimizer.py", "eps=how.epsilon", "eps=1e-7"),
    Defect("moments swapped", "rnn", "optimizer.py", "beta1=how.first, beta2=how.second", "beta1=how.second, beta2=how.first"),
    Defect("bias correction one step late", "rnn", "optimizer.py", "[step.float() for", "[step.float() + 1 for"),
    Defect("epsilon after the bias correction", "lstm one-hot, residual", "optimizer.py", 'if how.place == "uncorrected" else', 'if how.place == "nowhere" else'),
    Defect("mean not subtracted from the squares", "rnn relu, activation", "optimizer.py", "square - mean * mean", "square"),
    Defect("nesterov without its velocity", "gru reset before", "optimizer.py", "change + how.momentum * buffer if how.nesterov", "change if how.nesterov"),
    Defect("one learning rate for all steps", "rnn", "model.py", "float(learning_rate))\n            steps", "float(learning_rates[0]))\n            steps"),
    Defect("temperature multiplies", "rnn", "generate.py", "    weights = logits - logits.amax", "    rule = rule._replace(temperature=1 / rule.temperature)\n    weights = logits - logits.amax"),
    Defect("top-k keeps one more", "rnn", "generate.py", "count = min(rule.top_k or", "count = min(rule.top_k + 1 or"),
    Defect("top-p on the sum after", "rnn", "generate.py", "before = sums[:, :-1]", "before = sums[:, 1:]"),
    Defect("short prompts read into the padding", "rnn", "generate.py", "p < prompt_lengths", "p < prompt_lengths + 1"),
    Defect("a transposed gradient applied scrambled", "lstm one-hot, residual", "optimizer.py", "gradients[name].contiguous()", "gradients[name]"),
]  # fmt: skip
BY_HAND = [
    Defect("recurrent weight transposed", "rnn", "rnn.py", "np.tanh(projected + state.hidden @ weights.weight_hh.T", "np.tanh(projected + state.hidden @ weights.weight_hh"),
    Defect("recurrent weight transposed in the backward pass", "rnn", "rnn.py", "d_sum @ weights.weight_hh)", "d_sum @ weights.weight_hh.T)"),
    Defect("sigmoid's derivative for tanh's", "rnn", "rnn.py", "(1 - after.hidden**2)", "after.hidden * (1 - after.hidden)"),
    Defect("relu lets everything back", "rnn relu, activation", "rnn.py", "d_after.hidden * (after.hidden > 0)", "d_after.hidden"),
    Defect("cell's gradient not carried", "lstm", "lstm.py", "d_cell * f)", "0 * d_cell)"),
    Defect("cell's gradient without the output gate", "lstm", "lstm.py", "d_after.hidden * o * (1", "d_after.hidden * (1"),
    Defect("candidate's derivative of the input gate", "lstm", "lstm.py", "d_cell * i * (1 - g**2)", "d_cell * i * g * (1 - g)"),
    Defect("reset gate's gradient without the product", "gru", "gru.py", "d_n * recurrent * r", "d_n * r"),
    Defect("update gate's path back missing", "gru", "gru.py", "weights.weight_hh + d_after.hidden * z)", "weights.weight_hh)"),
    Defect("reset gate missing on the way back", "gru", "gru.py", "[d_r, d_z, d_n * r]", "[d_r, d_z, d_n]"),
    Defect("bias_hn's gradient of another gate", "gru", "gru.py", "d_recurrent[..., 2 * size :].sum((0, 1))", "d_recurrent[..., :size].sum((0, 1))"),
    Defect("reset before: candidate's weight sees the whole state", "gru reset before", "gru.py", "product(d_candidate, kept)", "product(d_candidate, before.hidden)"),
    Defect("reset before: the reset gate missing on the way back", "gru reset before", "gru.py", "d_kept * r + d_after", "d_kept + d_after"),
    Defect("wrnn: the skip forgotten on the way back", "wrnn", "wrnn.py", "d_first @ weights.weight_hh + d_second @ weights.weight_skip", "d_first @ weights.weight_hh"),
    Defect("wrnn: nothing carried through time", "wrnn", "wrnn.py", "(d_after.first + d_second @ weights.weight_ab)", "(d_second @ weights.weight_ab)"),
    Defect("wrnn: tanh's derivative for sigmoid's", "wrnn", "wrnn.py", "after.first * (1 - after.first)", "(1 - after.first**2)"),
    Defect("wrnn: the skip's weight sees the new state", "wrnn", "wrnn.py", "product(d_recurrent, before.first)", "product(d_recurrent, after.first)"),
    Defect("weights see the state after the step", "lstm", "unroll.py", "cell.weights_backward(d_x, d_h, befores,", "cell.weights_backward(d_x, d_h, record.states,"),
    Defect("residual connection forgotten on the way back", "gru residual, dropout", "unroll.py", "d_inputs = d_inputs + d_outputs", "pass"),
    Defect("projected connection forgotten on the way back", "gru residual, dropout", "unroll.py", "d_inputs + d_added", "d_inputs"),
    Defect("dropout forgotten on the way back", "lstm dropout, tied", "unroll.py", "d_outputs = d_outputs * factors", "pass"),
    Defect("the same mask behind every layer", "lstm dropout, tied", "dropout.py", "dropout.keys[layer]", "dropout.keys[0]"),
    Defect("what is kept not scaled up", "lstm dropout, tied", "dropout.py", "1 / (1 - dropout.rates[layer])", "1"),
    Defect("masks of another layout", "lstm dropout, tied", "dropout.py", "rows[:, None] * np.uint32(T) + times[:, None, None]", "times[:, None, None] * np.uint32(B) + rows[:, None]"),
    Defect("dropout where none was asked for", "lstm dropout, tied", "model.py", "step) if any(rates) and step is not None else None", "step or 0) if any(rates) else None"),
    Defect("the same masks at every step", "lstm dropout, tied", "model.py", "self._dropout(self._step)", "self._dropout(0)"),
    Defect("tied gradient of the decoder alone", "lstm dropout, tied", "model.py", "gradient + gradients[name] if name in gradients else gradient", "gradient"),
    Defect("activation's slope forgotten", "rnn relu, activation", "embedding.py", "d_vectors * SLOPES[activation](vectors)", "d_vectors * 1"),
    Defect("the last step, padding or not", "lstm many-to-one", "loss.py", "np.maximum(batch.mask.sum(1) - 1, 0)", "np.full(len(batch.mask), batch.mask.shape[1] - 1)"),
    Defect("an empty row counted", "lstm many-to-one", "loss.py", "batch.mask.any(1)[None]", "np.ones_like(batch.mask[:, 0])[None]"),
    Defect("repeated tokens dropped", "rnn", "arrays.py", "table[present] += np.add.reduceat(values[order], starts, axis=0)", "table[rows] = values"),
    Defect("gradient of a reset row's state", "rnn", "model.py", "zero_rows(d_states, batch.reset), zero_rows(after", "d_states, zero_rows(after"),
    Defect("second layer reads the first one's state", "rnn", "unroll.py", "d_outputs, inputs, states[k], weights, record)", "d_outputs, inputs, states[0], weights, record)"),
    Defect("mask missing from the loss", "rnn", "model.py", "count = (batch.mask.any(1)", "batch = batch._replace(mask=np.ones_like(batch.mask))\n        count = (batch.mask.any(1)"),
    Defect("mean over padding in the loss", "rnn", "model.py", "else batch.mask).sum()", "else batch.mask).size"),
    Defect("norm of each tensor alone", "rnn", "optimizer.py", "gradient * scale.astype", "gradient * (limit / np.maximum(np.sqrt((gradient**2).sum()), limit)).astype"),
    Defect("clipping by value on one side", "lstm", "optimizer.py", "gradient.clip(-limit, limit)", "gradient.clip(None, limit)"),
    Defect("a layer's limit for all layers", "rnn one-hot", "optimizer.py", "gradients = gradients | clip_by_global_norm(layer, global_norm(layer), limit)", "gradients = clip_by_global_norm(gradients, global_norm(gradients), limit)"),
    Defect("norm before the other clippings", "gru reset before", "optimizer.py", "global_norm(gradients) if changed else norm", "norm"),
    Defect("epsilon inside the root", "rnn", "optimizer.py", 'how.place == "inside"', 'how.place == "outside"'),
    Defect("epsilon before the bias correction", "rnn", "optimizer.py", 'if how.place == "uncorrected" else', "if how.corrected else"),
    Defect("no bias correction of the mean", "rnn", "optimizer.py", "c2**0.5 / c1", "c2**0.5"),
    Defect("bias correction one step late", "rnn", "optimizer.py", "how.first ** (step + 1), 1 - how.second ** (step + 1)", "how.first ** (step + 2), 1 - how.second ** (step + 2)"),
    Defect("mean not subtracted from the squares", "rnn relu, activation", "optimizer.py", "square - mean * mean", "square"),
    Defect("learning rate outside the velocity", "gru", "optimizer.py", "change if how.rate_inside else learning_rate * change\n", "change * (learning_rate / 0.02) if how.rate_inside else learning_rate * change\n"),
    Defect("nesterov looks back", "lstm one-hot, residual", "optimizer.py", "change + how.momentum * buffer if how.nesterov", "change + buffer if how.nesterov"),
    Defect("weight decay without the learning rate", "lstm dropout, tied", "optimizer.py", "1 - learning_rate * how.weight_decay", "1 - how.weight_decay"),
    Defect("adagrad starts from zero", "gru residual, dropout", "optimizer.py", "np.full_like(value, start)", "np.zeros_like(value)"),
    Defect("state not carried from batch to batch", "rnn", "model.py", "loss, norm, finite, state = self._train_step", "loss, norm, finite, _ = self._train_step"),
    Defect("state forgotten between calls", "lstm", "model.py", "outputs, state = self._outputs(self._array(tokens).T, state, self._engine)", "outputs, _ = self._outputs(self._array(tokens).T, state, self._engine)"),
    Defect("step not counted", "rnn", "model.py", "self._step += finite", "pass"),
    Defect("temperature multiplies", "rnn", "generate.py", "    weights = logits - logits.max", "    rule = rule._replace(temperature=1 / rule.temperature)\n    weights = logits - logits.max"),
    Defect("top-k keeps one more", "rnn", "generate.py", "count = min(rule.top_k or", "count = min(rule.top_k + 1 or"),
    Defect("ended rows go on", "rnn", "generate.py", "np.where(ended, np.int32(rule.end), token)", "token"),
]  # fmt: skip
DEFECTS = {"numpy": [*COMMON, *BY_HAND], "torch": [*COMMON, *CELLS_ONLY], "jax": COMMON, "tf": COMMON}
PAIRS = [(impl, defect) for impl in REQUIRED for defect in DEFECTS[impl]]


@pytest.fixture
def mutated(request, tmp_path, monkeypatch):
    """The implementation with one defect, in place of the real one."""
    impl, defect = request.param
    package = f"impl_{impl}"
    expected = reference(defect.case)
    shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / package / defect.file
    text = source.read_text("utf-8")
    assert defect.old in text, f"{package}/{defect.file} no longer holds {defect.old!r}: renew this defect"
    source.write_text(text.replace(defect.old, defect.new), "utf-8")
    real = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    for name in real:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield impl, defect, expected
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.modules.update(real)


@pytest.mark.timeout(30)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutated", PAIRS, indirect=True, ids=[f"{impl}-{defect.what}" for impl, defect in PAIRS])
def test_a_defect_is_caught(mutated):
    impl, defect, expected = mutated
    examinee = Examinee(impl, "cpu")
    assert differs(examinee, make_case(defect.case, CASES[defect.case]), expected)
    loaded = sys.modules[f"impl_{impl}"].__file__
    assert not loaded.startswith(str(ROOT)), "the defect was not loaded"


def differs(examinee, case, expected):
    """Whether any part of the examination notices; the later parts are not computed once one has."""
    for part in examinee.parts(case, "float64"):
        if not all(row["ok"] for row in compare(part, {name: expected[name] for name in part}, "float64")):
            return True
    return False


def test_the_unchanged_implementation_passes_the_same_way(impl):
    assert not differs(Examinee(impl, "cpu"), make_case("rnn", CASES["rnn"]), reference("rnn"))


class Inline:
    """A worker without a process, so that the command meets the defect too."""

    def __init__(self, name, factory, *arguments):
        self.target = factory(*arguments)
        self.always_ready = open(os.devnull, "rb")  # noqa: SIM115 - closed on exit

    def fileno(self):
        return self.always_ready.fileno()

    def start(self, method, *arguments):
        self.answer = getattr(self.target, method)(*arguments)

    def result(self):
        return self.answer

    def call(self, method, *arguments):
        return getattr(self.target, method)(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.always_ready.close()


def one_case(monkeypatch):
    """The command is tried, not the examination: one case will do."""
    design = CASES["rnn"]._replace(native=(), optimizers=("sgd",))
    monkeypatch.setattr(check, "designs", lambda cell, full: {cell: design})


@pytest.mark.parametrize("defect", [True, False])
def test_the_command_exits_with_1_on_a_defect(monkeypatch, capsys, impl, defect):
    from runner.cli import Check

    one_case(monkeypatch)

    real = Examinee.measure

    def measure(self, case, dtype, engine="scratch"):
        found = real(self, case, dtype, engine)
        if defect and self._device != "reference":
            found["quantities"]["gradient: decoder.bias"] = found["quantities"]["gradient: decoder.bias"][::-1].copy()
        return found

    monkeypatch.setattr(Examinee, "measure", measure)
    monkeypatch.setattr(Examinee, "finite_differences", lambda self, case: 1e-12)

    def open_worker(name, factory, *arguments):
        worker = Inline(name, factory, *arguments)
        if name == "reference":
            worker.target.measure = lambda case, dtype: real(worker.target, case, dtype)
        return worker

    status = check.run(Check(impl=impl, cell="rnn", dtype="float64"), open_worker)
    shown = capsys.readouterr().out
    assert status == int(defect)
    assert ("DIFFERS" in shown) == defect
    assert ("gradient: decoder.bias" in shown) == defect


def test_there_are_enough_defects():
    for impl in ("numpy", "torch"):
        names = {defect.what for defect in DEFECTS[impl]}
        assert len(names) == len(DEFECTS[impl]) >= 40


def test_equal_arrays_are_equal_and_others_are_not():
    expected = {"loss": np.array(2.0), "tokens: greedy": np.array([1.0, 2.0])}
    assert all(row["ok"] for row in compare(expected, expected, "float64"))
    for wrong in (np.nan, np.inf, 2.0 + 1e-9):
        rows = compare({**expected, "loss": np.array(wrong)}, expected, "float64")
        assert [row["ok"] for row in rows] == [False, True]
    assert not compare({**expected, "tokens: greedy": np.array([1.0])}, expected, "float64")[1]["ok"]


def test_an_implementation_that_breaks_down_is_a_failed_row(monkeypatch, capsys, impl):
    from runner.cli import Check

    class Broken(Inline):
        def result(self):
            if self.name != "reference":
                raise WorkerError(f"{self.name}: the worker died (signal SIGKILL)")
            return super().result()

        def __init__(self, name, factory, *arguments):
            super().__init__(name, factory, *arguments)
            self.name = name

    one_case(monkeypatch)
    monkeypatch.setattr(Examinee, "finite_differences", lambda self, case: 1e-12)
    assert check.run(Check(impl=impl, cell="rnn", dtype="float64"), Broken) == 1
    assert "SIGKILL" in capsys.readouterr().out
