"""Commands that are not run: they record how they were called and write what the real ones would."""

from itertools import pairwise
from pathlib import Path

import pytest

from dpdmd.compare import commands
from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.method.randomness import generator
from dpdmd.recipe.toml import dump_recipe, load_recipe
from dpdmd.store.files import write_json, write_text
from dpdmd.store.jsonl import append_row
from dpdmd.store.png import write_png
from dpdmd.world.scenes import render, sample_scenes

PROMPTS = ["a red circle", "a blue cross"]
KEPT = (50, 100, 150)


class Commands:
    """Stands for `dpdmd.compare.commands._call`: `calls` of (arguments, options).

    `fails`: part of a folder's name -> exit code of its training; 1 leaves failure.json, as a loss that is not finite.
    """

    def __init__(self):
        self.calls: list[tuple[str, ...]] = []
        self.options: list[dict] = []
        self.fails: dict[str, int] = {}

    def __call__(self, arguments: list[str], **options) -> dict:
        self.calls.append(tuple(arguments))
        self.options.append(options)
        code = {"train": self.train, "sample": self.sample}[arguments[0]](arguments)
        return {"seconds": 2.0, "peak_memory_bytes": 1000 * len(self.calls), "exit_code": code}

    def names(self) -> list[tuple[str, str]]:
        return [call[:2] for call in self.calls]

    def train(self, arguments: list[str]) -> int:
        settings = [value for flag, value in pairwise(arguments) if flag == "--set"]
        recipe = load_recipe(arguments[1], settings)
        folder = Path(recipe.output.folder)
        write_text(folder / "recipe.toml", dump_recipe(recipe))
        facts = {"forwards_per_update": 32, "backwards_per_update": 9, "extra_parameters": {"judge": 7, "eye": 3}}
        write_json(folder / "provenance.json", facts)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        for step in range(1, 31):
            # The first update takes a second longer; one gradient leaves its usual size.
            row = {
                "step": step,
                "seconds": 1 + 0.5 * step,
                "loss/dmd": 1.0,
                "grad_norm/student": 9.0 if step == 20 else 1.0,
            }
            append_row(folder / "metrics.jsonl", row)
        for part, code in self.fails.items():
            if part in str(folder):
                if code == 1:
                    write_json(folder / "failure.json", {"step": 30, "error": "loss/dmd = inf"})
                return code
        student = {"base": "scenes", "grid": [1.0, 0.5, 0.0], "peak_memory_bytes": 2**20, "updates": 150}
        write_json(folder / "student" / "student.json", student)
        if recipe.checkpoint.students:
            for step in KEPT:
                write_json(folder / "students" / f"step-{step:06d}" / "student.json", student)
        return 0

    def sample(self, arguments: list[str]) -> int:
        folder = Path(arguments[arguments.index("--out") + 1])
        number = int(arguments[arguments.index("--images-per-prompt") + 1])
        prompts = Path(arguments[arguments.index("--prompts") + 1]).read_text().splitlines()
        images = render(sample_scenes(number * len(prompts), generator(len(self.calls), "test")))
        entries = []
        for i, image in enumerate(images):
            write_png(folder / f"{i}.png", image)
            entries.append(ImageEntry(prompts[i // number], i % number, f"{i}.png"))
        write_manifest(folder, entries, {"num_inference_steps": 4})
        return 0


@pytest.fixture
def called(monkeypatch) -> Commands:
    recorder = Commands()
    monkeypatch.setattr(commands, "_call", recorder)
    return recorder


@pytest.fixture
def prompts() -> list[str]:
    return PROMPTS
