"""The commands in the documentation are accepted by the command line, and recipes in it can be read."""

import importlib
import re
import shlex
import tomllib
from math import isfinite
from pathlib import Path

import click
import pytest
import typer

import dpdmd
from dpdmd.cli import app
from dpdmd.recipe.toml import recipe_from

PAGES = sorted(Path("docs").glob("*.md"))
OBJECTIVES = Path("docs", "write-an-objective.md")
PLACEHOLDERS = {"RECIPE": "scenes_dp_dmd", "COMMAND": "config"}


def commands(page: Path) -> list[str]:
    """Lines of code blocks that call dpdmd; continued lines are joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"^    (.*)$", text, re.MULTILINE)
    calls = (re.search(r"(?:^\$ |^|-m )dpdmd (.*)", line) for line in lines)
    return [call[1] for call in calls if call]


def written(page: Path) -> list[dict]:
    """Recipes, or parts of them, in TOML blocks."""
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [tomllib.loads(block) for block in blocks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_documentation_are_accepted(page):
    group = typer.main.get_command(app)
    for line in commands(page):
        words = [
            PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True) if word not in ("...", "--debug")
        ]
        if words in ([], ["--version"]):
            continue
        name, *arguments = words
        assert name in group.commands, line
        command = group.commands[name]
        try:
            command.make_context(name, arguments, parent=click.Context(group))
        except click.UsageError as error:
            pytest.fail(f"dpdmd {line}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_in_the_documentation_have_keys_that_exist(page):
    required = {"model": {"teacher": "scenes"}, "data": {"prompts": "scenes"}, "output": {"folder": "runs/x"}}
    for recipe in written(page):
        full = {name: required.get(name, {}) | recipe.get(name, {}) for name in required | recipe}
        recipe_from(full, [], where=str(page))


@pytest.mark.slow
def test_the_example_of_an_objective_trains(tmp_path, monkeypatch):
    example = re.search(r"^```python\n(.*?)^```", OBJECTIVES.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "my_module.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"train.num_updates": 1, "train.batch_size": 8, "data.samples_per_prompt": 4, "validation.every": 0}
    settings |= {"output.folder": tmp_path / "run", "data.cache": tmp_path / "cache"}
    objective = importlib.import_module("my_module").my_objective
    overrides = [f"{key}={value}" for key, value in settings.items()]
    run = dpdmd.train("scenes_dp_dmd", objective=objective, overrides=overrides)
    assert isfinite(run.metrics()[-1]["loss/similarity"])
