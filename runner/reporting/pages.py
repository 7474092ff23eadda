"""What the HTML pages are made with: templates that escape everything, figures within the page, texts with marks.

A page is one file without scripts that loads nothing: whatever a corpus, a name or a model's text says, it is shown.
"""

import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner.reporting.pictures import COLOURS, GREY, Arguments, Drawing, png, svg
from runner.text import visible
from shared.files import write_atomically

MARKED = re.compile("([，。！？；]+[」』”’》）]*)\n?")
"""What ends a verse."""


class Stretch(NamedTuple):
    """A part of a text that is shown in one way."""

    text: str
    copied: bool
    differs: bool


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page."""
    return ENVIRONMENT.get_template(f"{template}.html.j2").render(values)


def draw(
    folder: Path, name: str, figure: Drawing[Arguments], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Markup:
    """Write a figure as name.svg and name.png, and return it for the page."""
    drawn = svg(figure, *args, **kwargs)
    write_atomically(folder / f"{name}.svg", drawn, make_folder=False)
    write_atomically(folder / f"{name}.png", png(figure, *args, **kwargs), make_folder=False)
    return inline(drawn)


def inline(picture: str) -> Markup:
    """SVG as a part of a page, in the colour of its text. Safe: matplotlib escapes all text that it writes."""
    bare = re.sub(r'<g id="[^"]*"', "<g", picture[picture.index("<svg") :])
    return Markup(bare.replace(f": {GREY}", ": currentColor"))  # noqa: S704


def stretches(text: str, copied: Any = (), poem: bool = False, same: int | None = None) -> list[Stretch]:
    """A text cut where its looks change: `copied` are [start, stop) of passages that stand in the training text, `same`
    is where it begins to differ from others. A poem has each verse on a line of its own."""
    spans = [each for each in copied if is_span(each, len(text))] if isinstance(copied, list | tuple) else []
    border = len(text) if same is None else same
    cuts = sorted({0, border, len(text), *(edge for span in spans for edge in span)})
    parts = [
        Stretch(text[start:stop], any(a <= start and stop <= b for a, b in spans), start >= border)
        for start, stop in pairwise(cuts)
    ]
    return [part._replace(text=MARKED.sub("\\1\n", part.text)) if poem else part for part in parts]


def is_span(value: Any, length: int) -> bool:
    """Whether a JSON value is a stretch of a text so long."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(edge) is int for edge in value)
        and 0 <= value[0] < value[1] <= length
    )


def language(text: str) -> str:
    """The lang attribute of a text: browsers choose fonts and line breaks by it; "" is unknown."""
    if re.search("[\u3040-\u30ff]", text):
        return "ja"
    return "zh" if re.search("[\u3400-\u9fff\U00020000-\U000323af]", text) else ""


def shown(form: str, value: float | None) -> str:
    """A number, or a dash; zero is exact and looks it."""
    return "–" if value is None else format(value, form) if value else "0"


def seen(value: Any) -> Any:
    """What every expression of a template passes through, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


FORMS = {
    "count": ",.0f",
    "figure": ",.5g",
    "error": ".1e",
    "bound": ".2g",
    "loss": ".4f",
    "fine": ".6f",
    "short": ".2f",
    "factor": ".1f",
}
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=seen,
)
ENVIRONMENT.trim_blocks = ENVIRONMENT.lstrip_blocks = True
ENVIRONMENT.filters |= {name: partial(shown, form) for name, form in FORMS.items()}
ENVIRONMENT.filters["language"] = language
ENVIRONMENT.globals |= {"colours": COLOURS, "stretches": stretches}
