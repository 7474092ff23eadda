"""A comparison and a run that never happened, and readers of what is written about them."""

import json
import math
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "br", "img", "hr", "input"}
NASTY = "<script>alert(1)</script>]]>\"'&amp;<svg onload=x>\x1b[31m\u202e{{ 7 * 7 }}$x^2$"
IMPLS = ("numpy", "torch", "jax", "tf")


SAMPLE = {"impl": "jax", "dtype": "float64", "temperature": 0.5, "prompt": ""}


def losses(shift=0.0):
    return [5.0 * math.exp(-step / 9) + 1.5 + shift * step for step in range(30)]


def check_row(impl, quantity, error=3e-16, dtype="float64", cell="lstm", bound=1e-10):
    place = {"impl": impl, "engine": "scratch", "kernel": "loops", "device": "cpu", "cell": cell, "dtype": dtype}
    return place | {"quantity": quantity, "max_relative_error": error, "bound": bound, "ok": error <= bound}


def training_row(impl, shift):
    held_out = [{"step": step, "loss": losses(shift)[step - 1] + 0.1} for step in (10, 20, 30)]
    score = {"loss": 1.9, "perplexity": 6.6859, "bits_per_character": 2.7411}
    place = {"impl": impl, "dtype": "float32", "steps": 30}
    return place | score | {"losses": losses(shift), "held_out": held_out}


def make_result(impls=IMPLS, name="唐詩", text="日照香爐生紫煙。\n　遙看瀑布掛前川。"):
    timing = {"low": 90.0, "high": 130.0, "rounds": 5, "same_work": True}
    growth = {"dtype": "float64", "bound": 1e-9, "ok": True}
    place = {"engine": "scratch", "kernel": "loops", "device": "cpu", "import_seconds": 0.5, "first_call_seconds": 0.25}
    return {
        "command": f"python -m runner compare --corpus {name}",
        "created": "2025-01-02T03:04:05+00:00",
        "seconds": 12.0,
        "machine": {"processor": "made up", "cores": 2, "system": "Linux", "python": "3.11"},
        "settings": {"corpus": name, "cell": "lstm"},
        "corpus": {
            "name": name,
            "sha256": "ab" * 32,
            "characters": 5000,
            "vocabulary_size": 71,
            "training_tokens": 4321,
            "held_out_tokens": 679,
            "unigram_perplexity": 54.25,
        },
        "participants": [{"impl": impl, **place, "versions": {"numpy": "2.0"}} for impl in impls],
        "check": [check_row(impl, quantity) for impl in impls for quantity in ("logits", "gradient: a", "gradient: b")],
        "training": [training_row(impl, place * 1e-7) for place, impl in enumerate(impls)],
        "growth": [
            {"impl": impl, **growth, "points": [{"step": 9, "max_relative_difference": 2e-15}]} for impl in impls[1:]
        ],
        "timing": [
            {"impl": impl, "phase": phase, "tokens_per_second": 100.0 + 10 * place, **timing}
            for place, impl in enumerate(impls)
            for phase in ("train", "sample")
        ],
        "samples": [
            {"impl": impl, "dtype": "float32", "temperature": 0.8, "prompt": "日", "text": text} for impl in impls
        ],
        "samples_identical": True,
        "agreement": {"held_out_spread": 2e-6, "held_out_bound": 0.001, "ok": True},
        "failures": [],
        "ok": True,
    }


class Page(HTMLParser):
    """A page taken apart; every element must be closed where it was opened."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path):
    """The page, after the checks that every page must pass."""
    html = path.read_text("utf-8")
    page = Page(html)
    assert "<script" not in html.lower()
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name.endswith(("href", "src"))]
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    assert not [value for name, value in page.attributes if "http" in (value or "") and not is_harmless(name)]
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return page


def is_harmless(name):
    return name.startswith("xmlns") or name == "http-equiv"


def read_svg(text):
    """The text of a well-formed SVG that loads nothing."""
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [each for each in root.iter() if each.tag.endswith(("script", "image", "foreignObject"))]
    assert not [value for each in root.iter() for value in each.attrib.values() if "http" in value]
    return " ".join(each.text or "" for each in root.iter())


def make_run(folder, name="唐詩", result=True, samples="temperature 0.5\n　日照。\n\ntemperature 1.0\n月\n\n光。\n"):
    config = {
        "command": "python -m runner",
        "impl": "jax",
        "engine": "scratch",
        "kernel": "scan",
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "versions": {"jax": "0.5"},
        "corpus": {"name": name, "sha256": "cd" * 32, "unigram_perplexity": 40.0, "poems": True},
        "model": {"cell": "gru"},
        "machine": {"processor": "made up", "cores": 2},
        "environment": {"THREADS": "1"},
        "optimizer": {"betas": [0.9, 0.999], "clip_norm": 1.0},
        "training": {"seed": 3},
    }
    if result:
        config["result"] = {"best_loss": 1.9, "best_step": 20, "steps": 30, "seconds": 4.5, "reason": "finished"}
        config["result"]["copied"] = {"0.5": [[0, 3]], "1.0": []}
    train = {"epoch": 0, "split": "train", "learning_rate": 2e-3}
    lines = [
        train | {"step": step + 1, "loss": loss, "gradient_norm": loss / 4, "tokens_per_second": 900.0 + step // 9}
        for step, loss in enumerate(losses())
    ]
    score = {"perplexity": 7.5, "bits_per_character": 3.0}
    lines += [{"step": 20, "epoch": 0, "split": "held-out", "loss": 1.9} | score]
    lines += [{"step": 30, "epoch": 1, "split": "held-out", "loss": 2.0} | score | {"perplexity": 8.5}]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "samples.txt").write_text(samples, "utf-8")
    return folder


def make_study(folder, names=("sgd", "adam 2", "adam 10"), **told):
    """A folder of runs, and study.json if anything is told."""
    for place, name in enumerate(names):
        (folder / name).mkdir()
        make_run(folder / name, result=place != 1)
    if told:
        (folder / "study.json").write_text(json.dumps(told), "utf-8")
    return folder


def study_row(name, folder, **others):
    place = {"name": name, "impl": "jax", "folder": folder, "command": f"python -m runner # {name}"}
    return place | {"status": "finished", "error": "", "figures": {"held_out_loss": 1.25}} | others
