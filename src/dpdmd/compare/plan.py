"""From what a user asks for to arms that can be compared, checked before anything runs."""

from dataclasses import dataclass, replace
from pathlib import Path

from dpdmd.compare.arms import FEW_STEPS, REFERENCE, Arm, Budget, parse_arm, parse_settings
from dpdmd.data.prompts import training_prompts
from dpdmd.evaluate.run import choose_extractor
from dpdmd.models.load import load_adapter
from dpdmd.models.student_file import exported_student
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.toml import load_recipe
from dpdmd.world.find import world_of_teacher

# Defaults of every run: students are kept for the plot, and nobody looks at validation images.
DEFAULTS = {"checkpoint.students": "true", "checkpoint.keep": "1", "validation.every": "0"}


@dataclass(frozen=True)
class Teacher:
    """The teacher that all arms share, and how it is sampled.

    few_steps: the students' number of steps, at which it is sampled as well; None when students differ in it or the
    teacher cannot take another number of steps.
    """

    model: str
    guidance_scale: float
    num_inference_steps: int
    few_steps: int | None = None
    negative_prompt: str = ""

    def arm(self, name: str = REFERENCE, guidance_scale: float | None = None, num_steps: int | None = None) -> Arm:
        """The teacher as an arm: the reference, or another guidance scale or number of steps."""
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        steps = num_steps or self.num_inference_steps
        sampling = ("--guidance-scale", f"{scale:g}", "--num-inference-steps", str(steps))
        if self.negative_prompt and scale > 1:
            sampling += ("--negative-prompt", self.negative_prompt)
        return Arm(name, model=self.model, sampling=sampling)

    def arms(self) -> list[Arm]:
        """The reference and, if possible, the teacher at the students' number of steps."""
        return [self.arm()] + ([self.arm(FEW_STEPS, num_steps=self.few_steps)] if self.few_steps else [])


def plan_students(recipes: list[str], *, names: list[str], sets: list[str], budget: Budget) -> list[Arm]:
    """The arms that a user asks for (see `parse_arm`), each with the settings `sets` and the budget of all.

    names: none, or one for each arm. Raises ValueError for repeated names, too few of them, or one that cannot be the
    name of a folder, and for a recipe that is not valid by itself.
    """
    arms = [parse_arm(text) for text in recipes]
    if names and len(names) != len(arms):
        raise ValueError(f"give --name once for each of the {len(arms)} recipes or not at all; got {len(names)}")
    if names:
        arms = [replace(arm, name=name) for arm, name in zip(arms, names, strict=True)]
    for name in (arm.name for arm in arms):
        if name != Path(name).name or name in ("", "..", REFERENCE, FEW_STEPS):
            raise ValueError(
                f"an arm cannot be called {name!r}: the name must be that of a folder and not a teacher's; use --name"
            )
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"arms need different names, got {', '.join(arm.name for arm in arms)}; name them with --name")
    given = parse_settings(sets, where="--set")
    for arm in arms:  # before our own settings hide a mistake in theirs
        assert arm.recipe is not None, "a student has a recipe"
        load_recipe(arm.recipe, [*replace(arm, overrides=given | arm.overrides).settings(), "output.folder=planned"])
    return [replace(arm, overrides=DEFAULTS | given | arm.overrides | budget.settings()) for arm in arms]


def shared_teacher(students: list[Arm]) -> Teacher:
    """The teacher of all arms; reads and plans every recipe.

    Raises ValueError for a recipe that cannot be trained, for arms that differ in the teacher, its guidance or its
    number of steps, and for a teacher that `dpdmd sample` would sample in another way than the recipe does.
    """
    teachers: dict[str, Teacher] = {}
    for arm in students:
        assert arm.recipe is not None, "a student has a recipe"
        recipe = load_recipe(arm.recipe, [*arm.settings(), "output.folder=planned"])
        adapter = load_adapter(recipe.model.teacher)
        try:
            plan = resolve(recipe, adapter)
            training_prompts(recipe.data.sources, recipe.data.column)
        except ValueError as error:
            raise ValueError(f"arm {arm.name}: {error}") from None
        embedded = plan.embedded_guidance["teacher"]
        if plan.latent_shape != adapter.latent_shape() or embedded != adapter.embedded_guidance:
            raise ValueError(
                f"arm {arm.name}: a comparison samples the teacher in its own size and at its own embedded guidance; "
                "leave out model.height, model.width and model.embedded_guidance"
            )
        teachers[arm.name] = Teacher(
            recipe.model.teacher,
            plan.teacher.guidance.scale,
            plan.teacher.grid.num_steps,
            None if exported_student(adapter.source) else plan.student.grid.num_steps,
            plan.teacher.negative_prompt,
        )
    if len({replace(teacher, few_steps=None) for teacher in teachers.values()}) > 1:
        each = "; ".join(
            f"{name} has {t.model}, guidance {t.guidance_scale:g}, {t.num_inference_steps} steps"
            + (f", negative prompt {t.negative_prompt!r}" if t.negative_prompt else "")
            for name, t in teachers.items()
        )
        raise ValueError(f"arms must share the teacher, its guidance, negative prompt and number of steps: {each}")
    first = next(iter(teachers.values()))
    return first if len(set(teachers.values())) == 1 else replace(first, few_steps=None)


def require_features(features: str, teacher: Teacher, prompts: list[str]) -> None:
    """Raises ValueError when there is no feature network for these images: diversity cannot be measured without."""
    world = world_of_teacher(teacher.model)
    if world is not None and not world.knows(prompts):
        world = None
    if choose_extractor(features, world)[0] is None:
        raise ValueError(
            "diversity is measured in the features of a vision model, and none was found; name one with --features, a "
            "folder or hub id such as facebook/dinov2-large"
        )
