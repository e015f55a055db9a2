"""Inline code that names something becomes a link: recipe keys, public names, functions of `dpdmd.method`.

A recipe key that does not exist is a warning, and so ends `make docs`. Pages on deleted options name them under
`UNCHECKED`.
"""

import re

from docutils import nodes
from generated import anchor
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from dpdmd.recipe.toml import recipe_keys

UNCHECKED = {"negative-results"}
KEYS = {key for key, _ in recipe_keys()}
SECTIONS = {key.rpartition(".")[0] for key in KEYS}
ANY_SECTION = "|".join(map(re.escape, sorted(SECTIONS, key=len, reverse=True)))
KEY = re.compile(rf"((?:{ANY_SECTION})\.(?!(?:py|json)\b)[a-z_0-9]+)( ?=.*)?")
logger = logging.getLogger(__name__)


class LinkNames(SphinxTransform):
    """Runs on every page as it is read."""

    default_priority = 210

    def apply(self) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            if isinstance(literal.parent, nodes.reference | pending_xref | nodes.title):
                continue
            text = literal.astext()
            if text.startswith("dpdmd."):
                self._link(literal, "py", "obj", text.removesuffix("()"))
            elif (match := KEY.fullmatch(text)) and match[1] not in SECTIONS:
                self._key(literal, match[1])

    def _key(self, literal: nodes.literal, key: str) -> None:
        if key not in KEYS:
            if self.env.docname not in UNCHECKED:
                logger.warning("no key of a recipe: %s", key, location=literal)
        elif self.env.docname != "reference/recipe":
            page = self.app.builder.get_relative_uri(self.env.docname, "reference/recipe")
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=f"{page}#{anchor(key)}"))

    def _link(self, literal: nodes.literal, domain: str, kind: str, target: str) -> None:
        xref = pending_xref("", literal.deepcopy(), refdomain=domain, reftype=kind, reftarget=target, refexplicit=True)
        literal.replace_self(xref)
        xref["refdoc"], xref["refwarn"] = self.env.docname, False


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
