"""Why a user's cell differs, found by trying: the reference is computed again with each mistake that people make, and
with every two of them; the mistakes that give the user's own numbers are named, in words."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, combinations

import numpy as np

from runner.diagnosis.mistakes import backward_mistakes, forward_mistakes
from runner.examination.cases import B
from runner.module.cells import PARTS, Fixture, MistakenCell

Array = np.ndarray
Arrays = Mapping[str, Array]
CLOSE = 1e-9
"""Relative difference up to which two computations are taken for the same."""
Made = tuple[str, ...]
"""Names of mistakes."""
Found = dict[str, list[str]]
"""Why, in words -> the quantities that it explains."""


def explain(fixture: Fixture, found: Arrays, reference: Arrays) -> Found:
    """Why what was found differs from the reference. The way back through time is made of the steps back, so what
    explains one of them is tried there first; where the forward pass is right, no mistake of it explains a part of the
    way back."""
    explained: Found = {}
    made: list[Made] = []
    words, back = forward_mistakes(fixture.cell), backward_mistakes(fixture.cell)
    trusted = {*words, *back}
    for part in PARTS:
        own = {name: value for name, value in found.items() if name.startswith(part)}
        tried = chain(made, singles(words), () if part == "back through time" else pairs(words))
        computed = ((each, fixture.part(part, MistakenCell(fixture.cell, each))) for each in tried)
        best, reasons = search(own, reference, words, computed, trusted)
        made += [best] if best else []
        for reason, names in reasons.items():
            explained.setdefault(reason, []).extend(names)
        if part == "forward" and own and all(same(value, reference[name]) for name, value in own.items()):
            trusted = set(back)
        words = back | words
    return explained


def singles(words: Mapping[str, str]) -> list[Made]:
    """Each mistake alone."""
    return [(name,) for name in words]


def pairs(words: Mapping[str, str]) -> Iterator[Made]:
    """Every two mistakes that can be made at once."""
    for one, other in combinations(words, 2):
        if not any(one.startswith(order) and other.startswith(order) for order in ("order ", "stacked ")):
            yield one, other


def search(
    found: Arrays,
    reference: Arrays,
    words: Mapping[str, str],
    computed: Iterable[tuple[Made, Arrays]],
    trusted: set[str],
) -> tuple[Made, Found]:
    """What explains the quantities that differ: the mistakes that give all of them, the equal ones too, or else those
    among the trusted that give most; for the rest, what can be seen in the numbers themselves."""
    wrong = {name for name, value in found.items() if not same(value, reference[name])}
    best: Made = ()
    given: set[str] = set()
    for made, values in computed if wrong else ():
        hits = {name for name in found if same(found[name], values[name])}
        if len(hits & wrong) > len(given) and trusted.issuperset(made):
            best, given = made, hits & wrong
        if hits == found.keys():
            best, given = made, wrong
            break
    explained: Found = {}
    if best:
        reason = "what comes out when " + ", and ".join(words[name] for name in best)
        explained[reason] = [name for name in found if name in given]
    for name in found:
        if name in wrong - given and (reason := seen(name, found, reference)):
            explained.setdefault(reason, []).append(name)
    return best, explained


def seen(name: str, found: Arrays, reference: Arrays) -> str:
    """What the numbers of one quantity show by themselves; empty where nothing is seen."""
    yours, ours, rows = found[name], reference[name], found[name].shape[0]
    if not np.isfinite(yours).all():
        return "not numbers (nan or inf): look for a division, a logarithm or an exponential out of range"
    if not yours.any():
        return "zero everywhere"
    factor = float((yours * ours).sum() / (ours * ours).sum())
    if same(yours, factor * ours):
        known = {-1.0: "of the wrong sign", 1 / B: f"averaged over the {B} rows of the batch, whose sum is wanted"}
        told = next((words for value, words in known.items() if abs(factor - value) < CLOSE), "")
        return told or f"{factor:.6g} times what is right"
    if rows == yours.shape[-1] and same(yours, np.swapaxes(ours, 0, -1)):
        return "transposed"
    part = name.partition(":")[0]
    others = {each: value for each, value in reference.items() if each.startswith(part) and value.shape == yours.shape}
    if other := next((each for each, value in others.items() if each != name and same(yours, value)), ""):
        return f"what belongs to {other.partition(': ')[2]}"
    if same(yours, ours, 1e-4):
        return "right but for rounding: something is computed in float32, while what you are given is float64"
    return ""


def same(one: Array, other: Array, close: float = CLOSE) -> bool:
    """Whether two computations gave the same numbers, but for rounding."""
    return one.shape == other.shape and bool(np.abs(one - other).max() <= close * np.abs(other).max())


def sentences(explained: Found, differing: list[str]) -> list[str]:
    """A line for each reason, and one for what no reason was found for."""
    lines = [f"{subject(names, differing)} {reason}." for reason, names in explained.items()]
    rest = [name for name in differing if name not in {each for names in explained.values() for each in names}]
    which = "For the rest that differs" if lines else "For these numbers"
    return lines + [f"{which} no mistake was found that gives them."] * bool(rest)


def subject(names: list[str], differing: list[str]) -> str:
    """The quantities and their verb: "Your gradients of x and bias (one step back) are"."""
    parts: dict[str, list[str]] = {}
    for name in names:
        part, _, tensor = name.partition(": ")
        parts.setdefault(part, []).append(tensor)
    told = []
    for part, tensors in parts.items():
        whole = len(tensors) == len([name for name in differing if name.startswith(part)]) > 2
        kind = "" if part in ("forward", "loss") else "gradient" if len(tensors) == 1 else "gradients"
        own = f"your {kind}{' of ' * bool(kind)}{listed(tensors)}"
        where = "" if part in ("loss", "gradients") else f" ({part})"
        told.append((f"all {len(tensors)} {kind or 'states'} that differ" if whole else own) + where)
    phrase = listed(told)
    return f"{phrase[0].upper()}{phrase[1:]} {'is' if len(names) == 1 else 'are'}"


def listed(words: list[str]) -> str:
    """The words with commas, and "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
