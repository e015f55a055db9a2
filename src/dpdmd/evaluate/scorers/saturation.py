"""The share of saturated colour values in the images of a folder."""

from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scores import Scores


def saturation(samples: Samples) -> Scores:
    """ "saturation": share of colour values that are exactly 0 or 255, that is -1 or 1 after reading."""
    shares = [float((image.abs() >= 1).double().mean()) for image in samples.images()]
    return Scores(values={"saturation": sum(shares) / len(shares)})
