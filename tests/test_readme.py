"""README.md: short, whole on a package index, and right: what it prints runs as printed."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OURS = re.compile(
    r"https://(?:github\.com/dpdmd/dpdmd/(?:blob|tree)|raw\.githubusercontent\.com/dpdmd/dpdmd)/main/(.*)"
)
# What sets up an environment, and is not run here.
SET_UP = ("git ", "make ", "pip ", "source ")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, as printed."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The lines of all bash blocks but those that set up an environment."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if not line.startswith(SET_UP)]


def test_it_fits_a_screen_or_two():
    assert len(README.splitlines()) <= 100


def test_links_and_pictures_are_absolute_and_those_of_ours_exist():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert all(target.startswith("https://") for target in targets)
    paths = [match[1].split("#")[0] for target in targets if (match := OURS.fullmatch(target))]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {"docs/images/demo.png", "LICENSE", "CONTRIBUTING.md"} <= set(paths)


def test_it_prints_the_two_commands_that_set_up_everything_and_how_to_go_on():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    assert {"make demo", "make test", "source .venv/bin/activate"} <= set(lines)
    assert len(commands()) == 3 and all(line.startswith("dpdmd ") for line in commands())
    (python,) = blocks("python")
    assert len(python.splitlines()) <= 12


@pytest.mark.slow
def test_commands_and_python_run_as_printed(tmp_path):
    """In an empty folder, one after the other, and they leave what the page says. Of the updates only two are done."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    few, updates = partial(re.sub, r"(?<=train\.num_updates=)\d+", "2"), "train.num_updates="
    (tmp_path / "readme.py").write_text(few(blocks("python")[0]), encoding="utf-8")
    assert updates in blocks("python")[0] and sum(updates in command for command in commands()) == 1
    for command in [*map(few, commands()), "python readme.py"]:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert len(list((tmp_path / "runs" / "first" / "samples").glob("*.png"))) == 9
    assert "a red circle" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r"^teacher: variance over seeds 0\.\d+\nstudent: variance over seeds 0\.\d+$", done.stdout, re.M)
