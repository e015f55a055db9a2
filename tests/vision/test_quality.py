"""What a folder's quality is, given the scores of its images."""

from pathlib import Path

import pytest
import torch

from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.samples import read_reference, read_samples
from dpdmd.evaluate.scorers import quality
from dpdmd.evaluate.scorers.quality import image_scores, quality_scores
from dpdmd.store.png import write_png
from dpdmd.vision.quality.base import QualityScorer
from dpdmd.vision.weights import Weights

GREYS = {"a dog": (0.2, 0.4), "a cat": (0.8, -1.0), "a cow": (-1.0, -1.0)}


class Brightness:
    """Scores the mean of an image and the length of its prompt; black is refused a score. Counts its images."""

    def __init__(self, sha256="0", version=1):
        self.seen = 0
        self.scorer = QualityScorer("brightness", self, Weights("here", Path("."), None, sha256), version)

    def __call__(self, images, prompts):
        self.seen += len(images)
        means = images.mean(dim=(1, 2, 3))
        return torch.where(means < -0.99, torch.nan, means) + torch.tensor([float(len(p)) for p in prompts])


def _folder(path, greys=GREYS):
    for prompt, values in greys.items():
        (path / prompt).mkdir(parents=True)
        for seed, value in enumerate(values):
            write_png(path / prompt / f"{seed}.png", torch.full((3, 8, 8), value))
    return path


def test_a_failure_counts_for_nothing_and_is_counted(tmp_path):
    samples = read_samples(_folder(tmp_path / "images"))
    teacher = read_reference(_folder(tmp_path / "teacher", {prompt: (0.0, 0.0) for prompt in GREYS}), samples)
    scores = quality_scores(samples, teacher, Brightness().scorer)
    rows = dict(zip(samples.prompts, scores.per_prompt, strict=True))
    assert rows["a dog"]["brightness"] == pytest.approx(5.3, abs=0.01)
    assert rows["a cat"]["brightness"] == pytest.approx(5.8, abs=0.01)
    assert rows["a cow"]["brightness"] is None
    assert scores.estimates["brightness"].value == pytest.approx((5.3 + 5.8) / 2, abs=0.01)
    assert scores.estimates["brightness"].n == 2
    assert scores.values == {"brightness_failures": 3, "reference_brightness_failures": 0}
    assert scores.estimates["reference_brightness"].value == pytest.approx(5.0, abs=0.01)
    assert scores.sources["brightness"] == {"name": "here", "revision": None, "sha256": "0"}


def test_a_missing_score_is_reported_and_not_invented(tmp_path):
    samples = read_samples(_folder(tmp_path / "images", {"a dog": (-1.0, -1.0)}))
    scores = quality_scores(samples, None, Brightness().scorer)
    assert scores.estimates == {} and scores.skipped == {"brightness": "no image got a score"}


def test_scores_are_kept_by_image_prompt_weights_and_version(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "BATCH_SIZE", 4)
    samples, cache = read_samples(_folder(tmp_path / "images")), tmp_path / "cache"
    first, again = Brightness(), Brightness()
    scores = image_scores(samples, first.scorer, cache)
    assert torch.equal(scores.nan_to_num(-9), image_scores(samples, again.scorer, cache).nan_to_num(-9))
    assert (first.seen, again.seen) == (5, 0)  # the two black images of one prompt are one
    for other in (Brightness(sha256="1"), Brightness(version=2)):
        image_scores(samples, other.scorer, cache)
        assert other.seen == 5
    renamed = read_samples(_folder(tmp_path / "renamed", {"another prompt": GREYS["a dog"]}))
    third = Brightness()
    image_scores(renamed, third.scorer, cache)
    assert third.seen == 2


def test_unknown_names_are_reported_before_anything_is_scored(tmp_path, monkeypatch):
    folder = _folder(tmp_path / "images")
    monkeypatch.setattr("dpdmd.evaluate.run.samples_by_size", lambda *_: pytest.fail("began to score"))
    with pytest.raises(ValueError, match="there is no quality score 'prettiness'"):
        evaluate_folder(folder, quality=["prettiness"])
    with pytest.raises(ValueError, match="clip_score is given twice"):
        evaluate_folder(folder, quality=["clip_score=a", "clip_score=b"])


def test_missing_weights_are_reported_before_anything_is_scored(tmp_path, monkeypatch):
    folder = _folder(tmp_path / "images")
    monkeypatch.setattr("dpdmd.evaluate.run.saturation", lambda *_: pytest.fail("began to score"))
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        evaluate_folder(folder, quality=[f"maniqa={tmp_path / 'nowhere'}"])
    with pytest.raises(ValueError, match=r"is not a readable safetensors file"):
        evaluate_folder(folder, perceptual=str(tmp_path / "lpips.safetensors"))
