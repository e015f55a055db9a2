"""Figures of validation images, as `dpdmd evaluate` has them of a folder, and what is alarming about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpdmd.evaluate.fidelity import neighbours
from dpdmd.evaluate.intervals import Estimate, mean_estimate
from dpdmd.evaluate.run import choose_extractor
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scorers.features import NUM_NEIGHBOURS, diversity_scores
from dpdmd.evaluate.scorers.saturation import saturation
from dpdmd.evaluate.scorers.scenes import is_world, scene_scores
from dpdmd.evaluate.scores import Scores, quality, together
from dpdmd.store.png import to_uint8
from dpdmd.training.validation.images import Validation
from dpdmd.vision.features import FeatureExtractor, Features, extract_features

# Of the teacher's diversity: with less, samples of a prompt are more alike than apart.
COLLAPSED = 0.5
# More saturated than the teacher by so much of all colour values.
OVERSATURATED = 0.1
# Of training seconds: what validation may take without a word.
MOST_TIME = 0.05


@dataclass(frozen=True)
class Drawn(Samples):
    """Images in memory, (P * R, 3, H, W), instead of a folder's, and their features if there is a network for them."""

    tensor: Tensor
    features: Features | None

    def images(self) -> Iterator[Tensor]:
        """Each image (3, H, W) in [-1, 1]."""
        return iter(self.tensor)


@dataclass(frozen=True)
class Figures:
    """Of one set of validation images.

    values: "saturation" and, as far as they can be had, "diversity", "diversity_share" and "quality". share, excess: by
    how much diversity is the teacher's and how much more is saturated than of the teacher's, with intervals over
    prompts; None of the teacher itself.
    """

    values: dict[str, float]
    share: Estimate | None
    excess: Estimate | None


def figures(images: Drawn, teacher: Drawn) -> Figures:
    """What is measured of `images` against the teacher's of the same prompts and seeds.

    Diversity needs features and two images per prompt, precision features and more than five images.
    """
    metrics = together(images.prompts, _scores(images, teacher))
    values = {key: metrics[key] for key in ("diversity", "diversity_share", "saturation") if key in metrics}
    if (good := quality(metrics)) is not None:
        values["quality"] = good.value
    share = None
    if "diversity_share" in metrics:
        low, high = metrics["intervals"].get("diversity_share", (None, None))
        share = Estimate(metrics["diversity_share"], low, high, len(images.prompts))
    return Figures(values, share, mean_estimate((_saturated(images) - _saturated(teacher)).tolist()))


def _scores(images: Drawn, teacher: Drawn) -> list[Scores]:
    num, scores, ours, theirs = len(images.prompts), [saturation(images)], images.features, teacher.features
    if ours is not None and theirs is not None and images.images_per_prompt > 1:
        scores.append(diversity_scores(images.prompts, ours.per_prompt(num), theirs.per_prompt(num)))
    if ours is not None and theirs is not None and len(images.tensor) > NUM_NEIGHBOURS:
        near = neighbours(ours.pooled, theirs.pooled, num_neighbours=NUM_NEIGHBOURS)
        scores.append(Scores(values={"precision": near.precision}))
    if is_world(images):
        scores.append(scene_scores(images, None))
    return scores


def _saturated(images: Drawn) -> Tensor:
    """Share of saturated values of each prompt, (P,)."""
    return (images.tensor.abs() >= 1).double().flatten(1).mean(1).unflatten(0, (len(images.prompts), -1)).mean(1)


