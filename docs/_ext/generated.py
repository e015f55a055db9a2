"""Reference pages made from the code: `<!-- recipe keys -->`, `<!-- public names -->`, `<!-- method modules -->`.

Each comment, on a line of its own, is replaced while building. Docstrings are plain text, not reStructuredText: the
formulas in them would otherwise be read as markup.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from sphinx.application import Sphinx

import dpdmd
import dpdmd.method
from dpdmd.recipe import schema
from dpdmd.recipe.section import Section
from dpdmd.recipe.toml import recipe_keys

# Headings of the public names, by the module that defines them; others come last.
GROUPS = {
    "Running things": (
        "dpdmd.planning",
        "dpdmd.training",
        "dpdmd.evaluate",
        "dpdmd.report",
        "dpdmd.publish",
    ),
    "Objectives and their terms": ("dpdmd.method.objective", "dpdmd.method.terms"),
    "Paths and predictions": ("dpdmd.method.paths",),
    "Grids and noise levels": ("dpdmd.method.grids",),
    "Guidance": ("dpdmd.method.guidance",),
    "Rollouts": ("dpdmd.method.rollout",),
    "Losses": ("dpdmd.method.losses",),
    "Denoisers, roles, randomness": ("dpdmd.method.denoiser", "dpdmd.method.roles", "dpdmd.method.randomness"),
    "Models": ("dpdmd.models",),
}
OTHERS = "Other names"


def recipe_tables() -> str:
    """A heading and a table of keys for every section of a recipe."""
    sections: dict[str, list[str]] = {}
    for key, field in recipe_keys():
        section, _, name = key.rpartition(".")
        default = "required" if field.is_required() else _code(field.get_default())
        cells = [f"`{name}`", _type(field.annotation), default, field.description or ""]
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        sections.setdefault(section, []).append(f'| <a id="{anchor(key)}"></a>{row} |')
    return "\n\n".join(
        f"## [{section}]\n\n{_meaning(section)}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        for section, rows in sections.items()
    )


def anchor(key: str) -> str:
    """The HTML anchor of a key on the reference page."""
    return f"key-{key.replace('.', '-').replace('_', '-')}"


def public_names() -> str:
    """Every name of `dpdmd.__all__` with its docstring, grouped by what it is for."""
    groups: dict[str, list[str]] = {heading: [] for heading in (*GROUPS, OTHERS)}
    for name in sorted(dpdmd.__all__, key=str.lower):
        groups[_group(getattr(dpdmd, name), name)].append(name)
    return "\n\n".join(
        f"## {heading}\n\n" + _eval_rst(_documented(f"dpdmd.{name}", getattr(dpdmd, name)) for name in names)
        for heading, names in groups.items()
        if names
    )


def method_modules() -> str:
    """Every module of `dpdmd.method` with its functions and classes, in the order of the source."""
    found = pkgutil.walk_packages(dpdmd.method.__path__, "dpdmd.method.")
    names = [module.name for module in found if not module.ispkg]
    return "\n\n".join(
        f"## {name}\n\n"
        + _eval_rst([f".. automodule:: {name}\n   :members:\n   :undoc-members:\n   :show-inheritance:"])
        for name in names
        if importlib.import_module(name)
    )


MAKERS: dict[str, Callable[[], str]] = {
    "<!-- recipe keys -->": recipe_tables,
    "<!-- public names -->": public_names,
    "<!-- method modules -->": method_modules,
}
PAGES = ["reference/recipe", "reference/api", "reference/method"]


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace the comments of a page that is being read."""
    for comment, make in MAKERS.items():
        if name in PAGES and comment in source[0]:
            source[0] = source[0].replace(comment, make())


def as_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring of plain text as reStructuredText: indented lines are formulas, backticks are code."""
    out, in_formula = [], False
    for line in lines:
        is_formula = line.startswith("    ")
        if is_formula and not in_formula:
            out += ["", "::", ""]
        elif in_formula and line.strip() and not is_formula:
            in_formula = False
            out.append("")
        if is_formula:
            in_formula = True
        out.append(line if is_formula or not line.strip() else _escaped(line))
    lines[:] = [*out, ""]


def _escaped(line: str) -> str:
    """Markup characters as themselves; `code` in backticks stays code. Bullets keep their dash."""
    parts = re.split(r"`([^`]+)`", line)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([\\*|_`])", r"\\\1", part) for i, part in enumerate(parts))


def _group(obj: Any, name: str) -> str:
    module = getattr(obj, "__module__", "") or ""
    if not module.startswith("dpdmd"):  # an alias of a type: where is it written down?
        module = next((m for m in _method_names() if getattr(importlib.import_module(m), name, None) is obj), "")
    fits = [heading for heading, prefixes in GROUPS.items() if module.startswith(prefixes)]
    return fits[0] if fits else OTHERS


def _method_names() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(dpdmd.method.__path__, "dpdmd.method.")]


def _documented(name: str, obj: Any) -> str:
    if inspect.isclass(obj):
        return f".. autoclass:: {name}\n   :members:"
    return f".. autofunction:: {name}" if callable(obj) and not get_origin(obj) else f".. autodata:: {name}"


def _eval_rst(directives) -> str:
    return "```{eval-rst}\n" + "\n\n".join(directives) + "\n```"


def _meaning(section: str) -> str:
    """The docstring of a section's class."""
    model = schema.Recipe
    for part in section.split("."):
        model = model.model_fields[part].annotation
    return inspect.cleandoc(model.__doc__ or "")


def _type(annotation: Any) -> str:
    """A type as a reader of TOML would call it."""
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "table"
    args = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{_toml(value)}`" for value in args)
    if get_origin(annotation) is tuple:
        return f"list of {_type(args[0])}s"
    if args:
        return " or ".join(_type(a) for a in args)
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(annotation, str(annotation))


def _code(value: Any) -> str:
    return "" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, tuple | list) else str(value)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    app.connect("env-get-outdated", lambda *_: PAGES)
    app.connect("autodoc-process-docstring", as_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
