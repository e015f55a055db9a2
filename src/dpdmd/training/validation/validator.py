"""A run's validation: the teacher's images once, then at each interval the student's, their picture and scores.

A run of several sizes has a validation at each; scores are the mean of all. The pictures of the first size are in the
folder itself, those of the others in 832x1216 and so on.
"""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dpdmd.distributed.processes import on_main_process
from dpdmd.method.denoiser import Denoiser, Encode
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import ModelAdapter
from dpdmd.recipe.plan import Plan
from dpdmd.training.validation.images import Images, Validation
from dpdmd.training.validation.scores import Judge, in_one_row
from dpdmd.vision.features import FeatureExtractor, load_extractor

logger = logging.getLogger(__name__)

NO_NETWORK = (
    "validation judges by the model alone: diversity in its latents, quality as agreement with the teacher, which says "
    "how little the teacher would change in the images; validation.features names a network that looks at them"
)


class Validator:
    """Holds what validations share: the feature network and, after the first validation, the teacher's images."""

    def __init__(
        self, plan: Plan, adapter: ModelAdapter, accelerator: Accelerator, prompts: list[str], negatives: list[str]
    ):
        """negatives: the prompts' negative prompts.

        Raises ValueError in all processes when the network of `validation.features` cannot be loaded.
        """
        self.config, self.plans = plan.validation, plan.at_each_size
        self.batch_size, self.adapter = plan.data.batch_size, adapter
        self.prompts, self.negatives = prompts, negatives
        self.device = accelerator.device
        self._features: FeatureExtractor | None = None
        self._drawn: list[tuple[Validation, Images]] | None = None
        self._judges: list[Judge | None] = []
        if (problem := on_main_process(self._load_features)) is not None:
            raise ValueError(problem)

    def row(
        self,
        step: int,
        folder: Path,
        teacher: GuidedTeacher,
        student: Denoiser,
        encode: Encode,
        averaged: Callable[[], AbstractContextManager[None]] | None,
    ) -> dict[str, Any]:
        """Write the picture of a step into `folder`; returns scores, alarms and seconds.

        averaged: within it the student computes with its averaged weights; None without an average.
        "validation/seconds" is the time this took, which is not training time; "once_seconds" the part that only the
        first validation needs, for the teacher's images and the feature network. All processes draw, since sharded
        networks need them; the first one scores. Raises OSError in all processes when a file cannot be written.
        """
        started = time.perf_counter()
        once = self._drawn is None
        if self._drawn is None:
            self._drawn = [self._prepare(at, folder, teacher, encode) for at in self.plans]
        prepared = time.perf_counter()
        rows, judges = {}, self._judges or [None] * len(self.plans)  # only the first process has judges
        for at, judge, (validation, of_teacher) in zip(self.plans, judges, self._drawn, strict=True):
            drawn = partial(validation.student_images, student, at.student.grid, at.student.kind)
            with averaged() if averaged else nullcontext():
                images = drawn()
            live = drawn() if averaged else None
            on_main_process(partial(validation.draw, step, of_teacher, images))
            rows[self._name(at)] = on_main_process(partial(self._judged, judge, step, images, live))
        row = on_main_process(lambda: in_one_row(rows))
        seconds = {"validation/seconds": time.perf_counter() - started}
        if once:
            seconds["once_seconds"] = prepared - started
        return seconds | row

    def _prepare(self, at: Plan, folder: Path, teacher: GuidedTeacher, encode: Encode) -> tuple[Validation, Images]:
        """The validation of the plan of one size, and its teacher's images."""
        validation = Validation(
            self.adapter,
            folder if at is self.plans[0] else folder / self._name(at),
            teacher=replace(teacher, grid=at.teacher.grid),
            encode=encode,
            prompts=self.prompts,
            negatives=self.negatives,
            num_seeds=self.config.num_seeds,
            latent_shape=at.latent_shape,
            batch_size=self.batch_size,
            device=self.device,
        )
        images = validation.teacher_images()
        on_main_process(lambda: self._prepare_judge(validation, images))
        return validation, images

    def _name(self, at: Plan) -> str:
        """HEIGHTxWIDTH in pixels."""
        return "x".join(str(side * self.adapter.vae_factor) for side in at.latent_shape[1:])

    def _prepare_judge(self, validation: Validation, teacher: Images) -> None:
        judge = None
        try:
            judge = Judge(validation, teacher, self._features, str(self.device))
        except ValueError as error:
            logger.info("note: validation has no scores: %s", error)
        if judge is not None and judge.extractor is None and not self._judges:
            logger.info("note: %s", NO_NETWORK)
        self._judges.append(judge)

    def _judged(self, judge: Judge | None, step: int, student: Images, live: Images | None) -> dict[str, Any]:
        """The scores, or none if these images have none, such as black ones, which no network can distinguish."""
        try:
            return judge.row(step, student, live) if judge else {"alarms": {}}
        except ValueError as error:
            logger.info("step %d: validation has no scores: %s", step, error)
            return {"alarms": {}}

    def _load_features(self) -> str | None:
        """Load the network of validation.features in the process that scores; returns an error message or None."""
        if not self.config.every or self.config.features == "auto":
            return None
        try:
            self._features = load_extractor(self.config.features, device=str(self.device))
        except ValueError as error:
            return f"validation.features: {error}"
        return None
