"""Where a disagreement begins, and why: the first place that differs from the reference, and the mistakes that explain
it.

A cause is confirmed by making it: the reference is computed once more with that one mistake (`mistaken_model`),
and must then give the examinee's numbers, within the same bounds, for everything that the failing stage measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from runner.diagnosis.causes import causes
from runner.diagnosis.mistaken_model import MistakenModel
from runner.diagnosis.places import Place, locate
from runner.examination.bounds import bound, compare
from runner.examination.cases import OPTIMIZERS, Arrays, Case, K, V, abridged, rates_of
from runner.examination.examinee import PARTS, SEED, STEP, at, numbers_of
from runner.examination.examinee import training as train
from runner.workers import WorkerError
from shared.config import Dtype

MOST = 6
"""Disagreements that are explained; one mistake usually shows in many places."""


def explain(
    rows: Sequence[Mapping[str, Any]], asked: Sequence[Case], reference: Any, teams: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """A finding for each implementation, engine and case with failed rows, of the first few; in the first precision
    that fails. The workers measure once more."""
    cases, failed = {case.name: case for case in asked}, dict[tuple[str, Any, str], Dtype]()
    for row in rows:
        if not row["ok"] and row["engine"]:  # without one, it broke down
            failed.setdefault((row["impl"], row["engine"], row["case"]), row["dtype"])
    findings = []
    for (impl, engine, name), dtype in list(failed.items())[:MOST]:
        who = {"impl": impl, "engine": engine, "dtype": dtype, "case": name}
        case = (
            cases[name]
            if engine == "scratch" and dtype == rows[0]["dtype"]
            else abridged(cases[name], engine, dtype != rows[0]["dtype"])
        )
        for worker in teams[impl]:
            with suppress(WorkerError):  # the next one may still live
                found = worker.call("measure", case, dtype, engine)["quantities"]
                expected = reference.call("measure", case, "float64")["quantities"]
                findings += finding(who, case, found, expected, worker, reference)
                break
    return findings


def finding(
    who: Mapping[str, Any], case: Case, found: Arrays, expected: Arrays, examinee: Any, reference: Any
) -> list[dict[str, Any]]:
    """Where a case first differs, and why; nothing where it agrees.

    who: impl, engine, dtype, case; found: the examinee's quantities, of whole parts; expected: the reference's.
    """
    dtype: Dtype = who["dtype"]
    rows = compare(found, {name: expected[name] for name in found}, dtype)
    failing = {row["quantity"]: row["max_relative_error"] for row in rows if not row["ok"]}
    if not failing:
        return []
    stage = min(map(stage_of, failing), key=order_of(case))
    own = {name: value for name, value in found.items() if stage_of(name) == stage}
    right, failing = {name: expected[name] for name in own}, {n: e for n, e in failing.items() if n in own}
    place = locate(stage, case, who, own, right, examinee, reference)
    assert place is not None  # noqa: S101 - something of this stage fails
    confirmed = confirm(stage, case, own, right, failing, dtype)
    explanation = "; or ".join(confirmed.values()) or suspicion(stage, list(failing), place, dtype)
    cause = {"causes": list(confirmed), "confirmed": bool(confirmed), "explanation": explanation}
    return [{**who, "stage": stage, **place._asdict(), **cause}]


def stage_of(quantity: str) -> str:
    """The stage of the computation that a quantity belongs to; of trainings, the optimizer's label."""
    group, _, rest = quantity.partition(": ")
    if group in OPTIMIZERS or group == "tokens":
        return group
    if group in ("gradient", "unused rows"):
        return "gradients"
    if "evaluation" in rest:
        return "evaluation"
    if group == "loss" or rest.endswith("after loss"):
        return "loss"
    return "traced" if group == "trace" else "forward"


def order_of(case: Case) -> Callable[[str], int]:
    """Key that sorts stages: the earlier ones explain the later ones."""
    return ["forward", "evaluation", "loss", "gradients", *case.optimizers, "tokens", "traced"].index


