"""What every model family has to do; stock diffusers is the judge.

A family is a module tiny_FAMILY.py next to this file:

- `save(folder)` writes a tiny random pipeline folder, seeded, whose prompts and guidance visibly change its pictures.
- `STOCK`, the stock pipeline class. `GUIDANCE_SCALE`, ours: unconditional + s (conditional - unconditional), 1 = off.
- `IMAGE_SIZE`, (height, width) in pixels of the tests: small, not square, not the model's own.
- `stock_arguments(num_prompts)`, what makes the stock call our guided teacher with "" as negative prompt.
- `prepare(pipeline)` sets what else the stock pipeline needs before it can be the teacher; usually nothing.
- `unpacked(latents, latent_shape)`, what the stock call returns as "latent", as (B, C, H, W).
"""

import inspect
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import scheduling_flow_match_euler_discrete
from families import taking_turns
from PIL import Image
from snippets import drawn_by_card
from torch import nn
from torch.testing import assert_close
from trainers import new_trainer

from dpdmd.data.embeddings import EmbeddingCache
from dpdmd.data.prompts import lint_prompts
from dpdmd.evaluate.generate import generate_folder, sample_latents
from dpdmd.method.denoiser import concatenate
from dpdmd.method.grids import uniform_grid
from dpdmd.method.paths import FlowPath, from_velocity
from dpdmd.method.randomness import image_noise
from dpdmd.models.base import network_blocks
from dpdmd.models.flow_scheduler import drawn_grid
from dpdmd.models.load import load_adapter, load_sampler
from dpdmd.models.packed import pack
from dpdmd.models.parts import tokenizers
from dpdmd.models.role_networks import enable_gradient_checkpointing, make_roles
from dpdmd.models.sampling import student_rollout
from dpdmd.models.student_file import STUDENT_FILE
from dpdmd.publish.export import export_run
from dpdmd.recipe.schema import Recipe
from dpdmd.store.files import read_json, write_json
from dpdmd.store.png import to_uint8
from dpdmd.store.tensors import write_tensors

PROMPTS = ["a red circle", "the small blue cross on a white background"]
SEEDS = [3, 4]
NUM_STEPS = 4
# What docs/models.md calls the families.
NAMES = {
    "StableDiffusion3Pipeline": "Stable Diffusion 3, 3.5",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "SanaPipeline": "Sana",
    "ZImagePipeline": "Z-Image",
    "FluxPipeline": "FLUX.1",
    "QwenImagePipeline": "Qwen-Image",
    "Flux2KleinPipeline": "FLUX.2-klein",
    "Krea2Pipeline": "Krea 2",
    "ChromaPipeline": "Chroma1",
    "Lumina2Pipeline": "Lumina-Image 2.0",
    "StableDiffusionPipeline": "Stable Diffusion 1, 2",
    "PixArtSigmaPipeline": "PixArt-Sigma",
    "LongCatImagePipeline": "LongCat-Image",
    "ErnieImagePipeline": "ERNIE-Image",
}


@pytest.fixture(scope="session")
def teacher(family, folder):
    """The teacher, at the size of the tests."""
    return replace(load_sampler(folder), image_size=family.IMAGE_SIZE)


@pytest.fixture(scope="session")
def run(family, folder, teacher, tmp_path_factory) -> Path:
    """A finished run whose student is the teacher with every weight moved a little."""
    adapter, rng = teacher.adapter, torch.Generator().manual_seed(1)
    moved = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=rng) if tensor.is_floating_point() else tensor
        for name, tensor in teacher.network.state_dict().items()
    }
    run = tmp_path_factory.mktemp("run")
    write_tensors(run / "student" / "student.safetensors", moved)
    height, width = family.IMAGE_SIZE
    info = {
        "base": folder,
        "grid": list(adapter.uniform_grid(NUM_STEPS, teacher.latent_shape()).times),
        "num_inference_steps": NUM_STEPS,
        "objective": "dp_dmd",
        "updates": 1,
        "embedded_guidance": adapter.embedded_guidance,
        "height": height,
        "width": width,
    }
    write_json(run / "student" / STUDENT_FILE, info)
    return run


