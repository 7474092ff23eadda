"""`recipes`: list them, show one; and after a run that began from one, what was expected beside what came."""

from collections.abc import Iterable
from pathlib import Path

from runner.cli import Recipes, Train
from runner.console import say, show_table
from runner.outcome import METRICS, outcome, written
from runner.recipe import Expectation, Recipe, changed, load_recipe, names
from runner.study_plan import Study, load_study
from shared.errors import UserError

Rows = list[tuple[str, ...]]
START = "python -m runner --recipe {name} --impl jax"


def run(options: Recipes) -> int:
    """The list, one recipe, or the page of the documentation."""
    if options.markdown:
        print(page([load_recipe(name) for name in names()]), end="")
        return 0
    if options.name:
        recipe = load_recipe(options.name)
        print(recipe.text.rstrip())
        say(f"\nStart it: {START.format(name=options.name)}", "bold")
        return 0
    rows = [(each.name, each.title, "; ".join(expectations(each)), each.time) for each in map(load_recipe, names())]
    show_table(
        "Recipes: python -m runner --recipe NAME --impl numpy|torch|jax|tf; any option after it wins",
        ("name", "what", "expected", "time on two cores"),
        rows,
        wrap=(1, 2, 3),
    )
    say("One with its options and its source: python -m runner recipes NAME. Sets of variants: python -m runner study")
    return 0


def expectations(recipe: Recipe) -> list[str]:
    """Each in one phrase."""
    return [
        " ".join(filter(None, [METRICS[each.metric].label, bound(each), reported(each)])) for each in recipe.expected
    ]


def bound(expected: Expectation) -> str:
    """The limit, if there is one."""
    return "" if expected.bound() == "–" else expected.bound()


def reported(expected: Expectation) -> str:
    """The source's figure, if it has one."""
    return f"(reported: {expected.reported})" if expected.reported else ""


def show_expected(options: Train, run_dir: Path) -> None:
    """The table at the end of a run; nothing stops a run that has ended well, not even a recipe that is gone."""
    try:
        recipe = load_recipe(options.recipe)
    except UserError as error:
        say(f"What was expected cannot be shown: {error}", "yellow")
        return
    title = f"Expected of {recipe.name} ({recipe.source}), and obtained"
    show_table(title, ("", "reported", "expected", "obtained", ""), compared(recipe, run_dir), right=(2, 3), wrap=(1,))
    if found := changed(options, recipe):
        say(f"This run differs from the recipe, whose figures need not hold: {' '.join(found)}", "yellow")


def compared(recipe: Recipe, run_dir: Path) -> Rows:
    """A row for each expectation."""
    figures = outcome(run_dir)
    verdicts = {True: "reached", False: "not reached", None: ""}
    return [
        (
            METRICS[each.metric].label,
            each.reported or "–",
            each.bound(),
            written(each.metric, figures.get(each.metric)),
            verdicts[each.met(figures)],
        )
        for each in recipe.expected
    ]


def page(recipes: Iterable[Recipe]) -> str:
    """docs/recipes.md."""
    listed = list(recipes)
    lines = ["# Recipes", "", PREFACE, ""]
    lines += ["| recipe | what | expected | time on two cores |", "| --- | --- | --- | --- |"]
    lines += [f"| [{each.name}](#{each.name}) | {each.title} | {cell(each)} | {each.time} |" for each in listed]
    lines += ["", AFTER_THE_TABLE, "", "## Studies", "", STUDIES, ""]
    lines += ["| study | what | recipe | variants | time on two cores |", "| --- | --- | --- | --- | --- |"]
    lines += [study_line(load_study(name)) for name in names("studies")]
    for each in listed:
        lines += ["", f"## {each.name}", "", f"{each.title}. Source: {each.source}.", "", "```toml"]
        lines += [each.text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def study_line(study: Study) -> str:
    """Of the table."""
    variants = "; ".join(variant["name"] for variant in study.variants)
    return f"| {study.name} | {study.title} | [{study.recipe}](#{study.recipe}) | {variants} | {study.time} |"


def cell(recipe: Recipe) -> str:
    return "; ".join(expectations(recipe)) or "–"


PREFACE = """Experiments of a few well-known systems, each one command in any implementation:

```
python -m runner recipes                                            # list them
python -m runner recipes time-machine                               # show one
python -m runner --recipe time-machine --impl jax                   # start it
python -m runner --recipe shakespeare-quick --impl torch --max-steps 50 --hidden-size 256
```

A recipe is a file of options. What is given on the command line wins over the recipe, and the recipe over the defaults.
A run ends with a table of what was expected beside what was obtained, and says where it differs from its recipe.
`--recipe FILE` takes a file of yours. *Reported* is the figure of the source, the other what this project promises.
Times are rough, of the quickest implementation."""
AFTER_THE_TABLE = """This page is written by `python -m runner recipes --markdown`; the files are in `runner/recipes`.
`--corpus` puts another text in a recipe's place, such as a copy of `tang-large` of yours, and `--data-dir` names a
folder with copies of all."""
STUDIES = """Sets of variants of a recipe, each an ordinary run in a process of its own:

```
python -m runner study                                              # list them
python -m runner study clipping                                     # run one, and go on with it where it stopped
python -m runner study optimizers --impl numpy,jax --max-steps 100 --workers 2
```

`runs/study-NAME` then holds a run directory and a log for each, `study.json`, which lists them with their figures, and
the picture, `study.svg` and `study.png`. A run that has ended is never repeated, one that was stopped goes on from its
last checkpoint, and one that diverged is a result like any other. `study FILE` takes a file of yours; those in
`runner/studies` show the form, and `runner/study_plan.py` explains it."""
