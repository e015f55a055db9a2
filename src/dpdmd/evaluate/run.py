"""Score folders of images: everything that is measured, as one dict of plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpdmd.evaluate.folder_features import folder_features
from dpdmd.evaluate.samples import Samples, read_reference, samples_by_size
from dpdmd.evaluate.scorers.features import feature_scores
from dpdmd.evaluate.scorers.perceptual import distance_for, perceptual_scores
from dpdmd.evaluate.scorers.quality import quality_scores
from dpdmd.evaluate.scorers.saturation import saturation
from dpdmd.evaluate.scorers.world import world_of, world_scores
from dpdmd.evaluate.scores import Scores, together
from dpdmd.store.files import require_writable, write_json
from dpdmd.store.pictures import Size, size_name
from dpdmd.store.provenance import versions
from dpdmd.vision.features import DEFAULT_MODEL, OF_WORLDS, FeatureExtractor, Features, load_extractor
from dpdmd.vision.quality.load import load_quality, quality_weights, require_known
from dpdmd.world.base import World


@dataclass(frozen=True)
class _Group:
    """The images of one size of a folder, their reference, and the built-in world that both are of."""

    size: Size
    samples: Samples
    teacher: Samples | None
    world: World | None


def evaluate_folder(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    further_sizes: Sequence[tuple[str | Path, str | Path]] = (),
    features: str | Sequence[str] = "auto",
    perceptual: str | None = None,
    quality: Sequence[str] = (),
    out: str | Path | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Score the images of a folder, also against a reference: the teacher's images of the same prompts.

    Images of several sizes are scored size by size, against the reference's of the same size: the metrics are those of
    the first size, which is "image_size", and those of the others are under "further_sizes", both named HEIGHTxWIDTH.
    reference: images of the same seeds, or of other seeds, as `read_reference` chooses them; which is recorded in
    "provenance" as "reference_seeds", "same" or "other".
    further_sizes: folders of images of other sizes, each with its reference.
    features: "scenes", the folder or hub id of a transformers vision model, or "auto". "auto" is the world's own
    network for the captions of a built-in world at its size, else DINOv3 if the local hub cache has it, else nothing,
    and then the feature metrics are "skipped". The first of several networks is the main one; the metrics of the others
    are under "further_features", by name.
    perceptual: backbone of the LPIPS-type distance, as `perceptual_scores` takes it; None leaves it out.
    quality: scores of single images, each "NAME" or "NAME=WEIGHTS" as `load_quality` takes it.
    out: a JSON file to write. device: default a GPU if there is one. cache: a folder for the outputs of networks, so
    that none is computed twice.
    Returns "num_prompts", "images_per_prompt", the metrics that each scorer of `evaluate.scorers` documents,
    "intervals" over prompts, "per_prompt", "skipped" (what was left out and why) and "provenance". The same input gives
    the same output. docs/evaluation.md defines the metrics.
    Raises ValueError like `samples_by_size`, `read_reference`, `load_extractor` and `load_quality`, for two folders
    with images of one size, and OSError when `out` cannot be written.
    """
    if out is not None:
        require_writable(out)
    require_known(quality)
    groups = [group for pair in ((folder, reference), *further_sizes) for group in _groups(*pair)]
    names = [size_name(group.size) for group in groups]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the folders of further sizes must have images of other sizes, two have {repeated[0]}")
    # Report missing weights before hours of scoring, not after them.
    if perceptual is not None:
        for group in groups:
            distance_for(group.samples, perceptual)
    weights = {text: quality_weights(text) for text in quality}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cache = None if cache is None else Path(cache)
    networks = [features] if isinstance(features, str) else list(features)

    scored = [_scored(group, networks, perceptual, weights, device=device, cache=cache) for group in groups]
    metrics = scored[0]
    if len(scored) > 1:
        metrics |= {"image_size": names[0], "further_sizes": dict(zip(names[1:], scored[1:], strict=True))}
    if out is not None:
        write_json(out, metrics)
    return metrics


def _groups(folder: str | Path, reference: str | Path | None) -> list[_Group]:
    """The images of a folder by size. A folder of one size may have a reference of another."""
    sizes, groups = samples_by_size(folder), []
    for size, samples in sizes.items():
        only = size if len(sizes) > 1 else None
        teacher = read_reference(reference, samples, only) if reference is not None else None
        world = world_of(samples)
        if teacher is not None and world_of(teacher) is not world:
            world = None
        groups.append(_Group(size, samples, teacher, world))
    return groups


def _scored(
    group: _Group,
    networks: list[str],
    perceptual: str | None,
    weights: dict[str, Any],
    *,
    device: str,
    cache: Path | None,
) -> dict[str, Any]:
    """All metrics of images of one size. networks: names of feature networks; weights: those of each quality score."""
    samples, teacher = group.samples, group.teacher
    scores = [saturation(samples)]
    extractors = [choose_extractor(name, group.world, device) for name in networks]
    main, skipped = extractors[0]
    scores.append(Scores(skipped=skipped))
    by_name = {
        extractor.name: feature_scores(samples, *_features(extractor, samples, teacher, cache))
        for extractor, _ in extractors
        if extractor is not None
    }
    if main is not None:
        scores += by_name.pop(main.name)
    if perceptual is not None:
        scores.append(perceptual_scores(samples, teacher, perceptual, device=device, cache=cache))
    for text, found in weights.items():
        # The scorer has no name here, so that its memory is free before the next one is loaded.
        scores.append(quality_scores(samples, teacher, load_quality(text, device=device, weights=found), cache=cache))
    if group.world is not None:
        scores.append(world_scores(group.world, samples, teacher))
    metrics: dict[str, Any] = {"num_prompts": len(samples.prompts), "images_per_prompt": samples.images_per_prompt}
    metrics |= together(samples.prompts, scores)
    if by_name:
        metrics["further_features"] = {name: together(samples.prompts, more) for name, more in by_name.items()}
    metrics["provenance"] = _provenance([extractor for extractor, _ in extractors if extractor is not None])
    if teacher is not None:
        metrics["provenance"]["reference_seeds"] = "same" if teacher.seeds == samples.seeds else "other"
    for score in scores:
        metrics["provenance"] |= score.sources
    return metrics


def choose_extractor(
    features: str, world: World | None, device: str = "cpu"
) -> tuple[FeatureExtractor | None, dict[str, str]]:
    """The network that `features` names (see `evaluate_folder`), or None and {"feature metrics": why}.

    world: whose images they are, None: of no built-in world.

    Raises ValueError like `load_extractor`.
    """
    if features != "auto":
        return load_extractor(features, device=device), {}
    if world is not None:
        return load_extractor(world.features), {}
    try:
        return load_extractor(DEFAULT_MODEL, device=device, local_files_only=True), {}
    except ValueError:
        reason = (
            "these are not images of a built-in world, and no feature network was named; "
            "name one with --features, a folder or hub id such as facebook/dinov2-large"
        )
        return None, {"feature metrics": reason}


def _features(
    extractor: FeatureExtractor, samples: Samples, teacher: Samples | None, cache: Path | None
) -> tuple[Features, Features | None]:
    ours = folder_features(extractor, samples, cache=cache)
    return ours, None if teacher is None else folder_features(extractor, teacher, cache=cache)


def _provenance(extractors: list[FeatureExtractor]) -> dict[str, Any]:
    """Which networks were used, and with which versions; "features" is the main one's name."""
    facts: dict[str, Any] = {"features": extractors[0].name if extractors else None, "versions": versions()}
    weights = [extractor.source for extractor in extractors if extractor.name not in OF_WORLDS]
    return facts | ({"weights": weights} if weights else {})