@pytest.fixture(scope="session")
def export(run, tmp_path_factory) -> Path:
    return export_run(run, tmp_path_factory.mktemp("exports") / "export")


def stock_images(family, folder, output_type: str, size: tuple[int, int] | None = None, **further):
    """What the stock pipeline makes of PROMPTS and SEEDS with guidance, on its default grid.

    size: in pixels. further: arguments.
    """
    pipeline = family.STOCK.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    family.prepare(pipeline)
    height, width = size or family.IMAGE_SIZE
    return pipeline(
        prompt=list(PROMPTS),
        height=height,
        width=width,
        num_inference_steps=NUM_STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type=output_type,
        **family.stock_arguments(len(PROMPTS)) | further,
    ).images


def as_asked(family) -> dict[str, bool]:
    """What lets the stock call take size and prompt as they are, where it has a choice; a careful call says it."""
    choices = {"use_resolution_binning": False, "clean_caption": False, "enable_prompt_rewrite": False, "use_pe": False}
    return {name: value for name, value in choices.items() if name in call_parameters(family)}


def as_tokens(latents: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Latents as the tokens of a stock pipeline: one for each pixel, or for each patch of 2 x 2."""
    tokens = latents.flatten(2).transpose(1, 2)
    return tokens if tokens.shape == shape else pack(latents)


def call_parameters(family):
    """The parameters of the stock call by name."""
    return inspect.signature(family.STOCK.__call__).parameters


def our_latents(sampler, guidance_scale: float, negative: str = "") -> torch.Tensor:
    adapter, shape = sampler.adapter, sampler.latent_shape()
    return sample_latents(
        sampler,
        adapter.encode(PROMPTS),
        adapter.encode_negative([negative]).expand(len(PROMPTS)),
        SEEDS,
        shape,
        grid=sampler.grid or adapter.stock_grid(NUM_STEPS, shape),
        guidance_scale=guidance_scale,
    )


def pixels(model: Path, out: Path) -> np.ndarray:
    """The picture of the prompt and seed of an export's card."""
    generate_folder(str(model), ["a red circle"], out=out, seeds=[0], progress=False)
    return np.asarray(Image.open(next(out.glob("*.png")))).astype(int)


@pytest.mark.parametrize("doubled", [False, True], ids=["", "of twice the height"])
def test_the_guided_teacher_equals_the_stock_pipeline(family, folder, teacher, doubled):
    height, width = family.IMAGE_SIZE
    if doubled:
        teacher = replace(teacher, image_size=(2 * height, width))
    stock = stock_images(family, folder, "latent", teacher.image_size)
    stock = family.unpacked(stock, teacher.latent_shape())
    ours = our_latents(teacher, family.GUIDANCE_SCALE)
    # fp32 sums in another order: the stock pipelines batch conditional and unconditional otherwise or not at all.
    assert_close(ours, stock, atol=1e-4, rtol=0)
    assert (ours - our_latents(teacher, 1.0)).abs().max() > 1e-2


def test_a_negative_prompt_equals_the_stock_pipelines(family, folder, teacher):
    if not teacher.adapter.takes_negative_prompt:
        pytest.skip("the stock call takes none, and the family's own tests say so")
    negative = "a large green square"
    stock = stock_images(family, folder, "latent", negative_prompt=[negative] * len(PROMPTS))
    ours = our_latents(teacher, family.GUIDANCE_SCALE, negative)
    assert_close(ours, family.unpacked(stock, teacher.latent_shape()), atol=1e-4, rtol=0)
    assert (ours - our_latents(teacher, family.GUIDANCE_SCALE)).abs().max() > 1e-3


def test_decoded_images_equal_the_stock_pipeline(family, folder, teacher):
    stock = torch.from_numpy((stock_images(family, folder, "np") * 255).round()).to(torch.int16)
    ours = to_uint8(teacher.adapter.decode(our_latents(teacher, family.GUIDANCE_SCALE))).to(torch.int16)
    assert stock.shape[1:3] == family.IMAGE_SIZE and stock.float().std() > 5
    assert (ours - stock).abs().max() <= 1


def test_decoding_passes_gradient_to_the_latents_and_none_to_the_autoencoder(teacher, randn):
    decode, shape = teacher.adapter.decode, teacher.latent_shape()
    latents = 0.5 * randn(0, 1, *shape)
    weights = randn(1, *decode(latents).shape)
    assert not decode(latents).requires_grad
    latents.requires_grad_()
    (weights * decode(latents)).sum().backward()
    slope = latents.grad.norm()
    with torch.no_grad():
        there, back = ((weights * decode(latents + step * latents.grad / slope)).sum() for step in (0.01, -0.01))
    # A central difference in fp32, of a function that is not straight.
    assert slope.item() == pytest.approx(((there - back) / 0.02).item(), rel=0.02) and slope > 1
    assert all(p.grad is None for p in teacher.adapter.vae.parameters())


def test_prompts_of_mixed_lengths_predict_alone_as_in_a_batch(teacher):
    adapter, prompts = teacher.adapter, ["", *PROMPTS]
    x_t, t = image_noise([0, 1, 2], teacher.latent_shape()), torch.tensor([0.9, 0.5, 0.2])

    def predict(rows, cond):
        with torch.no_grad():
            prediction = adapter.predict(teacher.network, x_t[rows], t[rows], cond, teacher.embedded_guidance)
        return torch.stack([prediction.x0, prediction.eps])

    together, single = adapter.encode(prompts), [adapter.encode([prompt]) for prompt in prompts]
    batch = predict(slice(None), together)
    for i, cond in enumerate(single):
        assert_close(predict(slice(i, i + 1), cond)[:, 0], batch[:, i], atol=1e-5, rtol=1e-5)
    assert_close(predict(slice(None), concatenate(single)), batch, atol=1e-5, rtol=1e-5)
    others = predict(slice(None), together[torch.tensor([1, 2, 0])])
    assert ((others - batch).abs().amax(dim=(0, 2, 3, 4)) > 1e-3).all()  # every row depends on its prompt


def test_the_cards_snippet_in_stock_diffusers_reproduces_the_student(run, export, folder, tmp_path):
    stock, ours = drawn_by_card(export, folder), pixels(run, tmp_path)
    assert stock.shape == ours.shape and stock.std() > 5
    assert np.abs(stock - ours).max() <= 1


def test_the_cards_callback_renews_the_noise_of_a_student_before_its_last_step(
    run, teacher, folder, tmp_path, monkeypatch
):
    if teacher.adapter.callback is None:
        pytest.skip("the stock call takes no callback; the family's own tests say that such a student is refused")
    (tmp_path / "a").mkdir()
    shutil.copytree(run, tmp_path / "run")
    info = read_json(run / "student" / STUDENT_FILE)
    write_json(tmp_path / "run" / "student" / STUDENT_FILE, info | {"kind": "renoise_last"})
    export = export_run(tmp_path / "run", tmp_path / "a" / "export")
    draws = []

    def fresh(shape, **_):  # stock flow pipelines give their scheduler no generator: let it draw what ours draws
        generator, latents = torch.Generator().manual_seed(0), (1, *teacher.latent_shape())
        torch.randn(latents, generator=generator)
        draws.append(torch.randn(latents, generator=generator))
        return as_tokens(draws[-1], tuple(shape)) if len(shape) == 3 else draws[-1]

    if isinstance(teacher.adapter.path, FlowPath):
        monkeypatch.setattr(scheduling_flow_match_euler_discrete, "randn_tensor", fresh)
    stock, ours = drawn_by_card(export, folder), pixels(tmp_path / "run", tmp_path / "ours")
    assert len(draws) == isinstance(teacher.adapter.path, FlowPath)
    assert stock.std() > 5 and np.abs(stock - ours).max() <= 1
    assert np.abs(pixels(run, tmp_path / "ode") - ours).max() > 5  # without it another picture
    assert np.abs(pixels(export, tmp_path / "again") - ours).max() <= 1


def test_the_number_of_steps_alone_draws_the_trained_grid(family, export, teacher):
    """To the last bit, by the exported scheduler, in a call that says nothing else of the grid."""
    pipeline = family.STOCK.from_pretrained(export)
    pipeline.set_progress_bar_config(disable=True)
    height, width = family.IMAGE_SIZE
    own_size = as_asked(family)
    pipeline(
        prompt=PROMPTS[0], num_inference_steps=NUM_STEPS, height=height, width=width, output_type="latent", **own_size
    )
    grid = teacher.adapter.uniform_grid(NUM_STEPS, teacher.latent_shape())
    if isinstance(teacher.adapter.path, FlowPath):
        assert pipeline.scheduler.sigmas.tolist() == list(grid.times)
        shift = teacher.adapter.own_shift(NUM_STEPS, teacher.latent_shape())
        assert grid.times == pytest.approx(uniform_grid(NUM_STEPS, shift=shift).times, abs=2.5e-7)
    else:
        assert [(timestep + 1) / 1000 for timestep in pipeline.scheduler.timesteps.tolist()] == list(grid.times[:-1])


def test_a_call_that_leaves_guidance_at_its_default_draws_what_the_docs_say(family, export, run, teacher):
    rows = [line.split("|")[1:4] for line in Path("docs/models.md").read_text().splitlines() if "cale=" in line]
    known = {name.strip(): (default.strip().strip("`"), draws) for name, default, draws in rows}
    default, draws = known[NAMES[family.STOCK.__name__]]
    name, _, value = default.partition("=")
    assert call_parameters(family)[name].default == float(value)
    pipeline = family.STOCK.from_pretrained(export)
    pipeline.set_progress_bar_config(disable=True)
    height, width = family.IMAGE_SIZE
    own_size = as_asked(family)
    drawn = pipeline(
        prompt=PROMPTS,
        num_inference_steps=NUM_STEPS,
        height=height,
        width=width,
        output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        **own_size,
    ).images
    far = (family.unpacked(drawn, teacher.latent_shape()) - our_latents(load_sampler(str(run)), 1.0)).abs().max()
    assert far > 1e-2 if "another picture" in draws else far < 1e-4


def test_another_number_of_steps_draws_the_grid_that_the_docs_say(family, export, teacher):
    table = Path("docs/models.md").read_text().split("| n steps instead of the trained N |\n")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()]
    (told,) = [text for families, text in rows if NAMES[family.STOCK.__name__] in families]
    pipeline = family.STOCK.from_pretrained(export)
    pipeline.set_progress_bar_config(disable=True)
    own_size = as_asked(family)
    height, width = family.IMAGE_SIZE
    num_steps = 3 * NUM_STEPS
    size = {"height": height, "width": width, **own_size}
    pipeline(prompt=PROMPTS[0], num_inference_steps=num_steps, output_type="latent", **size)
    trained = teacher.adapter.uniform_grid(NUM_STEPS, teacher.latent_shape()).times
    if "trailing timesteps" in told:
        drawn = [(timestep + 1) / 1000 for timestep in pipeline.scheduler.timesteps.tolist()] + [0.0]
        assert drawn == list(teacher.adapter.stock_grid(num_steps).times)
        return
    drawn = pipeline.scheduler.sigmas.tolist()
    assert drawn[0] == 1 and len(drawn) == num_steps + 1
    if "begins" in told:
        assert drawn[-2] == pytest.approx(trained[-2], abs=1e-6) and drawn[-2] > 1 / 2 / NUM_STEPS
    else:
        shift = teacher.adapter.own_shift(NUM_STEPS, teacher.latent_shape())
        assert drawn == pytest.approx(uniform_grid(num_steps, shift=shift).times, abs=1e-6)


