"""Terms that are spelled out where a page first uses them: a link to the docs, with the meaning as its title."""

import re

from markupsafe import Markup, escape

DOCS = "https://github.com/dpdmd/dpdmd/blob/main/docs/"
# {term: (page and heading, what it means)}; the longer ones first, of which a shorter one is a part.
TERMS = {
    "teacher's diversity": (
        "evaluation.md#diversity",
        "how much the images of one prompt differ, by their features in a vision network",
    ),
    "diversity": (
        "evaluation.md#diversity",
        "how much the images of one prompt differ, by their features in a vision network",
    ),
    "are clean": ("evaluation.md#quality", "can be read as a scene of the built-in world, without blurs or blends"),
    "DP-DMD": ("method.md#dp-dmd", "diversity-preserved distribution matching distillation"),
    "DMD": ("method.md#dmd", "distribution matching distillation"),
    "95 % interval": ("evaluation.md#terms", "where the number would lie with other prompts or other training seeds"),
    "teacher": ("glossary.md#words", "the model that draws in many steps, and that the student learns from"),
    "student": ("glossary.md#words", "the model that was trained to draw in a few steps"),
    "seeds": ("glossary.md#words", "numbers that the starting noise of an image is made from"),
    "validation": ("training.md#validation", "a few images that a run draws and scores while it trains"),
    "Losses": ("method.md#the-method", "what training makes small"),
}


class Terms:
    """Links the terms of one page, each the first time that it is used."""

    def __init__(self):
        self._open = dict(TERMS)

    def link(self, text: str) -> Markup:
        """The text, escaped, with links at the terms that no text before had."""
        pattern = "|".join(
            re.escape(_unbroken(str(escape(term)))) for term in sorted(self._open, key=len, reverse=True)
        )
        if not pattern:
            return Markup(_unbroken(str(escape(text))))
        # As a whole word: "DMD" is not the end of "DP-DMD".
        return Markup(re.sub(rf"(?<![\w-])(?:{pattern})(?![\w-])", self._linked, _unbroken(str(escape(text)))))

    def _linked(self, found: re.Match[str]) -> str:
        term = str(Markup(found[0]).unescape()).replace("\u00a0", " ")
        if term not in self._open:
            return found[0]
        place, meaning = self._open.pop(term)
        for other in [name for name, (at, _) in self._open.items() if at == place and name in term]:
            del self._open[other]
        return f'<a class="term" href="{DOCS}{place}" title="{escape(meaning)}" rel="noreferrer">{found[0]}</a>'


def _unbroken(text: str) -> str:
    """The text without line breaks between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|ms\b|s\b)", "\u00a0", text)
