"""Quality of single images, per prompt and averaged."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.evaluate.intervals import mean_estimate
from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scores import Scores
from dpdmd.store.cache import batches, through_cache
from dpdmd.store.digests import key_of
from dpdmd.store.png import read_png
from dpdmd.vision.quality.base import QualityScorer

BATCH_SIZE = 16


def quality_scores(
    samples: Samples, teacher: Samples | None, scorer: QualityScorer, *, cache: Path | None = None
) -> Scores:
    """The score called `scorer.name`: the mean over prompts of the mean over a prompt's images.

    "reference_..." is the score of the teacher's images. Images without a score are left out of the means;
    "..._failures" is their number. cache: a folder that keeps the scores.
    """
    name = scorer.name
    estimates, counts, rows = {}, {}, [{} for _ in samples.prompts]
    for key, images in ((name, samples), (f"reference_{name}", teacher)):
        if images is None:
            continue
        values = image_scores(images, scorer, cache).unflatten(0, (len(images.prompts), -1))
        counts[f"{key}_failures"] = int(values.isnan().sum())
        means = [None if math.isnan(mean) else mean for mean in values.nanmean(dim=1).tolist()]
        for row, mean in zip(rows, means, strict=True):
            row[key] = mean
        known = [mean for mean in means if mean is not None]
        if known:
            estimates[key] = mean_estimate(known)
    skipped = {} if name in estimates else {name: "no image got a score"}
    return Scores(estimates, counts, rows, skipped, {name: scorer.weights.facts()})


def image_scores(samples: Samples, scorer: QualityScorer, cache: Path | None) -> Tensor:
    """(N,) fp64, the score of each image, NaN where there is none."""

    def compute(numbers: list[int]) -> Iterator[dict[str, Tensor]]:
        items = ((read_png(samples.files[number]), prompts[number]) for number in numbers)
        for batch in batches(items, BATCH_SIZE, alike=lambda first, other: first[0].shape == other[0].shape):
            images, texts = zip(*batch, strict=True)
            for value in scorer.score(torch.stack(images), list(texts)):
                yield {"score": value.detach().float().cpu().clone()}

    prompts = samples.repeated_prompts
    identity = (scorer.name, str(scorer.version), scorer.weights.sha256)
    keys = [str(number) for number in range(len(prompts))]
    if cache is not None:
        keys = [key_of(*identity, *parts) for parts in zip(samples.hashes, prompts, strict=True)]
    rows = through_cache(cache, keys, compute, what=f"{scorer.name} of {samples.folder}")
    return torch.stack([row["score"] for row in rows]).double()