def test_an_export_loads_back_as_the_student_and_not_as_its_base(run, export, teacher):
    student, reloaded = load_sampler(str(run)), load_sampler(str(export))
    assert reloaded.grid == student.grid and reloaded.image_size == teacher.image_size
    latents = our_latents(student, 1.0)
    assert_close(our_latents(reloaded, 1.0), latents, atol=1e-5, rtol=1e-5)
    base = replace(student, network=teacher.network)
    assert (our_latents(base, 1.0) - latents).abs().max() > 1e-2


@taking_turns("objective", {"dmd": "dmd", "dp_dmd": "dp_dmd"})
def test_training_moves_student_and_fake_score_and_nothing_else(family, folder, objective, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "one cross"]))
    adapter = load_adapter(folder)
    height, width = family.IMAGE_SIZE
    recipe = {
        "model": {"teacher": folder, "num_inference_steps": 4, "height": height, "width": width},
        "student": {"num_steps": 2},
        "objective": {"name": objective},
        "data": {"prompts": str(tmp_path / "prompts.txt")},
        "train": {"num_updates": 2, "batch_size": 2, "fake_updates": 1, "learning_rate": 1e-3},
        "output": {"folder": str(tmp_path / "run")},
    }
    latents = image_noise([0], adapter.latent_shape(height, width))
    encoded, decoded = adapter.encode(PROMPTS), adapter.decode(latents)
    start = adapter.load_network().state_dict()
    trainer = new_trainer(Recipe.model_validate(recipe), adapter)
    rows = [trainer.iterate() for _ in range(2)]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    for role, moves in (("student", True), ("fake_score", True), ("teacher", False)):
        now = trainer.network(role).state_dict()
        assert any(not torch.equal(now[name], tensor) for name, tensor in start.items()) == moves, role
    for name, tensor in adapter.encode(PROMPTS).tensors.items():
        assert torch.equal(tensor, encoded.tensors[name]), name
    assert torch.equal(adapter.decode(latents), decoded)


