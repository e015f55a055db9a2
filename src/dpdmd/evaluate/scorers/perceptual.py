"""Perceptual diversity: the mean LPIPS-type distance between the images of a prompt."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dpdmd.evaluate.intervals import mean_estimate, ratio_estimate
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scores import Scores
from dpdmd.store.cache import through_cache
from dpdmd.store.digests import key_of
from dpdmd.store.png import read_png
from dpdmd.vision.perceptual import SCENES, PerceptualDistance, perceptual_distance
from dpdmd.vision.preprocessing import resized
from dpdmd.vision.weights import weights_digest

# LPIPS was fitted on patches of 64 pixels and is usually reported at 256. Larger images are reduced to this size, which
# also bounds memory.
LONGEST_SIDE = 256


def perceptual_scores(
    samples: Samples, teacher: Samples | None, backbone: str, *, device: str = "cpu", cache: Path | None = None
) -> Scores:
    """ "perceptual_diversity", per prompt and averaged, and its share of the teacher's.

        L = 2 / (R (R - 1)) sum_{i < j} d(x_i, x_j),   d the distance of `dpdmd.vision.perceptual`

    backbone: "scenes", a .safetensors file of LPIPS weights, or a vision model, as `PerceptualDistance` takes it.
    Images whose longer side exceeds 256 pixels are reduced to that.
    Raises ValueError for a backbone that cannot be loaded or cannot see images of this size.
    """
    if samples.images_per_prompt < 2:
        few = f"it needs at least 2 images per prompt, got {samples.images_per_prompt}"
        return Scores(skipped={"perceptual diversity": few})
    distance = distance_for(samples, backbone)
    digest = None if backbone == SCENES else weights_digest(backbone)
    ours = _by_prompt(samples, distance, digest, device, cache)
    estimates, rows = {"perceptual_diversity": mean_estimate(ours)}, [{"perceptual_diversity": v} for v in ours]
    if teacher is not None:
        theirs = _by_prompt(teacher, distance, digest, device, cache)
        for row, value in zip(rows, theirs, strict=True):
            row["reference_perceptual_diversity"] = value
        if sum(theirs) > 0:
            estimates["perceptual_diversity_share"] = ratio_estimate(ours, theirs)
    return Scores(estimates, per_prompt=rows, sources={"perceptual": {"name": backbone, "sha256": digest}})


def distance_for(samples: Samples, backbone: str) -> PerceptualDistance:
    """The distance for images of this size. Raises ValueError like `perceptual_scores`, before weights are read."""
    height, width = _image(samples.files[0]).shape[-2:]
    return PerceptualDistance(backbone, (height, width))


def _by_prompt(
    samples: Samples, distance: PerceptualDistance, digest: str | None, device: str, cache: Path | None
) -> list[float]:
    """The mean distance over the pairs of each prompt's images."""
    num, network = samples.images_per_prompt, distance.network.to(device)
    weights = cast("Sequence[Tensor] | None", network.weights)

    def compute(numbers: list[int]) -> Iterator[dict[str, Tensor]]:
        for number in numbers:
            with torch.no_grad():
                files = samples.files[number * num : (number + 1) * num]
                maps = [network(_image(path).to(device)[None]) for path in files]
                pairs = [float(perceptual_distance(a, b, weights)) for a, b in combinations(maps, 2)]
            yield {"distance": torch.tensor(sum(pairs) / len(pairs), dtype=torch.float64)}

    if digest is None or cache is None:
        cache, keys = None, [str(i) for i in range(len(samples.prompts))]
    else:
        hashes = samples.hashes
        keys = [key_of("perceptual 1", digest, *hashes[i * num : (i + 1) * num]) for i in range(len(samples.prompts))]
    rows = through_cache(cache, keys, compute, what=f"distances in {samples.folder}")
    return [float(row["distance"]) for row in rows]


def _image(path: Path) -> Tensor:
    """An image (3, H, W) in [-1, 1], reduced where it is large."""
    image = read_png(path)
    height, width = image.shape[-2:]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return image
    return 2 * resized(image[None], (round(height * scale), round(width * scale)))[0] - 1
