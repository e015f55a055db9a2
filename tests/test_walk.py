"""The way from a model to a published student, as docs/distil-your-own-model.md prints it, for two kinds of model.

A random SDXL as a single file, and a random FLUX.1 as a folder. The page's own commands are run, with the test's models
in place of the page's and sizes for a test; their output is written to walk.txt.
"""

import contextlib
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_flux
from single_file_sdxl import new_pipeline, one_file
from snippets import drawn_by_card, pixels

from dpdmd import cli
from dpdmd.evaluate.generate import generate_folder
from dpdmd.store.files import read_json
from dpdmd.store.jsonl import read_rows
from dpdmd.store.tensors import write_tensors
from dpdmd.training import loop

PAGE = Path(__file__).parents[1] / "docs" / "distil-your-own-model.md"
RUN = Path("runs", "my_student")
# What makes hours of a large model seconds of a tiny one.
SIZES = ["train.num_updates=6", "train.batch_size=2", "train.accumulation=1", "train.fake_updates=1"]
SIZES += ["validation.every=2", "validation.num_seeds=2", "checkpoint.every=2", "model.num_inference_steps=6"]
SIZES += ["model.height=32", "model.width=32"]


def commands_of_the_page() -> list[str]:
    """The page's calls of dpdmd, in its order."""
    blocks = PAGE.read_text(encoding="utf-8").split("```bash\n")[1:]
    return [line for block in blocks for line in block.split("```")[0].splitlines() if line.startswith("dpdmd ")]


class Walk:
    """Runs the commands in the working directory, and writes down what a user would see."""

    def __init__(self, monkeypatch, capsys, names: dict[str, str]):
        self.monkeypatch, self.capsys, self.names = monkeypatch, capsys, names
        self.left, self.transcript = commands_of_the_page(), Path("walk.txt")

    def step(self, beginning: str, *more: str, without: tuple[str, ...] = (), code: int = 0) -> str:
        """Run the page's next command that begins so, after the ones before it; returns what it prints."""
        line = next(line for line in self.left if line.startswith(f"dpdmd {beginning}"))
        self.left = self.left[self.left.index(line) + 1 :]
        for old, new in self.names.items():
            line = line.replace(old, new)
        for option in without:
            words = shlex.split(line)
            where = words.index(option)
            line = shlex.join(words[:where] + words[where + 2 :])
        line = shlex.join([*shlex.split(line), *more])
        self.monkeypatch.setattr("sys.argv", shlex.split(line))
        self.capsys.readouterr()
        try:
            cli.main()
            ended = 0
        except SystemExit as end:
            ended = end.code or 0
        out, err = self.capsys.readouterr()
        shown = out + err.replace("\r", "\n")  # a progress bar returns to the beginning of its line
        with self.transcript.open("a", encoding="utf-8") as file:
            file.write(f"$ {line}\n{shown}\n")
        assert ended == code, shown
        return shown


@contextlib.contextmanager
def stopped_after(updates: int, monkeypatch):
    """Within it Ctrl-C is pressed when the run has logged so many updates."""
    real = loop.log_row

    def log_row(path, row) -> None:
        real(path, row)
        if path.name == "metrics.jsonl" and row["step"] == updates:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # of a test run in the background: ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "log_row", log_row)
            yield
    finally:
        signal.signal(signal.SIGINT, before)


def single_file_sdxl() -> dict[str, str]:
    """my_model.safetensors and the folder of its base."""
    new_pipeline(0).save_pretrained("base")
    write_tensors("my_model.safetensors", one_file(new_pipeline(1)))
    return {"stabilityai/stable-diffusion-xl-base-1.0": "base"}


def flux_folder() -> dict[str, str]:
    """A folder my_model."""
    tiny_flux.save(Path("my_model"))
    return {"stabilityai/stable-diffusion-3.5-medium": "my_model"}


@pytest.mark.slow
@pytest.mark.parametrize("make", [single_file_sdxl, flux_folder])
def test_the_pages_commands_lead_from_a_model_to_a_published_student(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = make()
    Path("prompts.txt").write_text("red circle\nthe blue cross\ngreen square, small\n")
    Path("test_prompts.txt").write_text("circle\nthe red square\n")
    walk = Walk(monkeypatch, capsys, names)

    walk.step("new my_model.safetensors" if make is single_file_sdxl else "new", "--adapters")
    recipe = Path("my_student.toml")
    assert 'prompts = "generic"' in recipe.read_text()
    recipe.write_text(recipe.read_text().replace('prompts = "generic"', 'prompts = "prompts.txt"'))
    # Stock pipelines of flows give their scheduler no generator: only a deterministic student can be drawn alike.
    settings = SIZES if make is single_file_sdxl else [*SIZES, "student.kind=ode"]
    sizes = [word for setting in settings for word in ("--set", setting)]
    assert "validation: 8 pictures" in walk.step("plan", *sizes)

    walk.left.remove(next(line for line in walk.left if "runs/trial" in line))  # the same with other settings
    with stopped_after(3, monkeypatch):
        stopped = walk.step("train my_student.toml", *sizes, code=130)
    assert "stopped after step 3; the checkpoint is saved" in stopped
    assert len(read_rows(RUN / "metrics.jsonl")) == 3
    walk.names |= {"my_student@500": "my_student@2"}
    walk.step("sample runs/my_student@500")
    assert len(list(Path("look").glob("*.png"))) == 2 * 4
    resumed = walk.step("train runs/my_student --resume")
    assert "after step 3" in resumed and "best in validation" in resumed
    assert len(read_rows(RUN / "metrics.jsonl")) == 6
    best = read_json(RUN / "students/best/best.json")["students"][0]
    scores = {row["step"]: row for row in read_rows(RUN / "validation/scores.jsonl")}
    assert set(scores) == {2, 4, 6} and best["quality"] == scores[best["step"]]["validation/quality"]

    walk.step("evaluate", "--images-per-prompt", "2", without=("--features", "--quality"))
    walk.step("report")
    assert "my_student" in Path("report.html").read_text(encoding="utf-8")
    walk.step("export runs/my_student --out my_student --lora")
    walk.step("export runs/my_student --out my_student_merged")
    assert not [line for line in walk.left if not line.startswith("dpdmd train")], "every command of the page was run"

    generate_folder(str(RUN), ["a red circle"], out="ours", seeds=[0], progress=False)
    base = str(Path("my_model").absolute())
    for export in ("my_student", "my_student_merged"):
        drawn = drawn_by_card(Path(export).absolute(), base)
        ours = pixels(Path("ours"))[0].astype(int)  # rounded to 8 bits, which may fall either way
        assert np.abs(drawn.astype(int) - ours).max() <= 1, export
        with walk.transcript.open("a", encoding="utf-8") as file:
            file.write(f"{export}, drawn by its card's call in stock diffusers: within 1 of 255 of `dpdmd sample`\n")