def test_gradient_checkpointing_leaves_gradients_as_they_are(teacher):
    adapter, shape = teacher.adapter, teacher.latent_shape()
    network = adapter.load_network().train()
    if not network._supports_gradient_checkpointing:
        pytest.skip("the stock network has none")
    x_t, t, cond = image_noise([0, 1], shape), torch.tensor([0.9, 0.4]), adapter.encode(PROMPTS)

    def gradients():
        network.zero_grad(set_to_none=True)
        prediction = adapter.predict(network, x_t, t, cond, teacher.embedded_guidance)
        (prediction.x0.square().mean() + prediction.eps.square().mean()).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    plain = gradients()
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    checkpointed = gradients()
    assert checkpointed.keys() == plain.keys()
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 1e-2
    for name, gradient in plain.items():
        assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("number", [None, 1])
def test_only_the_first_blocks_are_recomputed(number, teacher):
    adapter = teacher.adapter
    if not adapter.network_class._supports_gradient_checkpointing:
        pytest.skip("the stock network has none")
    roles = make_roles(adapter.load_network())
    enable_gradient_checkpointing(roles, adapter.block_lists, number)
    blocks, calls = network_blocks(roles.networks["student"], adapter.block_lists), Counter()
    for i, block in enumerate(blocks):
        for part in block.modules():
            part.register_forward_pre_hook(lambda part, args, i=i: calls.update([(i, part)]))
    x_t, cond = image_noise([0], teacher.latent_shape()), adapter.encode(PROMPTS[:1])
    prediction = adapter.predict(
        roles.networks["student"].train(), x_t, torch.tensor([0.9]), cond, teacher.embedded_guidance
    )
    before = calls.copy()
    prediction.x0.square().mean().backward()
    assert {i for i, _ in calls - before} == set(range(len(blocks) if number is None else number)) and len(blocks) > 1


