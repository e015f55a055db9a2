import json

import pytest
import torch

from dpdmd.evaluate.diversity import pairwise_diversity
from dpdmd.evaluate.in_words import lines
from dpdmd.evaluate.manifest import ImageEntry, read_manifest, write_manifest
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.method.randomness import generator
from dpdmd.store.png import read_png, write_png
from dpdmd.vision.perceptual import PerceptualDistance
from dpdmd.world.captions import named_factors
from dpdmd.world.features import load_scene_features
from dpdmd.world.scenes import DISCRETE_FACTORS, render, sample_scenes

PROMPTS = ["a red circle", "one blue cross", "a small green square"]


def _true_images(prompt, num):
    """Images of scenes drawn from the world's distribution given what the prompt names."""
    scenes = sample_scenes(8000, generator(0, prompt))
    keep = torch.ones(8000, dtype=torch.bool)
    for factor, value in named_factors(prompt).items():
        keep &= scenes.discrete[factor] == DISCRETE_FACTORS[factor].index(value)
    return render(scenes[keep.nonzero().squeeze(1)[:num]])


def _folder(path, images, first_seed=0):
    entries = []
    for i, (prompt, batch) in enumerate(images.items()):
        for j, image in enumerate(batch):
            file = f"{i}-{j}.png"
            write_png(path / file, image)
            entries.append(ImageEntry(prompt, first_seed + j, file))
    write_manifest(path, entries)
    return path


