"""Simplified and traditional forms of a Chinese character, from the tables of OpenCC."""

from functools import cache
from importlib.resources import files


def variants(character: str) -> list[str]:
    """The other forms, the direct ones first: 紅 for 红 and 红 for 紅; 裏, by way of 里, for 裡."""
    forms = tables()
    direct = forms.get(character, [])
    indirect = [form for each in direct for form in forms.get(each, [])]
    return [form for form in dict.fromkeys(direct + indirect) if form != character]


@cache
def tables() -> dict[str, list[str]]:
    """Character -> forms; read when the first one is asked for, which is only where a message needs it."""
    forms: dict[str, list[str]] = {}
    for name in ("STCharacters.txt", "TSCharacters.txt"):
        for line in files("opencc").joinpath("dictionary", name).read_text("utf-8").splitlines():
            character, _, others = line.partition("\t")
            forms.setdefault(character, []).extend(others.split())
    return forms
