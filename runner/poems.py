"""How `sample` shows poems: verse by verse, with lines that stand in the training text marked; and characters of the
user's that the text writes otherwise."""

from collections.abc import Sequence

from runner.console import say
from runner.text import visible
from runner.variants import variants
from shared.corpora import Corpus, split
from shared.statistics import copies
from shared.verse import verses
from shared.vocabulary import Vocabulary

MARK = " *"


def show_poems(poems: Sequence[str], corpus: Corpus | None, held_out: float) -> None:
    """A line for each verse, an empty one between poems; the marks need the corpus."""
    taken_apart = [verses(poem) for poem in poems]
    lines = [line for each in taken_apart for line in each]
    copied = copied_lines(lines, corpus, held_out) if corpus else set()
    # Plain print, since the text is the product: it can be piped, and no line is wrapped.
    print("\n\n".join("\n".join(visible(line) + MARK * (line in copied) for line in each) for each in taken_apart))
    if corpus:
        count = sum(line in copied for line in lines)
        say(f"{count} of {len(lines)} lines stand in the training text{', marked *' if count else ''}", "dim")


def copied_lines(lines: Sequence[str], corpus: Corpus, held_out: float) -> set[str]:
    """Those of which a verse stands in the training text."""
    spots = copies(lines, split(corpus, held_out)[0], poems=True)
    return {line for line, found in zip(lines, spots, strict=True) if found}


def in_this_writing(text: str, vocabulary: Vocabulary) -> str:
    """The text with each character that the model has never seen replaced by its simplified or traditional form, if
    that is known: 紅 for 红. Says so; what has no such form stays."""
    for character in vocabulary.unknown(text):
        if known := [form for form in variants(character) if not vocabulary.unknown(form)]:
            others = f" (it also has {', '.join(known[1:])})" if known[1:] else ""
            say(
                f"{character} is not in this model's text, which writes {known[0]}: {known[0]} stands for it{others}.",
                "yellow",
            )
            text = text.replace(character, known[0])
    return text
