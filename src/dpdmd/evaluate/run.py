"""Scoring a folder of images: everything that is measured, in one dict of plain numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpdmd.evaluate.folder_features import folder_features
from dpdmd.evaluate.samples import Samples, read_reference, read_samples
from dpdmd.evaluate.scorers.features import feature_scores
from dpdmd.evaluate.scorers.perceptual import distance_for, perceptual_scores
from dpdmd.evaluate.scorers.quality import quality_scores
from dpdmd.evaluate.scorers.saturation import saturation
from dpdmd.evaluate.scorers.scenes import is_world, scene_scores
from dpdmd.evaluate.scores import Scores, together
from dpdmd.store.files import require_writable, write_json
from dpdmd.store.provenance import versions
from dpdmd.vision.features import DEFAULT_MODEL, SCENES, FeatureExtractor, Features, load_extractor
from dpdmd.vision.quality.load import load_quality, quality_weights, require_known


def evaluate_folder(
    folder: str | Path,
    *,
    reference: str | Path | None = None,
    features: str | Sequence[str] = "auto",
    perceptual: str | None = None,
    quality: Sequence[str] = (),
    out: str | Path | None = None,
    device: str | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Score the images of a folder, and against a reference (the teacher's images for the same prompts and seeds;
    further seeds of the reference are left out).

    features: "scenes", the folder or hub id of a transformers vision model, or "auto": the built-in network for
    captions of the built-in world at 32 x 32, else DINOv3 if it is in the local hub cache, else no feature metrics,
    and the result says so under "skipped". Of several the first is the main one; what the others tell is under
    "further_features", by name. perceptual: what the LPIPS-type distance is taken by, as `perceptual_scores` has it;
    None: it is left out. quality: scores of single images, each "NAME" or "NAME=WEIGHTS" as `load_quality` takes it.
    out: JSON file to write as well. device: default a GPU if there is one. cache: a folder in which what networks made
    of an image is kept, so that it is computed once.
    Returns "num_prompts", "images_per_prompt", what each scorer of `evaluate.scorers` documents, "intervals" over
    prompts, "per_prompt" rows, "skipped" (what was left out and why) and "provenance". The same input gives the same
    output. Figures are defined in docs/evaluation.md.
    Raises ValueError like `read_samples`, `read_reference`, `load_extractor` and `load_quality`; OSError when `out`
    could not be written.
    """
    if out is not None:
        require_writable(out)
    require_known(quality)
    samples = read_samples(folder)
    teacher = read_reference(reference, samples) if reference is not None else None
    # What is missing is told before hours of scoring, not behind them.
    if perceptual is not None:
        distance_for(samples, perceptual)
    weights = {text: quality_weights(text) for text in quality}
    of_world = is_world(samples) and (teacher is None or is_world(teacher))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cache = None if cache is None else Path(cache)

    scores = [saturation(samples)]
    names = [features] if isinstance(features, str) else list(features)
    extractors = [choose_extractor(name, of_world, device) for name in names]
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
        # Without a name of its own a scorer is gone before the next one is loaded.
        scores.append(quality_scores(samples, teacher, load_quality(text, device=device, weights=found), cache=cache))
    if of_world:
        scores.append(scene_scores(samples, teacher))
    metrics = {"num_prompts": len(samples.prompts), "images_per_prompt": samples.images_per_prompt}
    metrics |= together(samples.prompts, scores)
    if by_name:
        metrics["further_features"] = {name: together(samples.prompts, more) for name, more in by_name.items()}
    metrics["provenance"] = _provenance([extractor for extractor, _ in extractors if extractor is not None])
    for score in scores:
        metrics["provenance"] |= score.sources
    if out is not None:
        write_json(out, metrics)
    return metrics


def lines(metrics: dict[str, Any]) -> list[str]:
    """Every figure with its interval, of further networks too, and what was left out: for a terminal."""
    found = _lines(metrics)
    for name, further in metrics.get("further_features", {}).items():
        found += ["", f"{name}:", *_lines(further)]
    return found


def _lines(metrics: dict[str, Any]) -> list[str]:
    found = []
    for key, value in metrics.items():
        if isinstance(value, int | float):
            bounds = metrics.get("intervals", {}).get(key)
            interval = "" if bounds is None else f"  [{bounds[0]:.4g}, {bounds[1]:.4g}]"
            found.append(f"{key:<28} {value:.4g}{interval}")
    return found + [f"left out: {what}: {why}" for what, why in metrics.get("skipped", {}).items()]


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


def _features(
    extractor: FeatureExtractor, samples: Samples, teacher: Samples | None, cache: Path | None
) -> tuple[Features, Features | None]:
    ours = folder_features(extractor, samples, cache=cache)
    return ours, None if teacher is None else folder_features(extractor, teacher, cache=cache)


def _provenance(extractors: list[FeatureExtractor]) -> dict[str, Any]:
    """Which networks were used, and with which versions; "features" is the main one's name."""
    facts: dict[str, Any] = {"features": extractors[0].name if extractors else None, "versions": versions()}
    weights = [extractor.source for extractor in extractors if extractor.name != SCENES]
    return facts | ({"weights": weights} if weights else {})
