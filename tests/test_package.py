"""What is published: one version everywhere, a wheel with all that it needs, an sdist that passes its own tests."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import dpdmd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = "https://github.com/dpdmd/dpdmd"
# Fast tests that read files outside of src/ and tests/, and some of the method.
SELECTION = "test_import or test_results_page or test_readme or test_examples"


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert {PROJECT["version"], citation["version"], newest} == {dpdmd.__version__}


def test_the_repository_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["urls"]["Repository"] == citation["repository-code"] == REPOSITORY
    assert all(url.startswith((REPOSITORY, "https://arxiv.org/")) for url in PROJECT["urls"].values())


def test_the_workflow_runs_the_checks_on_pythons_that_we_name():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["checks"]
    assert job["steps"][-1]["run"] == "bash .ci/run" and (ROOT / ".ci" / "run").is_file()
    named = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"] == [oldest, named[-1]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_a_form_of_an_issue_can_be_read(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "contact_links" in form or {"name", "description", "body"} <= set(form)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel, built from this checkout without the network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t", "sdist", "-t", "wheel"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"dpdmd", f"dpdmd-{PROJECT['version']}.dist-info"}
    assert not any("pretrain" in name or "tools" in name for name in names)
    tracked = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file()}
    assert {name for name in tracked if "__pycache__" not in name and ".egg-info" not in name} <= set(names)


@pytest.mark.slow
def test_the_sdist_passes_its_own_tests(built, tmp_path):
    """All of its tests are collected, which imports every module they need, and some are run."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    own = {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")}
    assert {path.relative_to(folder) for path in (folder / "tests").rglob("*.py")} == own
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "-k", SELECTION]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
