"""Strategies for recipes: valid by construction, from the schema itself, and damaged by construction."""

from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from dpdmd.recipe.objective_keys import OBJECTIVES
from dpdmd.recipe.toml import recipe_keys

FIELDS = dict(recipe_keys())
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
# A name that is no path: it does not exist, and nothing is looked up.
NAME = st.from_regex(r"[a-z0-9]{6,12}-[a-z0-9]{6}", fullmatch=True)
ALWAYS = {"model.teacher": "scenes", "data.prompts": "scenes", "output.folder": "run"}
# Keys that exclude each other, or that are looked up; those that are varied have their own values here.
FIXED = {"model.height", "model.width", "model.sizes", "model.loras", "model.dtype", "objective.name"}
FIXED |= {"objective.tau_low", "objective.tau_high"}
OWN = {
    "student.num_steps": st.integers(2, 8),
    "student.start": NAME,
    "objective.perceptual.backbone": NAME,
    "objective.adversarial.real": NAME,
    "data.prompts": st.just("scenes"),
    "data.cache": NAME,
    "data.column": TEXT,
    "data.negative_column": TEXT,
    "model.negative_prompt": TEXT.map(str.strip),
    "data.samples_per_prompt": st.just(1),
    "lora.targets": st.lists(TEXT, min_size=1, max_size=3),
    "validation.prompts": st.lists(TEXT, min_size=1, max_size=3),
    "validation.features": NAME,
    "output.folder": NAME,
    "train.betas": st.lists(st.floats(0, 0.99), min_size=2, max_size=2),
    "train.reuse_samples": st.sampled_from([True, False, "student"]),
    "model.teacher": st.just("scenes"),
}


def limits(field: FieldInfo) -> dict[str, float]:
    """The bounds of a number: ge, gt, le, lt."""
    return {name: value for rule in field.metadata for name in ("ge", "gt", "le", "lt")
            if (value := getattr(rule, name, None)) is not None}  # fmt: skip


def kinds(field: FieldInfo) -> list[Any]:
    return [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]


def is_number(key: str) -> bool:
    return bool({int, float} & set(kinds(FIELDS[key]))) and key not in OWN


def valid(key: str) -> st.SearchStrategy[Any]:
    """Values that a key takes."""
    if key in OWN:
        return OWN[key]
    field, found = FIELDS[key], limits(FIELDS[key])
    if get_origin(field.annotation) is Literal:
        return st.sampled_from(get_args(field.annotation))
    if get_origin(field.annotation) is tuple:
        return st.lists(st.sampled_from(get_args(get_args(field.annotation)[0])), max_size=2)
    if bool in kinds(field):
        return st.booleans()
    if int in kinds(field):
        return st.integers(int(found.get("ge", 0)), int(found["le"] if "le" in found else found["lt"] - 1))
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    return st.floats(low, high, exclude_min="gt" in found, exclude_max="lt" in found, allow_subnormal=False)


@st.composite
def valid_recipes(draw) -> dict[str, Any]:
    """{dotted key: value} of a recipe that can be used."""
    names = sorted(FIELDS.keys() - FIXED - ALWAYS.keys())
    keys = draw(st.lists(st.sampled_from(names), unique=True, max_size=15))
    values = ALWAYS | {key: draw(valid(key)) for key in keys}
    if draw(st.booleans()):
        values |= {"model.height": draw(valid("model.height")), "model.width": draw(valid("model.width"))}
    if draw(st.booleans()):
        values |= {"objective.tau_low": draw(st.floats(0, 0.4)), "objective.tau_high": draw(st.floats(0.5, 1))}
    names = [name for name in OBJECTIVES if name != "dmd_perceptual" or values.get("student.kind", "ode") == "ode"]
    return values | {"objective.name": draw(st.sampled_from(names))}


def wrong(key: str) -> st.SearchStrategy[Any]:
    """Values that a key does not take: another type, or a number beyond its bounds."""
    field = FIELDS[key]
    if not is_number(key):
        texts = st.just(b"\0".decode()) if key in ("data.cache", "output.folder", "model.teacher") else st.nothing()
        return st.one_of(st.integers(2, 9), st.floats(1.5, 9), st.just({"a": 1}), st.just([[1]]), texts)
    found = limits(field)
    beyond = [found["le"] * 1.01 + 1 if "le" in found else found["lt"] + 1]
    beyond += [found["ge"] - 1] if "ge" in found else [found["gt"] - 0.5] if "gt" in found else []
    if int in kinds(field):
        beyond = [int(value) for value in beyond] + [1.5]
    others = [True, "4", "", [1], {"a": 1}, float("nan"), float("inf"), float("-inf"), 10**40]
    return st.sampled_from([*beyond, *others])


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """The tables of {dotted key: value}."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return tables