class Judge:
    """Gives the figures of a run's validation images; it holds the teacher's, and the network that sees them."""

    def __init__(self, validation: Validation, teacher: Tensor, extractor: FeatureExtractor | None, device: str):
        """teacher: its images (P * R, 3, H, W). extractor: None chooses as `dpdmd evaluate` does.

        Raises ValueError for images that the network cannot see.
        """
        self.validation, self.extractor = validation, None
        self.skipped: dict[str, str] = {}
        if extractor is None:
            extractor, self.skipped = choose_extractor("auto", is_world(self._drawn(teacher)), device)
        self.extractor = extractor
        self.teacher = self._drawn(teacher)
        self.of_teacher = figures(self.teacher, self.teacher).values
        self.judged_by = f"{extractor.name if extractor else 'no network'}, {validation.identity}"

    def row(self, step: int, student: Tensor, live: Tensor | None) -> dict[str, Any]:
        """ "validation/quality" and so on of the student that a finished run has, "validation/live_..." of its
        weights before averaging, "validation/teacher_..."; "alarms" of the student; "judged_by": the feature network.
        """
        found = figures(self._drawn(student), self.teacher)
        by_prefix = {"": found.values, "teacher_": self.of_teacher}
        if live is not None:
            by_prefix["live_"] = figures(self._drawn(live), self.teacher).values
        row = {f"validation/{prefix}{key}": v for prefix, values in by_prefix.items() for key, v in values.items()}
        row.pop("validation/teacher_diversity_share", None)
        return row | {"alarms": alarms(found, step), "judged_by": self.judged_by}

    def _drawn(self, images: Tensor) -> Drawn:
        """With the digits that a PNG would keep."""
        pixels = to_uint8(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = extract_features(self.extractor, pixels) if self.extractor else None
        prompts, num_seeds = self.validation.prompts, self.validation.num_seeds
        seeds = {prompt: list(range(num_seeds)) for prompt in prompts}
        files = [Path(str(i)) for i in range(len(images))]
        return Drawn(Path(), prompts, seeds, files, pixels, features)


def alarms(found: Figures, step: int) -> dict[str, str]:
    """{"collapse", "saturation": a sentence} for what is wrong even at the better end of the interval over prompts.

    A single prompt has no interval, and so no alarm.
    """
    found_alarms = {}
    share, excess = found.share, found.excess
    if share is not None and share.high is not None and share.high < COLLAPSED:
        found_alarms["collapse"] = (
            f"collapse: samples of one prompt have become alike: {share.value:.2f} of the teacher's diversity at "
            f"update {step} (95 % interval over prompts {share.low:.2f} to {share.high:.2f}). More weight on the "
            "anchor or a lower learning rate keeps more of it"
        )
    if excess is not None and excess.low is not None and excess.low > OVERSATURATED:
        found_alarms["saturation"] = (
            f"saturation: {found.values['saturation']:.2f} of all colour values are at the end of the scale at update "
            f"{step}, {excess.value:.2f} more than of the teacher's. Less guidance of the real score or a lower "
            "learning rate helps"
        )
    return found_alarms


def too_slow(rows: list[dict[str, Any]], every: int) -> str | None:
    """A warning when validation takes more than its share of the training's time, not counting what happens once.

    rows: of validation/scores.jsonl.
    """
    seconds, once = _seconds(rows)
    if not rows or seconds - once <= MOST_TIME * rows[-1]["seconds"]:
        return None
    return (
        f"{time_in_words(rows)}: a larger validation.every than {every}, fewer prompts or a smaller "
        "validation.num_seeds make it less"
    )


def time_in_words(rows: list[dict[str, Any]]) -> str:
    """The time of validation so far, compared with training; rows: of validation/scores.jsonl, at least one."""
    (seconds, once), training = _seconds(rows), rows[-1]["seconds"]
    return (
        f"validation took {seconds:.1f} s, training {training:.1f} s: {once:.1f} s once, then "
        f"{100 * (seconds - once) / training:.1f} %"
    )


def _seconds(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """In all, and of them for what happens once."""
    return sum(row["validation/seconds"] for row in rows), sum(row.get("once_seconds", 0.0) for row in rows)


def in_words(row: dict[str, Any]) -> str:
    """A row's figures of the student in a line."""
    names = {"quality": "quality", "diversity_share": "share of the teacher's diversity", "saturation": "saturated"}
    return ", ".join(
        f"{name} {row[f'validation/{key}']:.2f}" for key, name in names.items() if f"validation/{key}" in row
    )
