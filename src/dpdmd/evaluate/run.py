"""Scoring a folder of images: everything that is measured, in one dict of plain numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpdmd.evaluate.diversity import pairwise_diversity, vendi_score
from dpdmd.evaluate.features import DEFAULT_MODEL, SCENES, FeatureExtractor, extract_features, load_extractor
from dpdmd.evaluate.fidelity import frechet_distance, neighbours
from dpdmd.evaluate.intervals import Estimate, mean_estimate, ratio_estimate
from dpdmd.evaluate.manifest import ImageEntry, Manifest, read_manifest
from dpdmd.files import read_png, require_writable, write_json

if TYPE_CHECKING:
    from dpdmd.world.oracle import Reading

NUM_NEIGHBOURS = 5
NEAR = 0.2


@dataclass(frozen=True)
class Samples:
    """A folder's images in a fixed order: prompt by prompt, within a prompt by rising seed."""

    folder: Path
    prompts: list[str]
    seeds: dict[str, list[int]]
    files: list[Path]

    @property
    def images_per_prompt(self) -> int:
        return len(self.files) // len(self.prompts)

    def images(self) -> Iterator[Tensor]:
        """Each image (3, H, W) in [-1, 1], read when it is asked for."""
        return (read_png(path) for path in self.files)


@dataclass(frozen=True)
class SceneRow:
    """One prompt's images: named factors read right, named factors in all, and the mean over free factors of the
    entropy (nats) among its valid images, None with fewer than two of them."""

    num_right: int
    num_named: int
    free_entropy: float | None


