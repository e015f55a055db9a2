"""Features of a folder of images, cached on disk."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from dpdmd.evaluate.samples import Samples
from dpdmd.store.cache import through_cache
from dpdmd.store.digests import key_of
from dpdmd.store.png import read_png
from dpdmd.vision.features import FeatureExtractor, Features, feature_rows, joined_features


def folder_features(
    extractor: FeatureExtractor, samples: Samples, *, cache: Path | None = None, batch_size: int = 32
) -> Features:
    """Features of a folder's images, in their order; with the folder `cache` none is computed twice."""
    identity = extractor.identity
    if identity is None or cache is None:
        cache, keys = None, [str(number) for number in range(len(samples.files))]
    else:
        keys = [key_of(identity, h) for h in samples.hashes]

    def compute(numbers: list[int]) -> Iterator[dict[str, Tensor]]:
        return feature_rows(extractor, (read_png(samples.files[number]) for number in numbers), batch_size)

    return joined_features(through_cache(cache, keys, compute, what=f"features of {samples.folder}"))
