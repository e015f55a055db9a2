"""What is written down for each family by hand is there for every one, so that none is left out of a test or a page."""

import importlib
import re
from pathlib import Path

import test_contract
import test_lora_names
import test_memory
from families import FAMILIES as TINY

from dpdmd.models.load import FAMILIES, published_models
from dpdmd.models.pipeline_files import read_index
from dpdmd.publish.comfyui import FAMILIES as DRAWN_BY_COMFYUI
from dpdmd.publish.comfyui import REASONS as NOT_DRAWN_BY_COMFYUI
from tools.recipes import FAMILIES as RECIPES

NUMBERS = {"Thirteen": 13, "Fourteen": 14, "Fifteen": 15, "Sixteen": 16, "Seventeen": 17, "Eighteen": 18}


def test_every_family_has_a_tiny_pipeline_and_a_name():
    assert {importlib.import_module(f"tiny_{name}").STOCK.__name__ for name in TINY} == set(FAMILIES)
    assert set(test_contract.NAMES) == set(FAMILIES)


def test_every_family_has_a_public_model_whose_size_names_and_recipes_are_tested():
    published = published_models()
    assert {read_index(folder)["_class_name"] for folder in published.values()} == set(FAMILIES)
    assert set(test_memory.PARAMETERS) == set(published)
    assert set(test_lora_names.PUBLISHED.values()) == set(published)
    assert {model for model, _, _ in RECIPES.values()} == set(published)


def test_every_family_has_nodes_of_comfyui_or_a_reason_why_not():
    assert set(DRAWN_BY_COMFYUI) | set(NOT_DRAWN_BY_COMFYUI) == set(FAMILIES)
    assert not set(DRAWN_BY_COMFYUI) & set(NOT_DRAWN_BY_COMFYUI)


def test_the_pages_name_every_family():
    models = Path("docs", "models.md").read_text()
    overview, rest = models.split("## What is tested")
    rows = re.findall(r"^\| .+? \| `(\w+Pipeline)` \|", overview, re.MULTILINE)
    assert sorted(rows) == sorted(FAMILIES)
    loras = rest.split("## Where a LoRA works")[1]
    assert [name for name in test_contract.NAMES.values() if f"\n| {name} |" not in loras] == []
    (number,) = re.findall(r"(\w+)\s+families are supported", models)
    (readme,) = re.findall(r"\[(\d+) families\]", Path("README.md").read_text())
    assert NUMBERS[number] == int(readme) == len(FAMILIES)