def confirm(
    stage: str, case: Case, found: Arrays, expected: Arrays, failing: Mapping[str, float], dtype: Dtype
) -> dict[str, str]:
    """Name -> words of the causes that give the examinee's numbers: usually one, none where the catalogue has none."""
    kind = "training" if stage in case.optimizers else stage
    label = stage if stage in case.optimizers else next(iter(case.optimizers))
    confirmed = {}
    for name, words in causes(kind, case.model, case.optimizers[label]).items():
        with np.errstate(all="ignore"):
            parts = imitations(kind, case, label, name, found, expected, dtype)
            if all(agrees(found, part, failing, dtype) for part in parts):
                confirmed[name] = words
    return confirmed


def agrees(found: Arrays, imitated: Arrays, failing: Mapping[str, float], dtype: Dtype) -> bool:
    """Whether the examinee's numbers are the imitation's, and those that fail ten times nearer to it than to the
    reference, so that no small step in the right direction counts."""
    rows = compare(found, {name: value for name, value in imitated.items() if name in found}, dtype)
    return all(row["ok"] and row["max_relative_error"] <= failing.get(row["quantity"], np.inf) / 10 for row in rows)


def imitations(
    kind: str, case: Case, label: str, cause: str, found: Arrays, expected: Arrays, dtype: Dtype
) -> Iterator[Arrays]:
    """What a stage measures with the cause in it: something quick first, then all of it."""

    def mistaken() -> Any:
        model = MistakenModel(case.model, case.optimizers[label], V, SEED, {cause})
        model.load_parameters(case.parameters)
        return model

    model, state = mistaken(), case.state
    if kind == "forward":
        yield {"logits": model.logits(case.batches.tokens[0], state)[0]}
    elif kind in ("loss", "gradients"):
        loss, slopes, _ = model.loss_and_gradients(at(case.batches, 0), state, STEP)
        yield numbers_of({"loss": loss, **{f"gradient: {name}": value for name, value in slopes.parameters.items()}})
    elif kind == "training":
        name = f"{label}: losses"
        wrong = ~(np.abs(found[name] - expected[name]) <= bound(name, dtype) * np.abs(expected[name]).max())
        count = min(int(wrong.argmax()) + 1, K // 2)  # a loss shows the update before it
        losses = model.train_steps(at(case.batches, slice(count)), state, rates_of(label)[:count]).losses
        yield {name: np.concatenate([losses, found[name][count:]])}
        yield numbers_of(train(mistaken(), case, label))
        return
    yield numbers_of(PARTS["gradients" if kind == "loss" else kind](model, case))


def suspicion(stage: str, failing: Sequence[str], place: Place, dtype: Dtype) -> str:
    """What the place alone suggests, where no cause of the catalogue gives these numbers."""
    if dtype == "float32" and place.relative < 1e-2:
        return "perhaps products less precise than float32 (TF32, bfloat16), or sums in a far worse order"
    if stage == "loss" and "loss: without dropout" not in failing:
        return "only the loss with dropout differs: look at the bits, the layout, the step and the scale of the masks"
    if stage == "gradients" and len(failing) == 1:
        return "only this gradient differs, and the way back passes it by: look at the product or sum that makes it"
    if stage == "gradients":
        return "the forward pass agrees: look at the way back, here or where it comes from"
    if stage == "tokens":
        return "logits agree: look at how tokens are drawn"
    if stage in OPTIMIZERS:
        return "gradients agree: look at clipping, update, learning rate, and at what is carried from step to step"
    return "nothing in the catalogue gives these numbers: look here first"


def sentences(finding: Mapping[str, Any]) -> tuple[str, str]:
    """A finding for a person: where, and why."""
    who = "{impl} {engine} {dtype}, {case}".format_map(finding)
    where = "{quantity}, {words}: {value:.9g}, reference {reference:.9g}".format_map(finding)
    distance = "{relative:.1e} of the tensor's largest, {ulps:.2g} ulps".format_map(finding)
    how = "cause, confirmed by making it: these numbers come out when " if finding["confirmed"] else "not explained: "
    return f"{who}: differs first in {where} ({distance})", how + finding["explanation"]
