"""The examples: short, self-contained, and they do what they say."""

import ast
import base64
import importlib.util
import io
import math
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import PIL.Image
import pytest
import torch

from dpdmd.evaluate.generate import generate_folder
from dpdmd.models.load import load_adapter
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def load_example(name: str):
    """The module, not run as a script."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(name): the lines that an example prints when it is run as a script in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def lines(name: str) -> list[str]:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_states_what_to_expect(script):
    text = script.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 60
    assert f"python examples/{script.name}" in docstring and "Expect" in docstring


def test_repulsion_is_a_gaussian_of_the_distance_between_samples_of_one_prompt():
    """Two prompts with two samples each, 1 and 3 apart in every coordinate; those of different prompts do not count."""
    x0 = torch.zeros(4, 2, 2, 2)
    x0[1], x0[2], x0[3] = 1.0, 10.0, 13.0
    step = SimpleNamespace(rollout=SimpleNamespace(x0=x0.requires_grad_()), samples_per_prompt=2)
    result = load_example("repulsion").Repulsion(bandwidth=2.0)(step)
    assert result.loss.item() == pytest.approx((math.exp(-1 / 8) + math.exp(-9 / 8)) / 2)
    assert result.health["distance"].item() == pytest.approx(2.0)
    result.loss.backward()
    # A gradient step, against the gradient, drives the two samples of a prompt apart.
    assert (x0.grad[0] > 0).all() and (x0.grad[1] < 0).all()


def test_repulsion_is_finite_for_equal_samples():
    x0 = torch.ones(2, 1, 2, 2, requires_grad=True)
    step = SimpleNamespace(rollout=SimpleNamespace(x0=x0), samples_per_prompt=2)
    result = load_example("repulsion").Repulsion()(step)
    result.loss.backward()
    assert result.loss.item() == 1.0 and x0.grad.abs().max() == 0


@pytest.mark.slow
def test_repulsion_trains(run):
    lines = run("repulsion")
    updates = [line for line in lines if line.startswith("update ")]
    assert len(updates) == 10 and lines[-1] == "student: runs/repulsion/student"
    assert all(0 < float(line.split("repulsion ")[1].split(",")[0]) < 1 for line in updates)


def test_a_recipe_can_name_the_objective_of_the_example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    recipe = load_recipe("scenes_dp_dmd", ["objective.name=repulsion:dp_dmd_with_repulsion"])
    names = [term.name for term in resolve(recipe, load_adapter("scenes")).objective.terms]
    assert names == ["dmd", "anchor", "repulsion"]


@pytest.mark.slow
def test_stock_diffusers_draws_the_students_image(run, tmp_path):
    lines = run("sample_in_diffusers")
    assert (tmp_path / "runs" / "sample_in_diffusers" / "image.png").is_file()
    # The export has the teacher's fp16 on disk, the run fp32: rounded to 8 bits, few levels of difference are left.
    assert lines[-1] in [f"largest difference from dpdmd's own image: {level} of 255" for level in (0, 1, 2)]


@pytest.mark.slow
def test_a_folder_is_judged_as_in_the_example(run):
    diversity, accuracy, *_ = run("judge_a_folder")
    assert diversity.startswith("diversity, as a share of the teacher's: 0.5")
    assert accuracy.startswith("colours and shapes drawn as the prompt says: 1.00")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_leads_to_pages_that_exist(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"dpdmd/blob/main/([^)#]+)", text)
    assert links and all((ROOT / link).is_file() for link in links)


def test_the_code_on_the_page_about_python_is_that_of_the_notebook():
    notebook = nbformat.read(EXAMPLES / "distil_your_own_model.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    blocks = (ROOT / "docs/python.md").read_text(encoding="utf-8").split("```python\n")[1:]
    assert len(blocks) == 2
    for block in blocks:
        assert any(block.split("```")[0].strip() in cell for cell in cells)


def executed(path: Path, folder: Path, monkeypatch, changed: str = "", to: str = "") -> tuple[list[str], list[str]]:
    """What a notebook's cells print, and its pictures. changed, to: what stands there, and what is run instead."""
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    text = path.read_text(encoding="utf-8")
    assert changed in text
    notebook = nbformat.reads(text.replace(changed, to) if changed else text, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return (
        [output["text"] for output in outputs if output.get("name") == "stdout"],
        [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})],
    )


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path, monkeypatch):
    """With two updates, which are as much a run as its twenty."""
    updates = "train.num_updates="
    _, pictures = executed(EXAMPLES / "quickstart.ipynb", tmp_path, monkeypatch, f"{updates}20", f"{updates}2")
    assert len(pictures) == 2
    assert (tmp_path / "runs" / "quickstart" / "student").is_dir()


@pytest.mark.slow
def test_the_notebook_of_a_model_of_ones_own_goes_the_whole_way(tmp_path, monkeypatch):
    """New, plan, train with a callback, stop, look, resume, best student, scores, report, export, stock diffusers."""
    printed, pictures = executed(EXAMPLES / "distil_your_own_model.ipynb", tmp_path, monkeypatch)
    text = "".join(printed)
    assert "validation: 8 pictures every 4 updates" in text and "stopped after step 5" in text
    assert "8 updates; " in text and "quality" in text and "diversity_share" in text
    assert len(pictures) == 3  # the loss, a validation, and what stock diffusers draws
    assert (tmp_path / "report.html").is_file()
    generate_folder(str(tmp_path / "runs/my_student"), ["a red circle"], out=tmp_path / "ours", seeds=[0])
    drawn = PIL.Image.open(io.BytesIO(base64.b64decode(pictures[-1]))).resize((32, 32), PIL.Image.Resampling.NEAREST)
    ours = PIL.Image.open(next((tmp_path / "ours").glob("*.png")))
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(ours)).mean() < 8  # enlarged and reduced again