def test_block_lists_and_lora_targets_name_parts_of_the_network(teacher):
    for name in teacher.adapter.block_lists:
        assert isinstance(getattr(teacher.network, name), nn.ModuleList), name
    linear = [f".{name}" for name, module in teacher.network.named_modules() if isinstance(module, nn.Linear)]
    for target in teacher.adapter.lora_targets:
        assert any(name.endswith(f".{target}") for name in linear), target


def test_a_folder_without_weights_is_enough_to_plan(family, folder, teacher, tmp_path):
    shutil.copytree(folder, tmp_path / "json", ignore=shutil.ignore_patterns("*.safetensors"))
    adapter = load_adapter(str(tmp_path / "json"))
    shape = adapter.latent_shape(*family.IMAGE_SIZE)
    assert shape == teacher.latent_shape()
    for kind in ("stock_grid", "uniform_grid"):
        assert getattr(adapter, kind)(NUM_STEPS, shape) == getattr(teacher.adapter, kind)(NUM_STEPS, shape)
    grid = adapter.uniform_grid(NUM_STEPS, shape)
    adapter.call_arguments(adapter.student_scheduler("ode", grid, shape), grid, adapter.embedded_guidance)
    with pytest.raises(ValueError, match="weights"):
        adapter.load_network()


def test_sizes_that_do_not_divide_are_refused(family, teacher):
    height, width = family.IMAGE_SIZE
    for size, name in (((height + 1, width), "height"), ((height, width + 1), "width")):
        with pytest.raises(ValueError, match=f"{name} must be divisible by"):
            teacher.adapter.latent_shape(*size)


