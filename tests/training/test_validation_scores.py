"""The scores of a student in validation, equal to those of `dpdmd evaluate`; alarms, and what validation costs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from tiny_adapter import PictureAdapter
from torch.nn import functional as F
from trainers import train

from dpdmd.evaluate.intervals import Estimate
from dpdmd.evaluate.manifest import ImageEntry, write_manifest
from dpdmd.evaluate.run import evaluate_folder
from dpdmd.evaluate.scorers.latents import Latents
from dpdmd.evaluate.scores import quality
from dpdmd.method.randomness import generator
from dpdmd.store.jsonl import read_rows
from dpdmd.store.png import write_png
from dpdmd.store.tensors import read_tensors
from dpdmd.training.validation.images import Images, Validation
from dpdmd.training.validation.scores import Judge, ValidationScores, alarms, too_slow
from dpdmd.vision.features import load_extractor
from dpdmd.world.scenes import render, sample_scenes

PROMPTS = ["a red circle", "one blue cross", "a small green square"]
NUM_SEEDS = 4
SCENES = {"every": 2, "features": "scenes"}


def scenes(stream: str, prompts=PROMPTS):
    return render(sample_scenes(len(prompts) * NUM_SEEDS, generator(0, stream)))


def images(pixels, change=0.1):
    """Images as validation has them: latents that are their means over 4 x 4 pixels, which the teacher changes."""
    x0 = F.avg_pool2d(pixels, 4)
    return Images(pixels, Latents(x0, x0 + change))


def judge_of(teacher, prompts=PROMPTS, extractor=None):
    validation = SimpleNamespace(prompts=prompts, num_seeds=NUM_SEEDS, identity="test")
    return Judge(validation, images(teacher), extractor, "cpu")


def folder_of(path, images):
    entries = []
    for i, image in enumerate(images):
        write_png(path / f"{i}.png", image)
        entries.append(ImageEntry(PROMPTS[i // NUM_SEEDS], i % NUM_SEEDS, f"{i}.png"))
    write_manifest(path, entries)
    return path


def scores_of(folder):
    return read_rows(folder / "validation/scores.jsonl")


def test_figures_are_those_of_evaluating_the_same_images_from_a_folder(tmp_path):
    teacher, student = scenes("teacher"), scenes("student")
    row = judge_of(teacher).row(1, images(student), images(teacher))
    metrics = evaluate_folder(folder_of(tmp_path / "s", student), reference=folder_of(tmp_path / "t", teacher))
    for key in ("diversity", "diversity_share", "saturation"):
        assert row[f"validation/{key}"] == pytest.approx(metrics[key], rel=1e-6), key
    assert row["validation/quality"] == pytest.approx(quality(metrics).value)


def test_the_teacher_against_itself_has_share_one_and_no_alarm():
    teacher = scenes("teacher")
    judge = judge_of(teacher)
    row = judge.row(1, images(teacher), None)
    assert row["validation/diversity_share"] == pytest.approx(1)
    assert row["validation/quality"] == row["validation/teacher_quality"]
    assert row["alarms"] == {}
    assert not any("live" in key for key in row)


def test_a_constant_student_has_share_zero_and_an_alarm():
    teacher = scenes("teacher")
    row = judge_of(teacher).row(100, images(teacher[:1].expand_as(teacher)), None)
    assert row["validation/diversity_share"] == pytest.approx(0, abs=1e-6)
    assert list(row["alarms"]) == ["collapse"]
    assert "samples of one prompt have become alike: 0.00 of the teacher's diversity at update 100" in str(row)


def test_a_student_at_the_end_of_the_scale_raises_an_alarm():
    teacher = 0.9 * scenes("teacher")
    row = judge_of(teacher).row(7, images((4 * teacher).clamp(-1, 1)), images(teacher))
    assert row["validation/saturation"] > 0.5 and row["validation/live_saturation"] == 0
    assert "at update 7" in row["alarms"]["saturation"]


def test_the_averaged_weights_and_the_live_ones_are_scored_separately():
    teacher = scenes("teacher")
    row = judge_of(teacher).row(1, images(teacher), images(teacher[:1].expand_as(teacher)))
    assert row["validation/diversity_share"] == pytest.approx(1)
    assert row["validation/live_diversity_share"] == pytest.approx(0, abs=1e-6)
    assert row["alarms"] == {}


def test_what_few_prompts_cannot_show_is_no_alarm():
    teacher = scenes("teacher", PROMPTS[:1])
    assert judge_of(teacher, PROMPTS[:1]).row(1, images(teacher[:1].expand_as(teacher)), None)["alarms"] == {}
    unsure, none = Estimate(0.3, 0.1, 0.6, 4), Estimate(0.0, -0.1, 0.05, 4)
    assert alarms(ValidationScores({"saturation": 0.1}, unsure, none), 1) == {}
    assert set(alarms(ValidationScores({"saturation": 0.1}, Estimate(0.3, 0.1, 0.45, 4), none), 1)) == {"collapse"}


def test_without_a_network_the_model_judges_by_its_latents():
    """Diversity is the mean distance of denoised latents, quality the teacher's residual over the student's."""
    teacher, student = torch.rand(len(PROMPTS) * NUM_SEEDS, 3, 8, 8), torch.rand(len(PROMPTS) * NUM_SEEDS, 3, 8, 8)
    judge = judge_of(teacher, ["no scene", "nor this", "nor that"])
    row = judge.row(1, images(student, change=0.2), None)
    assert judge.extractor is None and "the model alone" in row["judged_by"]
    assert row["validation/quality"] == row["validation/agreement"] == pytest.approx(0.1**2 / 0.2**2)
    distances = [
        np.mean([pdist(of_prompt) for of_prompt in F.avg_pool2d(x, 4).double().flatten(1).numpy().reshape(3, 4, -1)])
        for x in (student, teacher)
    ]
    assert row["validation/latent_diversity"] == row["validation/diversity"] == pytest.approx(distances[0])
    assert row["validation/diversity_share"] == pytest.approx(distances[0] / distances[1])
    ours, theirs = (F.avg_pool2d(x, 4).double().flatten(1).numpy() for x in (student, teacher))
    between = np.mean([pdist(of_prompt, "cityblock") for of_prompt in theirs.reshape(3, 4, -1)]) / theirs.shape[1]
    assert row["validation/latent_distance"] == pytest.approx(np.abs(ours - theirs).mean() / between)
    assert row["validation/teacher_quality"] == pytest.approx(1)


def test_a_network_decides_on_diversity_where_one_is_named():
    teacher, student = scenes("teacher"), scenes("student")
    others = ["some", "other", "thing"]
    row, alone = (
        judge_of(teacher, others, by).row(1, images(student), None) for by in (load_extractor("scenes"), None)
    )
    share = row["validation/diversity_share"]
    assert alone["validation/diversity_share"] == alone["validation/latent_diversity_share"] != share
    assert row["validation/latent_diversity_share"] == alone["validation/latent_diversity_share"]
    assert share == pytest.approx(judge_of(teacher).row(1, images(student), None)["validation/diversity_share"])
    assert row["validation/quality"] == alone["validation/quality"]


def test_more_than_a_twentieth_of_the_time_is_reported_except_what_happens_once():
    rows = [{"seconds": 100.0, "validation/seconds": 20.0, "once_seconds": 17.0}]
    assert too_slow(rows, 50) is None
    rows.append({"seconds": 120.0, "validation/seconds": 3.6})
    assert "23.6 s, training 120.0 s: 17.0 s once, then 5.5 %" in too_slow(rows, 50)


def test_a_run_writes_figures_of_averaged_and_live_weights_and_their_seconds(make_recipe, tmp_path, capsys):
    adapter = PictureAdapter(tmp_path)
    folder = train(make_recipe(train={"ema_decay": 0.5}, validation=SCENES), adapter)
    first, second = scores_of(folder)
    assert [first["step"], second["step"]] == [2, 4]
    for key in ("diversity", "diversity_share"):
        values = [row[f"validation/{prefix}{key}"] for row in (first, second) for prefix in ("", "live_")]
        assert len(set(values)) == 4
    assert {"validation/quality", "validation/live_quality", "validation/saturation"} <= first.keys()
    assert 0 < first["once_seconds"] < first["validation/seconds"]
    assert "once_seconds" not in second
    log = read_rows(folder / "metrics.jsonl")
    assert second["seconds"] == log[-1]["seconds"] and len(log) == 4
    assert "step 4: quality " in capsys.readouterr().out


def test_figures_do_not_change_what_is_trained(make_recipe, tmp_path):
    options = {"train": {"ema_decay": 0.5, "num_updates": 3}}
    plain = train(make_recipe("plain", **options), PictureAdapter(tmp_path), progress=False)
    judged = make_recipe("judged", **options, validation=SCENES | {"every": 1})
    a, b = (
        read_tensors(folder / "student/student.safetensors")
        for folder in (plain, train(judged, PictureAdapter(tmp_path), progress=False))
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (plain / "validation").exists() and not (plain / "students").exists()


def test_an_alarm_is_reported_once_per_episode_also_by_a_resumed_run(make_recipe, tmp_path, monkeypatch, capsys):
    real, healthy = Validation.student_images, {3}

    def student_images(self, *args):
        drawn = real(self, *args)
        alike = [x[:1].expand_as(x) for x in (drawn.pixels, drawn.latents.x0, drawn.latents.denoised)]
        return drawn if calls.pop(0) in healthy else Images(alike[0], Latents(*alike[1:]))

    monkeypatch.setattr(Validation, "student_images", student_images)
    monkeypatch.setattr("dpdmd.training.validation.scores.COLLAPSED", 0.01)
    calls = [1, 2]
    every = {"validation": SCENES | {"every": 1}, "checkpoint": {"every": 1}}
    train(make_recipe(train={"num_updates": 2}, **every), PictureAdapter(tmp_path), progress=False)
    assert [line.count("ALARM: collapse") for line in [capsys.readouterr().out]] == [1]
    calls = [3, 4, 5]
    longer = make_recipe(train={"num_updates": 5}, **every)
    folder = train(longer, PictureAdapter(tmp_path), resume=True, progress=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "ALARM" in line]
    assert len(lines) == 1 and "at update 4" in lines[0]
    assert [list(row["alarms"]) for row in scores_of(folder)] == [["collapse"], ["collapse"], [], *2 * [["collapse"]]]


def test_features_that_cannot_be_had_are_refused_before_a_network_is_loaded(make_recipe, adapter, monkeypatch):
    monkeypatch.setattr(adapter, "load_network", lambda *_: pytest.fail("loaded a network"))
    with pytest.raises(ValueError, match=r"validation\.features: no feature model at '/nowhere'"):
        train(make_recipe(validation={"every": 2, "features": "/nowhere"}), adapter, progress=False)


def test_images_without_figures_cost_the_figures_only(make_recipe, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("a feature vector is zero or not finite")

    monkeypatch.setattr(Judge, "row", refuse)
    folder = train(make_recipe(validation=SCENES), PictureAdapter(tmp_path))
    assert "step 2: validation has no scores: a feature vector is zero" in capsys.readouterr().out
    assert len(scores_of(folder)) == 2 and (folder / "student/student.json").exists()


def test_a_step_that_was_killed_before_its_validation_is_validated_on_resuming(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe(validation=SCENES)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Validation, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(recipe, PictureAdapter(tmp_path), progress=False)
    assert scores_of(Path(recipe.output.folder)) == []
    folder = train(recipe, PictureAdapter(tmp_path), resume=True, progress=False)
    whole = train(make_recipe("whole", validation=SCENES), PictureAdapter(tmp_path), progress=False)
    mine, theirs = (
        [{key: v for key, v in row.items() if not key.endswith("seconds")} for row in scores_of(place)]
        for place in (folder, whole)
    )
    assert mine == theirs and len(mine) == 2
