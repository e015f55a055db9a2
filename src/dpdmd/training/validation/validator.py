"""A run's validation: the teacher's images once, then at each interval the student's, their picture and figures."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dpdmd.distributed.processes import on_first
from dpdmd.method.denoiser import Condition
from dpdmd.models.base import ModelAdapter
from dpdmd.recipe.resolve import Plan
from dpdmd.recipe.schema import Recipe
from dpdmd.training.updates import Players
from dpdmd.training.validation.images import Validation
from dpdmd.training.validation.scores import Judge
from dpdmd.vision.features import FeatureExtractor, load_extractor


class Validator:
    """Holds what validations share: the network of the figures, and from the first one on the teacher's images."""

    def __init__(self, recipe: Recipe, adapter: ModelAdapter, accelerator: Accelerator, prompts: Iterable[str]):
        """Raises ValueError in all processes when the network of `validation.features` cannot be loaded."""
        self.recipe, self.adapter, self.accelerator, self.prompts = recipe, adapter, accelerator, list(prompts)
        self._features: FeatureExtractor | None = None
        self._drawn: tuple[Validation, Tensor] | None = None
        self._judge: Judge | None = None
        if (problem := on_first(self._load_features)) is not None:
            raise ValueError(problem)

    def row(
        self,
        step: int,
        folder: Path,
        plan: Plan,
        players: Players,
        encode: Callable[[list[str]], Condition],
        averaged: Callable[[], AbstractContextManager[None]] | None,
    ) -> dict[str, Any]:
        """Write the picture of a step into `folder`; returns figures and alarms.

        averaged: within it the student computes with its averaged weights; None when it has no others. Returns also
        "validation/seconds": what it took, which are no training seconds; "once_seconds": of them what the first
        one alone takes, for the teacher's images and the network of the figures. All processes draw: sharded networks
        need them, and the others would only wait; the first one scores. Raises OSError in all of them when it cannot be
        written.
        """
        started = time.perf_counter()
        once = self._drawn is None
        if once:
            self._prepare(folder, plan, players, encode)
        validation, teacher = self._drawn
        prepared = time.perf_counter()
        students = players.student, players.student_grid, players.student_kind
        with averaged() if averaged else nullcontext():
            student = validation.student_images(*students)
        live = validation.student_images(*students) if averaged else None
        on_first(lambda: validation.draw(step, teacher, student))
        row = on_first(lambda: self._judged(step, student, live))
        seconds = {"validation/seconds": time.perf_counter() - started}
        if once:
            seconds["once_seconds"] = prepared - started
        return seconds | row

    def _prepare(self, folder: Path, plan: Plan, players: Players, encode: Callable[[list[str]], Condition]) -> None:
        validation = Validation(
            self.adapter,
            folder,
            encode=encode,
            prompts=self.prompts,
            num_seeds=self.recipe.validation.num_seeds,
            latent_shape=plan.latent_shape,
            batch_size=self.recipe.train.batch_size,
            device=self.accelerator.device,
        )
        teacher = validation.teacher_images(players.teacher, players.teacher_grid, plan.guidance_scale)
        self._drawn = validation, teacher
        on_first(lambda: self._prepare_judge(validation, teacher))

    def _prepare_judge(self, validation: Validation, teacher: Tensor) -> None:
        try:
            self._judge = Judge(validation, teacher, self._features, str(self.accelerator.device))
        except ValueError as error:
            tqdm.write(f"note: validation has no figures: {error}")
            return
        for what, why in self._judge.skipped.items():
            tqdm.write(f"note: validation has no {what}: {why.replace('--features', 'validation.features')}")

    def _judged(self, step: int, student: Tensor, live: Tensor | None) -> dict[str, Any]:
        """The figures; without those that images do not allow, such as black ones, which no network tells apart."""
        try:
            return self._judge.row(step, student, live) if self._judge else {"alarms": {}}
        except ValueError as error:
            tqdm.write(f"step {step}: validation has no figures: {error}")
            return {"alarms": {}}

    def _load_features(self) -> str | None:
        """Load the network of validation.features in the process that scores; returns what is wrong with it."""
        config = self.recipe.validation
        if not config.every or config.features == "auto":
            return None
        try:
            self._features = load_extractor(config.features, device=str(self.accelerator.device))
        except ValueError as error:
            return f"validation.features: {error}"
        return None
