"""What is compared: an arm is a recipe or a model, a run is an arm with one training seed; and how users name them."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dpdmd.recipe import bounds

# The name of the arm that all others are compared with.
REFERENCE = "teacher"
FEW_STEPS = "teacher_few_steps"
# Keys that the comparison itself sets to the same value for all arms, and the option that sets them.
SETTLED = {
    "train.seed": "--seeds",
    "train.num_updates": "--budget",
    "train.max_seconds": "--budget",
    "output.folder": "--out",
}


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a `recipe` (file or shipped name) with `overrides`, or a `model` that is only sampled.

    sampling: further arguments of `dpdmd sample`. The arm called "teacher" is what the others are compared with.
    """

    name: str
    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    sampling: tuple[str, ...] = ()
    model: str | None = None

    def settings(self) -> list[str]:
        """The overrides as `--set` takes them."""
        texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in self.overrides.items()}
        return [f"{key}={text}" for key, text in texts.items()]


@dataclass(frozen=True)
class Run:
    """An arm in its own folder, trained with `seed`; None for a model that is only sampled."""

    arm: Arm
    folder: Path
    seed: int | None = None


@dataclass(frozen=True)
class Budget:
    """What each run may spend: student updates, or seconds of training."""

    amount: float
    unit: Literal["steps", "seconds"]

    def settings(self) -> dict[str, Any]:
        """The keys of the recipe that it sets."""
        if self.unit == "steps":
            return {"train.num_updates": int(self.amount)}
        # Only the time ends the run.
        return {"train.num_updates": bounds.WITHOUT_END, "train.max_seconds": self.amount}

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit if self.amount != 1 else self.unit[:-1]}"


def arrange(out: Path, models: list[Arm], students: list[Arm], seeds: list[int]) -> list[Run]:
    """The runs of a comparison: models once in `out`/teachers/NAME, students with every seed in `out`/seed-N/NAME."""
    runs = [Run(arm, out / "teachers" / arm.name) for arm in models]
    for seed in seeds:
        seeded = (replace(arm, overrides={"train.seed": seed} | arm.overrides) for arm in students)
        runs += [Run(arm, out / f"seed-{seed}" / arm.name, seed) for arm in seeded]
    return runs


def parse_arm(text: str) -> Arm:
    """An arm from "RECIPE" or "RECIPE:SECTION.KEY=VALUE,SECTION.KEY=VALUE", named after this text.

    A comma separates two settings only where a key follows, so that a value may be a list. Raises ValueError for a
    malformed setting and for one that the comparison makes itself.
    """
    recipe, colon, settings = (text, "", "") if Path(text).is_file() else text.partition(":")
    overrides = parse_settings(re.split(r",(?=\w+(?:\.\w+)+=)", settings) if colon else [], where=f"arm {text!r}")
    parts = [Path(recipe).stem if recipe.endswith(".toml") else recipe]
    parts += [f"{key.rpartition('.')[2]}={value}" for key, value in overrides.items()]
    return Arm(re.sub(r"[^\w.=+-]+", "_", "+".join(parts)), recipe, overrides)


def parse_settings(texts: list[str], *, where: str) -> dict[str, str]:
    """{key: value as text} of "SECTION.KEY=VALUE". Raises ValueError, naming `where` they came from."""
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or "." not in key:
            raise ValueError(
                f"{where}: a setting must be SECTION.KEY=VALUE, such as train.learning_rate=2e-4; got {text!r}"
            )
        if key in SETTLED:
            raise ValueError(f"{where}: {key} is the same for all arms, set by {SETTLED[key]}; leave it out")
        settings[key] = value
    return settings


def parse_seeds(text: str) -> list[int]:
    """Training seeds from "0-4", "0,2,5" or both. Raises ValueError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise ValueError(f'--seeds must be like "0-4" or "0,2,5", got {text!r}')
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= bounds.SEED or last - first >= bounds.COUNT:
            raise ValueError(f"--seeds: {part.strip()} names more or larger seeds than a comparison can take")
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must name at least one seed and none of them twice, got {text!r}")
    return seeds


def parse_budget(text: str) -> Budget:
    """A budget from "150 steps" or "600 seconds". Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(step|second)s?\s*", text)
    amount = float(match[1]) if match else 0.0
    if not match or not 0 < amount <= bounds.SECONDS or (match[2] == "step" and not amount.is_integer()):
        raise ValueError(f'--budget must be like "150 steps" or "600 seconds", got {text!r}')
    return Budget(amount, "steps" if match[2] == "step" else "seconds")


def parse_scales(text: str) -> list[float]:
    """Guidance scales from "1,2,3.5", none from "". Raises ValueError for anything else."""
    try:
        scales = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        scales = [0.0]
    if any(not 1 <= scale <= bounds.SCALE for scale in scales):
        raise ValueError(f'--guidance must be like "1,2,3.5", each from 1 (off) to {bounds.SCALE:g}, got {text!r}')
    return sorted(set(scales))
