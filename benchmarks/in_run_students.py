"""Students of short runs, each with 16 validation pictures and exact scores, for `benchmarks.in_run_quality`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.trainers import new_trainer
from dpdmd.evaluate.scorers.features import feature_scores
from dpdmd.evaluate.scorers.latents import Latents
from dpdmd.evaluate.scorers.world import world_scores
from dpdmd.evaluate.scores import together
from dpdmd.method.denoiser import Condition
from dpdmd.method.guidance import guided
from dpdmd.method.paths import add_noise
from dpdmd.method.randomness import generator, image_noise
from dpdmd.models.sampling import student_samples
from dpdmd.recipe.toml import load_recipe
from dpdmd.store.files import write_json
from dpdmd.store.png import to_uint8
from dpdmd.store.tensors import read_tensors, write_tensors
from dpdmd.training.trainer import Trainer
from dpdmd.training.validation.images import default_prompts
from dpdmd.training.validation.scores import Drawn
from dpdmd.vision.features import extract_features
from dpdmd.world.prompts import evaluation_prompts, training_prompts
from dpdmd.world.scene_world import WORLD

NUM_SEEDS, IMAGES, OTHER_SEEDS = 4, 16, 10000
TAUS = (0.1, 0.2, 0.3, 0.5, 0.7)
EVERY = 10  # updates between two looks
UPDATES = {"flow": 100, "noise": 60}
# What the students were trained with, whatever the recipes have become since.
SETTINGS = {
    "student.kind": '"ode"',
    "objective.anchor.every": 2,
    "objective.anchor.fraction": 1.0,
    "train.fake_updates": 2,
    "train.reuse_samples": "true",
    "train.schedule": '"constant"',
}
GUIDED = {"flow": {"objective.anchor.guidance_scale": 2.5}, "noise": {}}  # the anchor, by teacher


@dataclass(frozen=True)
class Course:
    """A run whose student is looked at every EVERY updates."""

    name: str
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)


# The courses of the flow; of the noise-predicting teacher the first three.
OVERRIDES = {
    "dp_dmd": {},
    "dmd": {"objective.name": '"dmd"', "train.learning_rate": 1e-3},
    "fast": {"train.learning_rate": 2e-3},
    "two_steps": {"student.num_steps": 2, "train.learning_rate": 3e-4, "train.seed": 2},
    "renoise": {"objective.name": '"dmd"', "student.kind": '"renoise"', "train.seed": 1},
    "unguided_anchor": {"objective.anchor.guidance_scale": 1.0, "train.learning_rate": 1e-3},
}
COURSES = [Course(f"flow_{name}", "scenes_dp_dmd", overrides) for name, overrides in OVERRIDES.items()] + [
    Course(f"noise_{name}", "scenes_eps_dp_dmd", OVERRIDES[name]) for name in ("dp_dmd", "dmd", "fast")
]


def collect(course: Course, out: Path) -> None:
    """Train a course and write what is needed of each student: its 16 pictures as latents, and its exact scores."""
    if (out / "done.json").is_file():
        return
    world = course.name.partition("_")[0]
    overrides = SETTINGS | GUIDED[world] | course.overrides
    overrides |= {"train.num_updates": UPDATES[world], "output.folder": str(out)}
    trainer = new_trainer(load_recipe(course.recipe, [f"{key}={value}" for key, value in overrides.items()]))
    looks = _Looks(trainer, out)
    while not trainer.is_finished():
        for _ in range(EVERY):
            trainer.iterate()
        looks.take()
    write_json(out / "done.json", {"updates": trainer.step, "seconds": trainer.seconds})


class _Looks:
    """Looks at the student of a trainer, and the teacher's pictures that they are compared with."""

    def __init__(self, trainer: Trainer, out: Path):
        self.trainer, self.out = trainer, out
        plan, teacher = trainer.plan, trainer.parts.teacher
        self.prompts = default_prompts(training_prompts())
        self.seeds = list(range(NUM_SEEDS)) * len(self.prompts)
        self.cond = self._encoded(self.prompts, NUM_SEEDS)
        self.uncond = self._encoded([""], 1)
        # One set for all courses of a teacher.
        kept = out.parent / f"{plan.teacher.source}.safetensors"
        if not kept.is_file():
            few = teacher.rollout(self._noise(self.seeds), self.cond, self.uncond.expand(len(self.cond)))
            cond, seeds = self._encoded(evaluation_prompts(), IMAGES), self._many_seeds(OTHER_SEEDS)
            parts = [slice(i, i + 64) for i in range(0, len(seeds), 64)]
            many = [teacher.rollout(self._noise(seeds[p]), cond[p], self.uncond.expand(len(cond[p]))) for p in parts]
            write_tensors(kept, {"few": few, "many": torch.cat(many)})
        drawn = read_tensors(kept)
        self.few = self._pictures(drawn["few"], self.prompts)
        self.many = self._pictures(drawn["many"], evaluation_prompts())

    def take(self) -> None:
        """Write step-000012.json and .safetensors."""
        name = f"step-{self.trainer.step:06d}"
        with self.trainer.averaged():
            few = self._student(self.seeds, self.cond)
            seeds = self._many_seeds(0)
            many = self._student(seeds, self._encoded(evaluation_prompts(), IMAGES))
            gaps = self._gaps(few)
        write_tensors(self.out / f"{name}.safetensors", {"few": few})
        exact = self._scores(self._pictures(many, evaluation_prompts()), self.many)
        at_16 = self._scores(self._pictures(few, self.prompts), self.few)
        write_json(self.out / f"{name}.json", {"step": self.trainer.step, "exact": exact, "at_16": at_16, "gaps": gaps})

    @torch.no_grad()
    def _gaps(self, x0: Tensor) -> dict[str, float]:
        """Mean |x0_teacher - x0_fake| at each tau: how far the fake score says that student and teacher are apart."""
        teacher, fake = self.trainer.parts.teacher, self.trainer.denoisers.fake_score
        found = {}
        for tau in TAUS:
            t, noise = torch.full((len(x0),), tau), torch.randn(x0.shape, generator=generator(0, "in_run_quality"))
            x_t = add_noise(self.trainer.plan.path, x0, noise, t)
            real = guided(teacher.denoise, x_t, t, self.cond, self.uncond.expand(len(x0)), teacher.guidance).x0
            found[str(tau)] = float((real - fake(x_t, t, self.cond).x0).abs().mean())
        return found

    def _student(self, seeds: list[int], cond: Condition) -> Tensor:
        plan = self.trainer.plan
        options = {"grid": plan.student.grid, "kind": plan.student.kind}
        student, parts = self.trainer.denoisers.student, [slice(i, i + 96) for i in range(0, len(seeds), 96)]
        drawn = [student_samples(student, plan.path, seeds[p], plan.latent_shape, cond[p], **options) for p in parts]
        return torch.cat(drawn)

    def _encoded(self, prompts: list[str], number: int) -> Condition:
        cond = self.trainer.parts.batches.prompts.encode(prompts)
        return cond[torch.arange(len(prompts)).repeat_interleave(number)]

    def _noise(self, seeds: list[int]) -> Tensor:
        return image_noise(seeds, self.trainer.plan.latent_shape)

    @staticmethod
    def _many_seeds(first: int) -> list[int]:
        return list(range(first, first + IMAGES)) * len(evaluation_prompts())

    @torch.no_grad()
    def _pictures(self, latents: Tensor, prompts: list[str]) -> Drawn:
        images = torch.cat([self.trainer.parts.adapter.decode(part) for part in latents.split(64)])
        pixels = to_uint8(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        seeds = {prompt: list(range(len(latents) // len(prompts))) for prompt in prompts}
        files = [Path(str(i)) for i in range(len(images))]
        return Drawn(
            Path(), prompts, seeds, files, pixels, Latents(latents, latents), extract_features("scenes", pixels)
        )

    @staticmethod
    def _scores(images: Drawn, teacher: Drawn) -> dict[str, float]:
        assert images.features and teacher.features, "features were computed"
        found = [*feature_scores(images, images.features, teacher.features), world_scores(WORLD, images, teacher)]
        keys = ("validity", "named_accuracy", "frechet", "diversity_share", "precision", "effective_modes_mean")
        metrics = together(images.prompts, found)
        return {key: metrics[key] for key in (*keys, "total_variation_reference")}
