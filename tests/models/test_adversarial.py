"""A discriminator on the features of every family's network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import taking_turns
from PIL import Image
from test_lora import ThreeBackbones
from torch import nn
from torch.testing import assert_close
from trainers import new_trainer

import dpdmd.training.networks as networks
from dpdmd.method.randomness import image_noise
from dpdmd.models.base import empty_network, feature_blocks, feature_reader
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.role_networks import make_roles
from dpdmd.recipe.schema import Recipe
from dpdmd.training.adversary import new_discriminator
from dpdmd.training.facts import facts

PROMPTS = ["a red circle", "the small blue cross on a white background", "one cross"]
SHARED = {"roles": ["student", "fake_score"], "rank": 4}


@pytest.fixture(scope="session")
def teacher(family, folder):
    """The teacher, at the size of the tests."""
    return replace(load_sampler(folder), image_size=family.IMAGE_SIZE)


@pytest.fixture
def make_recipe(family, folder, tmp_path):
    def make(**sections) -> Recipe:
        (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
        height, width = family.IMAGE_SIZE
        data = {
            "model": {"teacher": folder, "num_inference_steps": 4, "height": height, "width": width},
            "student": {"num_steps": 2},
            "objective": {"name": "dmd_adversarial", "adversarial": {"num_real": 2, "weight": 1.0}},
            "data": {"prompts": str(tmp_path / "prompts.txt")},
            "train": {"num_updates": 2, "batch_size": 2, "fake_updates": 1, "learning_rate": 1e-2},
            "output": {"folder": str(tmp_path / "run")},
        }
        for name, values in sections.items():
            data[name] = data.get(name, {}) | values
        return Recipe.model_validate(data)

    return make


@taking_turns("lora", {"copies": {}, "shared": SHARED})
def test_two_iterations_move_student_fake_score_and_head_and_nothing_else(folder, make_recipe, lora):
    adapter = load_adapter(folder)
    start = adapter.load_network().state_dict()
    trainer = new_trainer(make_recipe(lora=lora), adapter)
    before = {name: [p.detach().clone() for p in u.parameters] for name, u in trainer.updaters.items()}
    rows = [trainer.iterate() for _ in range(2)]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    for name, updater in trainer.updaters.items():
        assert not all(map(torch.equal, before[name], updater.parameters)), name
    for name, tensor in trainer.network("teacher").state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, start[name.replace(".base_layer", "")]), name


def inputs(teacher):
    adapter, shape = teacher.adapter, teacher.latent_shape()
    return image_noise([0, 1, 2], shape), torch.tensor([0.9, 0.5, 0.2]), adapter.encode(PROMPTS)


def test_features_are_of_the_picture_and_hear_it_the_time_and_the_prompt(teacher):
    adapter, (x_t, t, cond) = teacher.adapter, inputs(teacher)
    roles = make_roles(adapter.load_network())
    number = len(feature_blocks(adapter, roles.modules["teacher"]))
    assert number == len(feature_blocks(adapter, empty_network(adapter))) > 0
    read = feature_reader(adapter, roles, "teacher", tuple(range(number)))
    with torch.no_grad():
        features = read(x_t, t, cond)
        for f in features:
            assert f.ndim == 3 and len(f) == 3 and f.shape[1] <= x_t.shape[2] * x_t.shape[3] and f.shape[2] > 4
        for other in (read(x_t + 0.5, t, cond), read(x_t, 0.5 * t, cond), read(x_t, t, cond[torch.tensor([1, 2, 0])])):
            assert ((other[-1] - features[-1]).abs().amax(dim=(1, 2)) > 1e-4).all()
        # Prompts of other lengths in the same batch do not change a sample's features.
        alone = read(x_t[:1], t[:1], adapter.encode(PROMPTS[:1]))
    for one, all_ in zip(alone, features, strict=True):
        assert_close(one, all_[:1], atol=1e-4, rtol=1e-4)


def test_leaving_early_changes_no_feature_and_spares_the_rest(teacher):
    adapter, (x_t, t, cond) = teacher.adapter, inputs(teacher)
    roles = make_roles(adapter.load_network())
    blocks = feature_blocks(adapter, roles.modules["teacher"])
    calls = []
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda module, args, output, i=i: calls.append(i))
    results = {}
    for sharded in (False, True):  # sharded networks are called to the end
        read = feature_reader(adapter, roles, "teacher", (0,), whole_calls=sharded)
        with torch.no_grad():
            results[sharded] = read(x_t, t, cond)[0]
        assert calls == ([*range(len(blocks))] if sharded else [0])
        calls.clear()
    assert torch.equal(results[False], results[True])


def test_the_gradient_at_the_samples_is_that_of_finite_differences(teacher, make_recipe):
    """In the direction of the gradient itself, on weights in double precision."""
    adapter, (x_t, t, cond) = teacher.adapter, inputs(teacher)
    trainer = new_trainer(make_recipe(), adapter)
    discriminator = trainer.denoisers.discriminator
    for branch in discriminator.head.branches:
        nn.init.normal_(branch[-1].weight, generator=torch.Generator().manual_seed(0))
    x = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, t, cond).sum(), x)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        up, down = (discriminator(x_t + sign * 0.02 * direction, t, cond).sum() for sign in (1, -1))
    assert ((up - down) / 0.04).item() == pytest.approx(gradient.norm().item(), rel=0.05)
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("family", ["sd3", "sdxl"], indirect=True)
@pytest.mark.parametrize("features", ["fake_score", "teacher"])
@pytest.mark.parametrize("lora", [{}, SHARED], ids=["copies", "shared"])
def test_gradient_checkpointing_changes_nothing(folder, make_recipe, lora, features):
    weights = []
    for checkpointing in (False, True):
        recipe = make_recipe(lora=lora, train={"gradient_checkpointing": checkpointing})
        adversarial = recipe.objective.adversarial.model_copy(update={"features": features})
        objective = recipe.objective.model_copy(update={"adversarial": adversarial})
        trainer = new_trainer(recipe.model_copy(update={"objective": objective}), load_adapter(folder))
        # A head whose output is not zero, so that the first student update has a gradient from it.
        for branch in trainer.denoisers.discriminator.head.branches:
            nn.init.normal_(branch[-1].weight, generator=torch.Generator().manual_seed(0))
        trainer.updaters["student"].optimizer.step = lambda trainer=trainer: weights.append(
            [p.grad.clone() for p in trainer.updaters["student"].parameters if p.grad is not None]
        )
        trainer.iterate()
    for plain, checkpointed in zip(*weights, strict=True):
        assert_close(checkpointed, plain, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["sd3", "sdxl"], indirect=True)
@pytest.mark.parametrize("features", ["fake_score", "teacher"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_one_backbone_trains_as_three_do(folder, make_recipe, features, gradient_checkpointing, monkeypatch):
    def trainer(checkpointed):
        adversarial = {"num_real": 2, "weight": 1.0, "features": features}
        return new_trainer(
            make_recipe(
                lora=SHARED,
                objective={"name": "dmd_adversarial", "adversarial": adversarial},
                train={"gradient_checkpointing": checkpointed},
            ),
            load_adapter(folder),
        )

    shared = trainer(gradient_checkpointing)
    monkeypatch.setattr(networks, "make_roles", ThreeBackbones)
    apart = trainer(False)
    assert isinstance(apart.roles, ThreeBackbones)
    for _ in range(2):
        row, expected = shared.iterate(), apart.iterate()
        for key in row:
            if key != "seconds":
                assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), key


def test_the_head_is_as_wide_as_its_blocks_and_the_plan_names_them(teacher, make_recipe):
    trainer = new_trainer(make_recipe(), teacher.adapter)
    with torch.no_grad():
        x_t, t, cond = inputs(teacher)
        features = trainer.denoisers.discriminator.features(x_t, t, cond)
    assert [branch[1].in_features for branch in trainer.denoisers.discriminator.head.branches] == [
        f.shape[-1] for f in features
    ]
    assert (
        len(features) == len(trainer.plan.feature_blocks) == len(facts(trainer.plan, trainer.parts)["feature_blocks"])
    )


def test_what_decode_hands_to_the_autoencoder_is_what_its_encoder_gave(teacher, monkeypatch):
    adapter = load_adapter(teacher.adapter.source)
    height, width = teacher.image_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae, handed = adapter.vae, []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **options: (handed.append(z), decode(z, **options))[1])
    latents = adapter.encode_images(images)
    assert latents.shape == (2, *teacher.latent_shape())
    adapter.decode(latents)
    is_video = handed[0].ndim == 5
    with torch.no_grad():
        encoded = vae.encode(images[:, :, None] if is_video else images)
    expected = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    assert_close(handed[0], expected, atol=1e-5, rtol=1e-4)
    assert latents.std() > 0.01


def test_a_folder_of_images_trains_as_well(family, folder, make_recipe, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, prompt in enumerate(PROMPTS):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"{prompt} again")
    adversarial = {"real": str(images)}
    trainer = new_trainer(
        make_recipe(objective={"name": "dmd_adversarial", "adversarial": adversarial}), load_adapter(folder)
    )
    rows = [trainer.iterate() for _ in range(2)]
    assert all(np.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("family", ["sd3", "sdxl"], indirect=True)
def test_features_under_bf16_are_near_those_of_fp32_and_the_head_is_fp32(teacher, make_recipe):
    x_t, t, cond = inputs(teacher)
    features = []
    for precision in ("fp32", "bf16"):
        trainer = new_trainer(make_recipe(train={"precision": precision}), load_adapter(teacher.adapter.source))
        head = new_discriminator(
            trainer.plan,
            trainer.parts.adapter,
            trainer.roles,
            trainer.batches.prompts.cond(torch.tensor([0])),
            trainer.accelerator,
        )
        with torch.no_grad():
            features.append(head.features(x_t, t, cond))
        assert {p.dtype for p in head.head.parameters()} == {torch.float32}
    for exact, low in zip(*features, strict=True):
        assert 0 < ((low - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3"], indirect=True)
def test_compiled_networks_are_listened_to_as_well(family, tiny_folder, make_recipe, monkeypatch):
    # The graphs that are traced, run without the code generator, which takes minutes.
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: real(module, backend="aot_eager"))
    rows, folder = [], tiny_folder("sd3", num_layers=2)
    for compiled in (False, True):
        train = {"compile": compiled, "learning_rate": 1e-3}
        trainer = new_trainer(make_recipe(model={"teacher": folder}, train=train), load_adapter(folder))
        rows.append([trainer.iterate() for _ in range(2)][1])
    for key in rows[0]:
        if key.startswith(("loss/", "grad_norm/")):
            assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-4), key
