"""The interface of the built-in worlds, and that the scenes behind it are measured as they always were."""

import math

import pytest
import torch

from dpdmd.evaluate.samples import Samples
from dpdmd.evaluate.scorers.world import world_of, world_scores
from dpdmd.method.randomness import generator
from dpdmd.models.load import BUILT_IN
from dpdmd.world.find import WORLDS, world_named, world_of_images, world_of_teacher
from dpdmd.world.metrics import scene_metrics
from dpdmd.world.oracle import read_scenes
from dpdmd.world.scenes import render, sample_scenes


class InMemory(Samples):
    def __init__(self, prompts, images):
        super().__init__("", prompts, {}, [""] * len(images))
        self.__dict__["_images"] = images

    def images(self):
        return iter(self.__dict__["_images"])


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_knows_its_prompts_and_its_teachers_are_built_in(name):
    world = world_named(name)
    assert world.name == name
    assert world.knows(world.evaluation_prompts()) and world.knows(world.training_prompts())
    assert not world.knows(["a prompt of no world"])
    assert len(set(world.evaluation_prompts())) == 24
    for teacher in world.teachers:
        assert teacher in BUILT_IN and world_of_teacher(teacher) is world


def test_every_built_in_teacher_has_a_world():
    assert all(world_of_teacher(teacher) is not None for teacher in BUILT_IN)
    assert world_of_teacher("stabilityai/stable-diffusion-xl-base-1.0") is None


def test_a_world_is_found_by_its_captions_and_its_size():
    scenes, size = world_named("scenes"), torch.Size([3, 32, 32])
    assert world_of_images(["a red circle"], [size]) is scenes
    assert world_of_images(["a red circle", "a photo of a fox"], [size]) is None
    assert world_of_images(["a red circle"], [size, torch.Size([3, 64, 64])]) is None


def test_scenes_behind_the_interface_have_the_metrics_of_the_scenes():
    """Every number that the interface hands on is that of `scene_metrics`, to the last digit."""
    prompts = ["a red circle", "one blue cross", "a small green square on navy"]
    images = render(sample_scenes(36, generator(0, "interface")))
    images[5::7] = 0.3 * images[5::7]  # some that are not clean
    reference = render(sample_scenes(36, generator(1, "interface")))
    samples, teacher = InMemory(prompts, images), InMemory(prompts, reference)
    world = world_of(samples)
    scores = world_scores(world, samples, teacher)
    repeated = [prompt for prompt in prompts for _ in range(12)]
    exact = scene_metrics(repeated, read_scenes(images), reference=read_scenes(reference))
    assert scores.estimates["validity"].value == pytest.approx(exact["validity"], rel=1e-12)
    assert scores.estimates["named_accuracy"].value == pytest.approx(exact["named_accuracy"], rel=1e-12)
    for key in ("total_variation_true", "total_variation_floor", "total_variation_reference"):
        by_factor = [value for value in exact[key].values() if value is not None]
        assert scores.values[key] == sum(by_factor) / len(by_factor)
    assert scores.values["effective_modes_mean"] == exact["effective_modes_mean"]
    assert scores.values["effective_modes_by_factor"] == exact["effective_modes"]
    assert math.exp(0) <= scores.estimates["effective_modes"].value <= 6