def evaluate_folder(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    features: str = "auto",
    out: str | Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score the images of a folder, and against a reference (the teacher's images for the same prompts and seeds;
    further seeds of the reference are left out).

    features: "scenes", the folder or hub id of a transformers vision model, or "auto": the built-in network for
    captions of the built-in world at 32 x 32, else DINOv3 if it is in the local hub cache, else no feature metrics,
    and the result says so under "skipped". out: JSON file to write as well.
    Returns "num_prompts", "images_per_prompt", "saturation" (share of colour values that are exactly 0 or 255), from
    features "diversity", "vendi", with a reference "diversity_share", "prompts_near_reference" (share of prompts whose
    diversity is within 20 % of the reference's: a mean share of 1 may hide that some collapse and others spread),
    "frechet", "precision", "recall", "density", "coverage"; "intervals" over prompts; "per_prompt" rows; "provenance".
    For the built-in world also, from what the oracle reads, "named_accuracy", "validity", "effective_modes" (exp of the
    entropy of what a prompt leaves free, in the mean over its free factors and over prompts; of valid images),
    "effective_modes_mean" (the same over what exact sampling gives: 1 when nothing is lost), "total_variation_true",
    "_floor" and "_reference" (means over factors), each with its "..._by_factor", and "spread" per continuous factor.
    The same input gives the same output.
    Raises ValueError like `read_manifest` and `load_extractor`, when prompts have different numbers of images, and
    when the reference has other prompts or seeds; OSError when `out` could not be written.
    """
    if out is not None:
        require_writable(out)
    samples = _read_samples(folder)
    teacher = _read_samples(reference, like=samples) if reference is not None else None
    if teacher is not None:
        _require_same_keys(samples, teacher)
    is_world = _is_world(samples) and (teacher is None or _is_world(teacher))
    extractor, skipped = choose_extractor(features, is_world, device)

    metrics: dict[str, Any] = {
        "num_prompts": len(samples.prompts),
        "images_per_prompt": samples.images_per_prompt,
        "saturation": _saturation(samples),
    }
    rows = [{"prompt": prompt} for prompt in samples.prompts]
    estimates: dict[str, Estimate] = {}
    if extractor is not None:
        skipped |= _feature_part(extractor, samples, teacher, metrics, rows, estimates)
    if is_world:
        _world_part(samples, teacher, metrics, rows, estimates)
    metrics |= {key: estimate.value for key, estimate in estimates.items()}
    metrics["intervals"] = {key: e.interval for key, e in estimates.items() if e.interval is not None}
    metrics["per_prompt"] = rows
    if skipped:
        metrics["skipped"] = skipped
    metrics["provenance"] = _provenance(extractor)
    if out is not None:
        write_json(out, metrics)
    return metrics


def _read_samples(folder: str | Path, like: Samples | None = None) -> Samples:
    """The images of a folder; of the prompts and seeds of `like` where it has all of them."""
    manifest: Manifest = read_manifest(folder)
    groups = manifest.by_prompt()
    if like is not None and set(like.prompts) == set(groups):
        groups = {prompt: _seeds_of(groups[prompt], like.seeds[prompt]) for prompt in like.prompts}
    counts = {prompt: len(entries) for prompt, entries in groups.items()}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.get), max(counts, key=counts.get)
        raise ValueError(
            f"{folder}: every prompt needs the same number of images, "
            f"got {counts[few]} for {few!r} and {counts[many]} for {many!r}"
        )
    files = [Path(folder) / entry.file for entries in groups.values() for entry in entries]
    seeds = {prompt: [entry.seed for entry in entries] for prompt, entries in groups.items()}
    return Samples(Path(folder), list(groups), seeds, files)


def _seeds_of(entries: list[ImageEntry], seeds: list[int]) -> list[ImageEntry]:
    wanted = [entry for entry in entries if entry.seed in seeds]
    return wanted if len(wanted) == len(seeds) else entries


def _require_same_keys(samples: Samples, reference: Samples) -> None:
    ours, theirs = set(samples.prompts), set(reference.prompts)
    for missing, where in ((ours - theirs, reference.folder), (theirs - ours, samples.folder)):
        if missing:
            raise ValueError(
                f"the reference must have the same prompts: {len(missing)} missing in {where}, such as {min(missing)!r}"
            )
    for prompt in samples.prompts:
        if samples.seeds[prompt] != reference.seeds[prompt]:
            raise ValueError(
                f"the reference must have the same seeds: for {prompt!r} {samples.folder} has "
                f"{samples.seeds[prompt]}, {reference.folder} has {reference.seeds[prompt]}"
            )


@cache
def _captions() -> frozenset[str]:
    from dpdmd.world.captions import all_captions

    return frozenset(all_captions())


def _is_world(samples: Samples) -> bool:
    """Whether every prompt is a caption of the built-in world and every image has its size."""
    from dpdmd.world.scenes import IMAGE_SIZE

    if not _captions().issuperset(samples.prompts):
        return False
    return all(image.shape == (3, IMAGE_SIZE, IMAGE_SIZE) for image in samples.images())


def choose_extractor(
    features: str, is_world: bool, device: str = "cpu"
) -> tuple[FeatureExtractor | None, dict[str, str]]:
    """What `features` names (see `evaluate_folder`), or None and why. Raises ValueError like `load_extractor`."""
    if features != "auto":
        return load_extractor(features, device=device), {}
    if is_world:
        return load_extractor(SCENES), {}
    try:
        return load_extractor(DEFAULT_MODEL, device=device, local_files_only=True), {}
    except ValueError:
        reason = (
            "these are not images of the built-in world, and no feature network was named; "
            "name one with --features, a folder or hub id such as facebook/dinov2-large"
        )
        return None, {"feature metrics": reason}


def _saturation(samples: Samples) -> float:
    """Share of colour values that are exactly 0 or 255, that is -1 or 1 after reading."""
    shares = [float((image.abs() >= 1).double().mean()) for image in samples.images()]
    return sum(shares) / len(shares)


def _feature_part(
    extractor: FeatureExtractor,
    samples: Samples,
    teacher: Samples | None,
    metrics: dict[str, Any],
    rows: list[dict[str, Any]],
    estimates: dict[str, Estimate],
) -> dict[str, str]:
    """Add what features tell; returns what had to be left out and why."""
    if len(samples.files) < 2 or samples.images_per_prompt < 2:
        return {"feature metrics": f"they need at least 2 images per prompt, got {samples.images_per_prompt}"}
    flat = extract_features(extractor, samples.images())
    grouped = flat.reshape(len(samples.prompts), samples.images_per_prompt, -1)
    diversity, vendi = pairwise_diversity(grouped).tolist(), vendi_score(grouped).tolist()
    for row, value, score in zip(rows, diversity, vendi, strict=True):
        row |= {"diversity": value, "vendi": score}
    estimates["diversity"], estimates["vendi"] = mean_estimate(diversity), mean_estimate(vendi)
    if teacher is None:
        return {}
    flat_teacher = extract_features(extractor, teacher.images())
    of_teacher = pairwise_diversity(flat_teacher.reshape(grouped.shape)).tolist()
    for row, value in zip(rows, of_teacher, strict=True):
        row["reference_diversity"] = value
    estimates["diversity_share"] = ratio_estimate(diversity, of_teacher)
    near = [abs(ours - theirs) <= NEAR * theirs for ours, theirs in zip(diversity, of_teacher, strict=True)]
    estimates["prompts_near_reference"] = mean_estimate(list(map(float, near)))
    frechet = frechet_distance(flat, flat_teacher)
    metrics |= {"frechet": frechet.value, "frechet_reliable": frechet.reliable}
    if len(flat) > NUM_NEIGHBOURS:
        metrics |= vars(neighbours(flat, flat_teacher, num_neighbours=NUM_NEIGHBOURS))
    return {}


def _world_part(
    samples: Samples,
    teacher: Samples | None,
    metrics: dict[str, Any],
    rows: list[dict[str, Any]],
    estimates: dict[str, Estimate],
) -> None:
    """Add the exact metrics of the built-in world: the overall figures, and each figure per factor."""
    from dpdmd.world.metrics import scene_metrics
    from dpdmd.world.oracle import read_scenes

    num = samples.images_per_prompt
    repeated = [prompt for prompt in samples.prompts for _ in range(num)]
    reading = read_scenes(torch.stack(list(samples.images())))
    reference = None if teacher is None else read_scenes(torch.stack(list(teacher.images())))
    exact = scene_metrics(repeated, reading, reference=reference)
    for key in ("total_variation_true", "total_variation_floor", "total_variation_reference"):
        if key in exact:
            by_factor = [value for value in exact[key].values() if value is not None]
            metrics[key] = sum(by_factor) / len(by_factor) if by_factor else None
            metrics[f"{key}_by_factor"] = exact[key]
    metrics |= {key: exact[key] for key in ("named_accuracy_by_factor", "spread", "spread_true")}
    metrics["effective_modes_by_factor"] = exact["effective_modes"]
    metrics["effective_modes_exact_by_factor"] = exact["effective_modes_exact"]
    metrics["effective_modes_mean"] = exact["effective_modes_mean"]

    right, named, free = [], [], []
    for i, row in enumerate(rows):
        of_prompt = _scene_row(row["prompt"], reading, slice(i * num, (i + 1) * num))
        right.append(of_prompt.num_right)
        named.append(of_prompt.num_named)
        free.append(of_prompt.free_entropy)
        row["named_accuracy"] = of_prompt.num_right / of_prompt.num_named
        row["validity"] = float(reading.valid[i * num : (i + 1) * num].double().mean())
        row["effective_modes"] = None if of_prompt.free_entropy is None else math.exp(of_prompt.free_entropy)
    estimates["named_accuracy"] = ratio_estimate(right, named)
    estimates["validity"] = mean_estimate([row["validity"] for row in rows])
    free = [value for value in free if value is not None]
    if free:
        estimates["effective_modes"] = _exponential(mean_estimate(free))


def _scene_row(prompt: str, reading: "Reading", rows: slice) -> SceneRow:
    from dpdmd.world.captions import named_factors
    from dpdmd.world.metrics import DEPENDS_ON, entropy
    from dpdmd.world.scenes import DISCRETE_FACTORS

    named = named_factors(prompt)
    valid = reading.valid[rows]
    right, entropies = 0, []
    for factor, values in DISCRETE_FACTORS.items():
        read = reading.scenes.discrete[factor][rows]
        if factor in named:
            right += int((read == values.index(named[factor])).sum())
        elif factor in DEPENDS_ON and int(valid.sum()) >= 2:
            entropies.append(float(entropy(torch.bincount(read[valid], minlength=len(values)))))
    return SceneRow(right, len(named) * len(valid), sum(entropies) / len(entropies) if entropies else None)


def _exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate; percentiles follow any rising function."""
    low, high = (None if bound is None else math.exp(bound) for bound in (estimate.low, estimate.high))
    return Estimate(math.exp(estimate.value), low, high, estimate.n)


def _provenance(extractor: FeatureExtractor | None) -> dict[str, Any]:
    packages = ("dpdmd", "torch") + (("transformers",) if extractor and extractor.name != SCENES else ())
    return {"features": extractor.name if extractor else None, "versions": {name: _version(name) for name in packages}}


def _version(package: str) -> str:
    if package == "torch":
        return torch.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
