import pytest
import torch
from torch.nn import functional as F

from dpdmd.method.randomness import generator
from dpdmd.world.features import FEATURE_DIM, SceneFeatures, load_scene_features
from dpdmd.world.scenes import CONTINUOUS_FACTORS, DISCRETE_FACTORS, SHAPES, Scenes, render, sample_scenes
from tools.pretrain.features import (
    FactorHeads,
    augment,
    balance,
    factor_distances,
    factor_loss,
    train_features,
)


@pytest.fixture(scope="module")
def network():
    return load_scene_features()


def test_shipped_features_separate_discrete_factors_linearly(network):
    scenes = sample_scenes(2048, generator(3, "features_test"))
    features = network(render(scenes))
    design = torch.cat([features, torch.ones(len(scenes), 1)], dim=1)
    for factor, values in DISCRETE_FACTORS.items():
        target = F.one_hot(scenes.discrete[factor], len(values)).float()
        weights = torch.linalg.lstsq(design[:1024], target[:1024]).solution
        right = (design[1024:] @ weights).argmax(1) == scenes.discrete[factor][1024:]
        # A least-squares probe, weaker than the trained heads that were all right.
        assert right.float().mean() >= 0.97, factor


def test_no_factor_dominates_the_shipped_features(network):
    distances = factor_distances(network, num_pairs=512)
    main = [distances[factor] for factor in DISCRETE_FACTORS]
    assert min(main) > 0.1
    assert max(main) < 3 * min(main)
    assert distances["position"] > 0.05
    assert distances["all"] == pytest.approx(1.0, abs=0.05)


def test_shipped_features_are_centred_on_the_world(network):
    features = network(render(sample_scenes(4096, generator(4, "features_test"))))
    # The mean of 4096 features of standard deviation about .5 errs by .008.
    assert features.mean(0).abs().max() < 0.04


def test_shipped_features_hardly_move_under_noise(network):
    images = render(sample_scenes(256, generator(5, "features_test")))
    noisy = images + 0.05 * torch.randn(images.shape, generator=generator(6, "features_test"))
    assert 1 - F.cosine_similarity(network(images), network(noisy)).mean() < 0.005


def test_gradient_reaches_the_images_and_not_the_weights(network):
    images = render(sample_scenes(2, generator(7, "features_test"))).requires_grad_()
    network(images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_network_is_small():
    assert sum(parameter.numel() for parameter in SceneFeatures().parameters()) <= 300_000


def test_other_images_are_refused(network):
    with pytest.raises(ValueError, match="built-in world only"):
        network(torch.zeros(1, 3, 64, 64))


def test_balance_is_a_softened_whitening_of_the_same_features():
    torch.manual_seed(0)
    network = SceneFeatures()
    images = render(sample_scenes(512, generator(0, "features_test")))
    with torch.no_grad():
        before = network(images)
        before = (before - before.mean(0)).double()
        balance(network, images)
        after = network(images).double()
    values, vectors = torch.linalg.eigh(before.T @ before / len(before))
    expected = before @ vectors @ torch.diag((values + 0.01 * values.max()) ** -0.5) @ vectors.T
    torch.testing.assert_close(after, expected, atol=1e-3, rtol=1e-3)


def test_rotation_of_circles_is_left_out_of_the_loss():
    torch.manual_seed(0)
    heads, features = FactorHeads(), torch.randn(64, FEATURE_DIM)
    scenes = sample_scenes(64, generator(1, "features_test"))
    circles = scenes.discrete["shape"] == SHAPES.index("circle")
    losses = []
    for rows in (circles, ~circles):
        rotation = torch.where(rows, -scenes.continuous["rotation"], scenes.continuous["rotation"])
        turned = Scenes(scenes.discrete, scenes.continuous | {"rotation": rotation})
        losses.append(factor_loss(heads, features, turned) - factor_loss(heads, features, scenes))
    assert losses[0] == 0
    assert losses[1] != 0


def test_loss_is_zero_for_right_answers():
    heads = FactorHeads()
    scenes = sample_scenes(1, generator(2, "features_test"))
    with torch.no_grad():
        for factor, head in heads.discrete.items():
            head.weight.zero_()
            head.bias.copy_(100.0 * F.one_hot(scenes.discrete[factor][0], len(DISCRETE_FACTORS[factor])))
        heads.continuous.weight.zero_()
        # Scaled by hand: the ranges of the world's x, y, radius and rotation map to [-1, 1].
        x, y, radius, rotation = (scenes.continuous[name][0] for name in CONTINUOUS_FACTORS)
        heads.continuous.bias.copy_(
            torch.stack([(x - 16) / 6.5, (y - 16) / 5.5, (radius - 7.75) / 2.75, rotation / 20])
        )
    assert factor_loss(heads, torch.randn(1, FEATURE_DIM), scenes).item() == pytest.approx(0, abs=1e-6)


def test_augmentation_keeps_the_scene_and_repeats():
    images = render(sample_scenes(64, generator(0, "features_test")))
    first = augment(images, generator(1, "features_test"))
    assert torch.equal(first, augment(images, generator(1, "features_test")))
    assert not torch.equal(first, images)
    assert (first - images).square().mean().sqrt() < 0.2


def test_training_changes_every_parameter_and_repeats():
    lines = []
    first = train_features(num_steps=3, batch_size=8, seed=1, log=lines.append, num_held_out=64)
    second = train_features(num_steps=3, batch_size=8, seed=1, log=lines.append, num_held_out=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fresh = SceneFeatures().state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert not torch.equal(value, fresh[name]), name
    assert any(line.startswith("held out, clean: shape") for line in lines)