def _network(folder):
    """A random vision model that sees images of any size."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")
def truth():
    return {prompt: _true_images(prompt, 9) for prompt in PROMPTS}


@pytest.fixture
def teacher(tmp_path, truth):
    return _folder(tmp_path / "teacher", truth)


@pytest.fixture
def collapsed(tmp_path, truth):
    """Three different images per prompt, each three times."""
    return _folder(tmp_path / "collapsed", {p: images[:3].repeat(3, 1, 1, 1) for p, images in truth.items()})


def test_a_folder_against_itself_keeps_everything(teacher):
    metrics = evaluate_folder(teacher, reference=teacher)
    assert metrics["diversity_share"] == pytest.approx(1.0)
    assert metrics["intervals"]["diversity_share"] == pytest.approx([1.0, 1.0])
    assert metrics["prompts_near_reference"] == 1.0
    for key in ("vendi_share", "spatial_diversity_share", "diversity_share_worst_tenth"):
        assert metrics[key] == pytest.approx(1.0)
    # Unbiased: of a set with itself it is below 0, by what each image's own pair would have added.
    assert metrics["kid"] < 0
    assert metrics["frechet"] == pytest.approx(0.0, abs=1e-6) and not metrics["frechet_reliable"]
    assert (metrics["precision"], metrics["recall"], metrics["coverage"]) == (1.0, 1.0, 1.0)
    assert (metrics["num_prompts"], metrics["images_per_prompt"], metrics["saturation"]) == (3, 9, 0.0)
    assert metrics["provenance"]["features"] == "scenes" and "skipped" not in metrics


def test_a_collapsed_folder_loses_diversity_by_the_known_share(teacher, collapsed, truth):
    metrics = evaluate_folder(collapsed, reference=teacher)
    network = load_scene_features()
    # What a PNG keeps differs from the rendering by 1 / 255 at most.
    features = {prompt: network(images) for prompt, images in truth.items()}
    ours = torch.stack([pairwise_diversity(f[None, :3].repeat(1, 3, 1)) for f in features.values()])
    theirs = torch.stack([pairwise_diversity(f[None]) for f in features.values()])
    assert metrics["diversity"] == pytest.approx(float(ours.mean()), rel=0.02)
    assert metrics["diversity_share"] == pytest.approx(float(ours.sum() / theirs.sum()), rel=0.02)
    low, high = metrics["intervals"]["diversity_share"]
    assert low <= metrics["diversity_share"] <= high
    assert [row["prompt"] for row in metrics["per_prompt"]] == PROMPTS
    assert all(row["vendi"] < 3.001 for row in metrics["per_prompt"])


def test_all_images_of_a_prompt_alike_have_no_diversity(teacher, truth, tmp_path):
    same = _folder(tmp_path / "same", {prompt: images[:1].repeat(9, 1, 1, 1) for prompt, images in truth.items()})
    metrics = evaluate_folder(same, reference=teacher)
    for key in ("diversity", "spatial_diversity", "diversity_share", "spatial_diversity_share"):
        assert metrics[key] == pytest.approx(0.0, abs=1e-12)
    assert metrics["vendi"] == pytest.approx(1.0) and metrics["prompts_near_reference"] == 0.0


def test_the_prompts_that_lost_most_are_listed_first(teacher, truth, tmp_path):
    lost, *others = PROMPTS
    images = {lost: truth[lost][:3].repeat(3, 1, 1, 1)} | {prompt: truth[prompt] for prompt in others}
    metrics = evaluate_folder(_folder(tmp_path / "one", images), reference=teacher)
    worst = metrics["worst_prompts"]
    assert worst[0]["prompt"] == lost and len(worst) == 3
    # A tenth of three prompts is one.
    assert metrics["diversity_share_worst_tenth"] == pytest.approx(worst[0]["diversity_share"])
    assert worst[0]["diversity_share"] == pytest.approx(worst[0]["diversity"] / worst[0]["reference_diversity"])
    assert worst[0]["diversity_share"] < metrics["diversity_share"] < 1


def test_further_networks_give_the_same_metrics_under_their_names(teacher, collapsed, tmp_path):
    name, cache = _network(tmp_path / "net"), tmp_path / "cache"
    both = evaluate_folder(collapsed, reference=teacher, features=["scenes", name], cache=cache)
    alone = evaluate_folder(collapsed, reference=teacher, features=name, cache=cache)
    first = evaluate_folder(collapsed, reference=teacher)
    further = both.pop("further_features")[name]
    # The world's images once as a teacher's and once as a student's: 27 of the one, of which 9 are the other's.
    assert len(list(cache.glob("*/*.safetensors"))) == 27
    assert {key: both[key] for key in first if key != "provenance"} == {
        key: first[key] for key in first if key != "provenance"
    }
    assert further["diversity"] == alone["diversity"] < alone["diversity"] / alone["diversity_share"]
    assert further["intervals"]["diversity"] == alone["intervals"]["diversity"]
    assert both["provenance"]["weights"] == alone["provenance"]["weights"]
    assert both["provenance"]["weights"][0]["name"] == name


def test_perceptual_diversity_is_the_mean_distance_over_pairs(collapsed, teacher, truth, tmp_path):
    metrics = evaluate_folder(collapsed, reference=teacher, perceptual="scenes")
    distance = PerceptualDistance("scenes", (32, 32))
    images = truth[PROMPTS[0]]
    # Three images, each three times: of 36 pairs 27 are of different ones, 9 of each two.
    expected = 9 * sum(float(distance(images[i : i + 1], images[j : j + 1])) for i, j in ((0, 1), (0, 2), (1, 2))) / 36
    row = metrics["per_prompt"][0]
    assert row["perceptual_diversity"] == pytest.approx(expected, rel=0.02)  # what a PNG keeps
    assert 0 < metrics["perceptual_diversity_share"] < 1
    assert evaluate_folder(teacher, reference=teacher, perceptual="scenes")["perceptual_diversity_share"] == 1
    same = _folder(tmp_path / "same", {prompt: images[:1].repeat(9, 1, 1, 1) for prompt, images in truth.items()})
    assert evaluate_folder(same, perceptual="scenes")["perceptual_diversity"] == 0


def test_a_prompt_that_collapsed_is_not_near_the_reference(teacher, truth, tmp_path):
    collapsed, *others = PROMPTS
    images = {collapsed: truth[collapsed][:1].repeat(9, 1, 1, 1)} | {prompt: truth[prompt] for prompt in others}
    metrics = evaluate_folder(_folder(tmp_path / "one", images), reference=teacher)
    assert metrics["prompts_near_reference"] == pytest.approx(2 / 3)


def test_the_same_folder_gives_the_same_file_whatever_the_order_of_its_list(teacher, collapsed, tmp_path):
    evaluate_folder(collapsed, reference=teacher, out=tmp_path / "one.json")
    manifest = json.loads((teacher / "manifest.json").read_text())
    manifest["images"].reverse()
    (teacher / "manifest.json").write_text(json.dumps(manifest))
    metrics = evaluate_folder(collapsed, reference=teacher, out=tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert json.loads((tmp_path / "two.json").read_text()) == metrics


def test_a_reference_of_other_prompts_or_of_some_of_the_seeds_is_refused(teacher, truth, tmp_path):
    other = _folder(tmp_path / "fewer", dict(list(truth.items())[:2]))
    with pytest.raises(ValueError, match=r"same prompts: 1 missing in .*fewer, such as 'a small green square'"):
        evaluate_folder(teacher, reference=other)
    with pytest.raises(ValueError, match=r"same prompts: 1 missing in .*fewer"):
        evaluate_folder(other, reference=teacher)
    shifted = _folder(tmp_path / "shifted", truth, first_seed=1)
    with pytest.raises(ValueError, match=r"all of the seeds or none of them: for 'a red circle'"):
        evaluate_folder(teacher, reference=shifted)


def test_a_reference_may_have_other_seeds_if_it_has_as_many(teacher, truth, tmp_path):
    """The same images as other seeds: nothing is compared image by image, so that all metrics are the same."""
    apart = _folder(tmp_path / "apart", truth, first_seed=1000)
    same, other = evaluate_folder(teacher, reference=teacher), evaluate_folder(teacher, reference=apart)
    assert (same["provenance"].pop("reference_seeds"), other["provenance"].pop("reference_seeds")) == ("same", "other")
    assert same == other
    more = {prompt: torch.cat([images, images[:2]]) for prompt, images in truth.items()}
    assert evaluate_folder(teacher, reference=_folder(tmp_path / "more", more, first_seed=1000))["frechet"] == 0.0
    few = _folder(tmp_path / "few", {prompt: images[:4] for prompt, images in truth.items()}, first_seed=1000)
    with pytest.raises(ValueError, match=r"at least as many images: for 'a red circle' .* has 9, .* has 4 of other"):
        evaluate_folder(teacher, reference=few)


def test_further_seeds_of_the_reference_are_left_out(teacher, truth, tmp_path):
    fewer = _folder(tmp_path / "fewer", {prompt: images[2:6] for prompt, images in truth.items()}, first_seed=2)
    metrics = evaluate_folder(fewer, reference=teacher)
    assert metrics["diversity_share"] == pytest.approx(1.0) and metrics["frechet"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"all of the seeds or none of them: for 'a red circle'"):
        evaluate_folder(teacher, reference=fewer)


def test_unequal_numbers_of_images_are_refused(truth, tmp_path):
    images = {PROMPTS[0]: truth[PROMPTS[0]], PROMPTS[1]: truth[PROMPTS[1]][:4]}
    with pytest.raises(ValueError, match=r"got 4 for 'one blue cross' and 9 for 'a red circle'"):
        evaluate_folder(_folder(tmp_path / "uneven", images))


def test_saturation_counts_values_at_the_ends(tmp_path):
    image = torch.zeros(3, 10, 10)
    image[0, :5] = 1.0
    image[1, :1] = -3.0
    folder = _folder(tmp_path / "bright", {"a photo of a dog": image.expand(2, 3, 10, 10)})
    assert evaluate_folder(folder)["saturation"] == pytest.approx(60 / 300)


def test_without_a_feature_network_skipped_metrics_of_other_images_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("dpdmd.evaluate.run.DEFAULT_MODEL", "nobody/has-this-in-the-cache")
    folder = _folder(tmp_path / "photos", {"a photo of a dog": torch.zeros(2, 3, 48, 48)})
    metrics = evaluate_folder(folder)
    assert "diversity" not in metrics and "named_accuracy" not in metrics
    assert "name one with --features" in metrics["skipped"]["feature metrics"]


def test_with_one_image_per_prompt_skipped_metrics_are_listed(truth, tmp_path):
    metrics = evaluate_folder(_folder(tmp_path / "single", {p: images[:1] for p, images in truth.items()}))
    assert "at least 2 images per prompt, got 1" in metrics["skipped"]["feature metrics"]
    assert "diversity" not in metrics


def test_exact_metrics_see_what_a_collapsed_folder_lost(teacher, collapsed, truth):
    full, lost = evaluate_folder(teacher, reference=teacher), evaluate_folder(collapsed, reference=teacher)
    for metrics in (full, lost):
        assert metrics["named_accuracy"] == metrics["validity"] == 1.0
        assert metrics["intervals"]["named_accuracy"] == [1.0, 1.0]
    assert lost["effective_modes"] < full["effective_modes"]
    assert full["total_variation_reference"] == 0.0 < lost["total_variation_reference"]
    low, high = lost["intervals"]["effective_modes"]
    assert 1.0 <= low <= lost["effective_modes"] <= high


def test_effective_modes_are_the_geometric_mean_over_the_factors(tmp_path, truth):
    # Both prompts leave background, size and side free, so the mean over prompts and the mean over factors commute.
    images = {prompt: truth[prompt] for prompt in PROMPTS[:2]}
    metrics = evaluate_folder(_folder(tmp_path / "two", images))
    by_factor = [value for value in metrics["effective_modes_by_factor"].values() if value is not None]
    assert len(by_factor) == 3
    # Only a factor whose mean estimate is clipped at its number of values may make this smaller.
    assert torch.tensor(by_factor).log().mean().exp() == pytest.approx(metrics["effective_modes"], rel=0.02)


def test_images_of_the_wrong_prompt_and_gray_ones_count_as_such(tmp_path, truth):
    images = {PROMPTS[0]: truth[PROMPTS[1]], PROMPTS[1]: torch.zeros(9, 3, 32, 32)}
    metrics = evaluate_folder(_folder(tmp_path / "wrong", images))
    rows = {row["prompt"]: row for row in metrics["per_prompt"]}
    assert rows[PROMPTS[0]]["named_accuracy"] == 0.0 and rows[PROMPTS[0]]["validity"] == 1.0
    assert rows[PROMPTS[1]]["validity"] == 0.0 and rows[PROMPTS[1]]["effective_modes"] is None
    assert metrics["validity"] == 0.5


def test_images_of_two_sizes_are_scored_as_two_folders_would_be(teacher, truth, tmp_path):
    """The second size is the first one's images without their outer rows, of seeds of its own."""
    network = _network(tmp_path / "net")
    folders = {}
    for name, images in (("teacher", truth), ("student", {p: i[:3].repeat(3, 1, 1, 1) for p, i in truth.items()})):
        wide = {prompt: own[:4, :, 4:-4] for prompt, own in images.items()}
        alone = _folder(tmp_path / name / "alone", images), _folder(tmp_path / name / "wide", wide, first_seed=100)
        entries = []
        for part in alone:
            for entry in read_manifest(part).images:
                write_png(tmp_path / name / f"{part.name}-{entry.file}", read_png(part / entry.file))
                entries.append(ImageEntry(entry.prompt, entry.seed, f"{part.name}-{entry.file}"))
        write_manifest(tmp_path / name, entries)
        folders[name] = alone
    mixed = evaluate_folder(tmp_path / "student", reference=tmp_path / "teacher", features=network)
    (first, wide), (of_teacher, wide_of_teacher) = folders["student"], folders["teacher"]
    pairs = [(wide, wide_of_teacher)]
    paired = evaluate_folder(first, reference=of_teacher, further_sizes=pairs, features=network)
    assert mixed == paired
    assert mixed.pop("image_size") == "32x32" and set(mixed["further_sizes"]) == {"24x32"}
    assert mixed.pop("further_sizes")["24x32"] == evaluate_folder(wide, reference=wide_of_teacher, features=network)
    assert mixed == evaluate_folder(first, reference=of_teacher, features=network)
    printed = "\n".join(lines(paired))
    assert printed.startswith("images of 2 sizes (height x width), each scored by itself")
    assert "32x32 pixels: 3 prompts, 9 images each" in printed and "24x32 pixels: 3 prompts, 4 images each" in printed


def test_sizes_that_cannot_be_compared_are_refused(truth, tmp_path):
    wide = {prompt: images[:, :, 4:-4] for prompt, images in truth.items()}
    small = _folder(tmp_path / "small", truth)
    with pytest.raises(ValueError, match="must have images of other sizes, two have 32x32"):
        evaluate_folder(small, further_sizes=[(small, small)])
    lost = dict(wide)
    lost[PROMPTS[2]] = truth[PROMPTS[2]]
    mixed = _folder(tmp_path / "mixed", lost)
    with pytest.raises(ValueError, match=r"has some of 24x32 pixels .* has none"):
        evaluate_folder(mixed, reference=small)
    (tmp_path / "mixed" / "1-0.png").unlink()
    write_png(tmp_path / "mixed" / "1-0.png", truth[PROMPTS[1]][0])
    with pytest.raises(ValueError, match="same number of images of 24x32 pixels, got 8 for 'one blue cross' and 9"):
        evaluate_folder(mixed)
