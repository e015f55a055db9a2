"""Scores of validation images, as `dpdmd evaluate` computes them for a folder, and alarms about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dpdmd.evaluate.intervals import Estimate, mean_estimate
from dpdmd.evaluate.run import choose_extractor
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scorers.features import diversity_scores
from dpdmd.evaluate.scorers.latents import Latents, latent_scores
from dpdmd.evaluate.scorers.saturation import saturation
from dpdmd.evaluate.scorers.world import world_of, world_scores
from dpdmd.evaluate.scores import Scores, quality, together
from dpdmd.store.png import to_uint8
from dpdmd.training.validation.images import Images, Validation
from dpdmd.vision.features import FeatureExtractor, Features, extract_features

# Compared with the teacher; trivial for its own images.
RELATIVE = ("diversity_share", "latent_diversity_share", "latent_distance", "agreement")
KEYS = (*RELATIVE, "diversity", "latent_diversity", "saturation")
# Alarm below this share of the teacher's diversity.
COLLAPSED = 0.5
# Alarm above this share of colour values that are saturated in addition to the teacher's.
OVERSATURATED = 0.1
# Warn when validation takes more than this share of the training time.
MOST_TIME = 0.05


@dataclass(frozen=True)
class Drawn(Samples):
    """Images in memory, (P * R, 3, H, W), instead of a folder, and their features if there is a feature network."""

    tensor: Tensor
    latents: Latents
    features: Features | None

    def images(self) -> Iterator[Tensor]:
        """Each image (3, H, W) in [-1, 1]."""
        return iter(self.tensor)


@dataclass(frozen=True)
class ValidationScores:
    """Scores of one set of validation images.

    values: "saturation", "agreement", "quality" and, of several images per prompt, the others of KEYS. share: diversity
    share; excess: saturation minus the teacher's; both with intervals over prompts.
    """

    values: dict[str, float]
    share: Estimate | None
    excess: Estimate | None


def validation_scores(images: Drawn, teacher: Drawn) -> ValidationScores:
    """Scores of `images`, compared with the teacher's of the same prompts and seeds.

    Diversity is that of features, without a network that of latents. Quality is exact in a built-in world, else the
    agreement with the teacher: precision, which `dpdmd evaluate` takes, is 1 for all students at so few images.
    """
    metrics = together(images.prompts, _scores(images, teacher))
    values = {key: metrics[key] for key in KEYS if key in metrics}
    exact = quality(metrics)
    values["quality"] = metrics["agreement"] if exact is None else exact.value
    share = None
    if "diversity_share" in metrics:
        low, high = metrics["intervals"].get("diversity_share", (None, None))
        share = Estimate(metrics["diversity_share"], low, high, len(images.prompts))
    return ValidationScores(values, share, mean_estimate((_saturated(images) - _saturated(teacher)).tolist()))


def _scores(images: Drawn, teacher: Drawn) -> list[Scores]:
    num, ours, theirs = len(images.prompts), images.features, teacher.features
    in_latents = latent_scores(num, images.latents, teacher.latents)
    of_latents = {f"latent_{key}": key for key in ("diversity", "diversity_share")}
    general = {key: in_latents.estimates[name] for name, key in of_latents.items() if name in in_latents.estimates}
    scores = [saturation(images), in_latents, Scores(general)]
    if ours is not None and theirs is not None and images.images_per_prompt > 1:
        scores.append(diversity_scores(images.prompts, ours.per_prompt(num), theirs.per_prompt(num)))
    world = world_of(images)
    if world is not None:
        scores.append(world_scores(world, images, None))
    return scores


def _saturated(images: Drawn) -> Tensor:
    """Share of saturated values of each prompt, (P,)."""
    return (images.tensor.abs() >= 1).double().flatten(1).mean(1).unflatten(0, (len(images.prompts), -1)).mean(1)


class Judge:
    """Scores the validation images of a run; holds the teacher's images and the feature network."""

    def __init__(self, validation: Validation, teacher: Images, extractor: FeatureExtractor | None, device: str):
        """teacher: its images. extractor: None chooses as `dpdmd evaluate` does.

        Raises ValueError for images that the network cannot compute features of.
        """
        self.validation, self.extractor = validation, None
        if extractor is None:
            extractor, _ = choose_extractor("auto", world_of(self._drawn(teacher)), device)
        self.extractor = extractor
        self.teacher = self._drawn(teacher)
        self.of_teacher = validation_scores(self.teacher, self.teacher).values
        self.judged_by = f"{extractor.name if extractor else 'the model alone'}, {validation.identity}"

    def row(self, step: int, student: Images, live: Images | None) -> dict[str, Any]:
        """The row of a validation: "validation/quality" and so on of the student as a finished run has it.

        "validation/live_...": of its weights before averaging; "validation/teacher_...": of the teacher; "alarms": of
        the student; "judged_by": the feature network and the validation images.
        """
        found = validation_scores(self._drawn(student), self.teacher)
        by_prefix = {"": found.values, "teacher_": self.of_teacher}
        if live is not None:
            by_prefix["live_"] = validation_scores(self._drawn(live), self.teacher).values
        row = {f"validation/{prefix}{key}": v for prefix, values in by_prefix.items() for key, v in values.items()}
        for of_itself in RELATIVE:
            row.pop(f"validation/teacher_{of_itself}", None)
        return row | {"alarms": alarms(found, step), "judged_by": self.judged_by}

    def _drawn(self, images: Images) -> Drawn:
        """Images with the precision of a PNG (8 bits), and their features."""
        pixels = to_uint8(images.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = extract_features(self.extractor, pixels) if self.extractor else None
        prompts, num_seeds = self.validation.prompts, self.validation.num_seeds
        seeds = {prompt: list(range(num_seeds)) for prompt in prompts}
        files = [Path(str(i)) for i in range(len(pixels))]
        return Drawn(Path(), prompts, seeds, files, pixels, images.latents, features)


def alarms(found: ValidationScores, step: int) -> dict[str, str]:
    """{"collapse" or "saturation": message} for limits exceeded even at the better end of the interval over prompts.

    A single prompt has no interval and raises no alarm.
    """
    found_alarms = {}
    share, excess = found.share, found.excess
    if share is not None and share.high is not None and share.high < COLLAPSED:
        found_alarms["collapse"] = (
            f"collapse: samples of one prompt have become alike: {share.value:.2f} of the teacher's diversity at "
            f"update {step} (95 % interval over prompts {share.low:.2f} to {share.high:.2f}). A larger "
            "objective.anchor.weight or a lower train.learning_rate keeps more of it"
        )
    if excess is not None and excess.low is not None and excess.low > OVERSATURATED:
        found_alarms["saturation"] = (
            f"saturation: {found.values['saturation']:.2f} of all colour values are at either end of the scale at "
            f"update {step}, {excess.value:.2f} more than the teacher's. A lower model.guidance_scale or a lower "
            "train.learning_rate helps"
        )
    return found_alarms


def too_slow(rows: list[dict[str, Any]], every: int) -> str | None:
    """A warning when validation takes more than MOST_TIME of the training time, not counting what happens once.

    rows: of validation/scores.jsonl.
    """
    seconds, once = _seconds(rows)
    if not rows or seconds - once <= MOST_TIME * rows[-1]["seconds"]:
        return None
    return (
        f"{time_in_words(rows)}. To reduce it, raise validation.every ({every}), take fewer prompts or lower "
        "validation.num_seeds"
    )


def time_in_words(rows: list[dict[str, Any]]) -> str:
    """The time of validation so far, compared with training; rows: at least one of validation/scores.jsonl."""
    (seconds, once), training = _seconds(rows), rows[-1]["seconds"]
    return (
        f"validation took {seconds:.1f} s, training {training:.1f} s: {once:.1f} s once, then "
        f"{100 * (seconds - once) / training:.1f} %"
    )


def _seconds(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of validation: in total, and for what happens once."""
    return sum(row["validation/seconds"] for row in rows), sum(row.get("once_seconds", 0.0) for row in rows)


def in_words(row: dict[str, Any]) -> str:
    """The student's scores of a row in one line."""
    names = {"quality": "quality", "diversity_share": "share of the teacher's diversity", "saturation": "saturated"}
    return ", ".join(
        f"{name} {row[f'validation/{key}']:.2f}" for key, name in names.items() if f"validation/{key}" in row
    )
