"""`dpdmd.train`: train from a script or a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.recipe.inputs import require_inputs
from dpdmd.recipe.objectives import ObjectiveFunction
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.recipe.teacher import teacher_adapter
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.jsonl import read_rows
from dpdmd.store.messages import show_messages
from dpdmd.training.loop import Callback, run_training
from dpdmd.training.run.folder import RunFolder
from dpdmd.training.validation.best import read_best


@dataclass(frozen=True)
class Run:
    """A finished training: its `folder`, which `dpdmd.sample`, `dpdmd report` and `dpdmd export` take."""

    folder: Path

    @property
    def student(self) -> Path:
        """The folder with the student's weights and student.json."""
        return RunFolder(self.folder).student

    def metrics(self) -> list[dict[str, Any]]:
        """The log, one row per student update: "step", "seconds", "loss/dmd" and so on."""
        return read_rows(RunFolder(self.folder).metrics)

    def best(self) -> list[dict[str, Any]]:
        """The best students in validation, the best first: their "folder" in students/best, scores, and why."""
        return read_best(RunFolder(self.folder).best)


def train(
    recipe: Recipe | str | Path,
    *,
    objective: ObjectiveFunction | None = None,
    callbacks: Sequence[Callback] = (),
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train a student and return the run.

    recipe: a TOML file, the name of a shipped recipe, or a loaded `Recipe`. objective: your own function,
    used instead of objective.name (see `ObjectiveSetting`); its name is recorded, and resuming without it is refused.
    callbacks: each is called with the log row of every update. overrides: "section.key=value" for a file or name.
    resume: continue the run in output.folder. overwrite: replace it. progress: show messages and a progress bar.
    Raises ValueError for settings that cannot be used, before any work; see `training.loop.run_training` for the rest.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise ValueError("overrides are for a recipe file or name; change a loaded recipe with model_copy")
        loaded = recipe
    else:
        loaded = load_recipe(recipe, list(overrides))
    if progress:
        show_messages()
    require_inputs(loaded)
    adapter = teacher_adapter(loaded.model)
    plan = resolve(loaded, adapter, objective=objective)
    options = {"resume": resume, "overwrite": overwrite, "progress": progress}
    return Run(run_training(plan, adapter, **options, callbacks=callbacks))