def test_a_renoising_step_is_the_stock_schedulers(teacher, randn):
    adapter, shape = teacher.adapter, teacher.latent_shape()
    if not isinstance(adapter.path, FlowPath):
        pytest.skip("not a flow; the family's own tests say which scheduler re-noises")
    grid = adapter.uniform_grid(NUM_STEPS, shape)
    scheduler = adapter.student_scheduler("renoise", grid, shape)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and scheduler.config.stochastic_sampling
    # Pipelines with dynamic shifting pass mu whether it counts or not.
    drawn_grid(scheduler, NUM_STEPS, pipeline_gives_sigmas=adapter.pipeline_gives_sigmas, mu=0.7)
    noise, velocity = randn(0, 1, *shape), randn(1, 1, *shape)
    generator = torch.Generator().manual_seed(5)
    stock = scheduler.step(velocity, scheduler.timesteps[0], noise, generator=generator).prev_sample
    seen = []

    def denoise(x_t, t, cond):
        seen.append(x_t)
        return from_velocity(x_t, velocity, t)

    cond = adapter.encode([""])
    student_rollout(denoise, adapter.path, noise, cond, grid=grid, renoise=lambda i: randn(5, 1, *shape))
    assert_close(seen[1], stock, atol=1e-6, rtol=1e-6)


def test_prompts_are_given_to_text_encoders_on_the_device_that_these_were_moved_to(folder):
    """Of a training on a GPU; here on a device without values, so that no call of an encoder is made."""
    adapter = load_adapter(folder)
    adapter.texts.to("meta")
    encoders = [part for part in adapter.texts.components.values() if isinstance(part, nn.Module)]
    given = []

    def look(encoder, args, named):
        given.extend(value for value in (*args, *named.values()) if isinstance(value, torch.Tensor))
        raise InterruptedError

    for encoder in encoders:
        encoder.register_forward_pre_hook(look, with_kwargs=True)
    with pytest.raises(InterruptedError):
        adapter.encode(PROMPTS)
    assert given and all(tensor.is_meta for tensor in given)


def test_prompts_that_a_text_encoder_cuts_are_counted(teacher):
    tokenizers_ = tokenizers(teacher.adapter.texts, teacher.adapter.token_limits)
    assert set(tokenizers_) == {name for name, _ in teacher.adapter.token_limits}
    for name, tokenizer_and_limit in tokenizers_.items():
        assert lint_prompts(["a cross"], {name: tokenizer_and_limit}) == []
        (message,) = lint_prompts(["a cross", "cross " * 2000], {name: tokenizer_and_limit})
        assert message.startswith(f"1 of 2 different prompts are longer than the {tokenizer_and_limit[1]} tokens")


def test_cached_embeddings_equal_live_ones(teacher, tmp_path):
    adapter, shape = teacher.adapter, teacher.latent_shape()
    cache = EmbeddingCache(tmp_path, adapter)
    prompts = [*PROMPTS, "one", ""]
    cache.ensure(prompts, progress=False)
    noise, t = image_noise([0], shape), torch.tensor([0.7])
    for prompt in prompts:
        cached, live = cache.condition([prompt]), adapter.encode([prompt])
        assert {name: (v.shape, v.dtype) for name, v in cached.tensors.items()} == {
            name: (v.shape, v.dtype) for name, v in live.tensors.items()
        }
        with torch.no_grad():
            a, b = (adapter.predict(teacher.network, noise, t, c, teacher.embedded_guidance) for c in (cached, live))
        assert_close(a.x0, b.x0, atol=1e-5, rtol=1e-5)
