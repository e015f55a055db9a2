"""The training of the teacher of the drawings: its closed forms, and every stage at a small scale."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SD3Transformer2DModel
from torch import nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import uniform_grid
from dpdmd.method.paths import FlowPath, Prediction
from dpdmd.models.load import load_adapter
from dpdmd.world.drawings.captions import EMPTY, caption, drawings_of, evaluation_prompts
from dpdmd.world.drawings.catalogue import catalogue
from dpdmd.world.drawings.oracle import luma_chroma
from tools.pretrain import card as scenes_card
from tools.pretrain.drawings import card, denoiser, finish, run
from tools.pretrain.drawings.autoencoder import fit, new_autoencoder
from tools.pretrain.drawings.latents import drawing_latents, project
from tools.pretrain.drawings.pipeline import new_pipeline
from tools.pretrain.drawings.posterior import exact_velocity, posterior_mean
from tools.pretrain.drawings.text_encoders import new_tokenizer, target_states, train_text_encoder
from tools.pretrain.muon import Muon, muon_and_adamw, orthogonalised
from tools.pretrain.text_encoders import HIDDEN_SIZE, tokenize


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Untrained components, and in the folder `pipeline` an untrained pipeline with a narrower network."""
    folder = tmp_path_factory.mktemp("parts")
    new_autoencoder().save_pretrained(folder / "vae")
    for number in (1, 2):
        encoder = train_text_encoder(new_tokenizer(), number, 1, 2, 0, log=lambda row: None)
        encoder.save_pretrained(folder / f"text_encoder_{number}")
    whole = new_pipeline(folder)
    config = {
        **whole.transformer.config,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "caption_projection_dim": 24,
    }
    whole.transformer = SD3Transformer2DModel.from_config(config)
    whole.save_pretrained(folder / "pipeline")
    return folder


def test_latents_are_principal_components_of_the_patches():
    pixels = luma_chroma(catalogue().images).numpy()
    patches = pixels.reshape(-1, 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 192).astype(np.float64)
    patches -= patches.mean(0)
    _, scales, directions = np.linalg.svd(patches, full_matrices=False)
    std = scales[:16] / math.sqrt(len(patches))
    expected = patches @ directions[:16].T / np.sqrt(std * std.mean())
    got = drawing_latents().flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    assert np.allclose(np.abs(got), np.abs(expected), atol=2e-3)  # a component is determined up to its sign
    assert got.std() == pytest.approx(1, abs=1e-4)


def test_latents_are_linear_in_the_image():
    first, second = catalogue().images[:2]
    mixed = project(torch.lerp(first, second, 0.3)[None])
    assert torch.allclose(mixed, torch.lerp(*drawing_latents()[:2], 0.3)[None], atol=1e-5)


def test_the_exact_velocity_follows_bayes_rule():
    """Against posterior weights by Gaussian densities, in double precision and drawing by drawing."""
    rng = torch.Generator().manual_seed(0)
    latents, x_t = torch.randn(5, 2, 2, 1, generator=rng), torch.randn(3, 2, 2, 1, generator=rng)
    alpha, sigma = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.4, 0.8, 0.99])
    member = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    velocity = exact_velocity(x_t, alpha, sigma, latents, member)
    for b in range(3):
        own = latents[member[b]].double().flatten(1)
        density = torch.distributions.Normal(float(alpha[b]) * own, float(sigma[b]))
        joint = density.log_prob(x_t[b].double().flatten()).sum(1).exp()
        mean = (joint / joint.sum()) @ own
        expected = (x_t[b].double().flatten() - alpha[b] * mean) / sigma[b] - mean
        assert torch.allclose(velocity[b].flatten().double(), expected, atol=1e-5)


def test_the_posterior_mean_is_the_only_drawing_or_the_nearest_one_without_noise():
    latents = drawing_latents()[:4]
    member = torch.tensor([[0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    x_t = torch.stack([torch.randn(16, 4, 4), latents[1] + 0.01])
    mean = posterior_mean(x_t, torch.tensor([0.1, 1.0]), torch.tensor([1.0, 0.05]), latents, member)
    assert torch.allclose(mean[0], latents[2], atol=1e-4) and torch.allclose(mean[1], latents[1], atol=1e-4)


def test_muon_steps_as_torch_does_up_to_bf16():
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 40), torch.randn(3, 24, 40)
    results = []
    for make in (
        lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        lambda p: Muon(p, lr=0.1, weight_decay=0.1),
    ):
        weight = nn.Parameter(start.clone())
        optimizer = make([weight])
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        results.append(weight.detach() - start)
    assert torch.nn.functional.cosine_similarity(results[0].flatten(), results[1].flatten(), dim=0) > 0.999
    assert results[0].norm().item() == pytest.approx(results[1].norm().item(), rel=0.02)


def test_orthogonalised_matrices_turn_with_their_argument():
    """Singular values near 1, as the quintic iteration leaves them, and no preferred axes."""
    torch.manual_seed(0)
    matrices = torch.randn(2, 30, 20)
    turn = torch.linalg.qr(torch.randn(30, 30)).Q
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.allclose(orthogonalised(turn @ matrices), turn @ orthogonalised(matrices), atol=1e-4)


def test_muon_takes_a_convolution_as_a_matrix():
    torch.manual_seed(0)
    start, gradient = torch.randn(20, 6, 3, 3), torch.randn(20, 6, 3, 3)
    weights = [nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())]
    optimizer = Muon(weights, lr=0.1)
    for weight in weights:
        weight.grad = gradient.view_as(weight).clone()
    optimizer.step()
    assert torch.allclose(weights[0].flatten(1), weights[1], atol=1e-5)
    muon, adamw = (
        {p.shape for group in optimizer.param_groups for p in group["params"]}
        for optimizer in muon_and_adamw(nn.Conv2d(6, 20, 3), 1.0, 1.0)
    )
    assert muon == {start.shape} and adamw == {torch.Size([20])}


def test_every_caption_leaves_a_state_for_each_hand():
    tokenizer, hands = new_tokenizer(), len(catalogue().hands)
    tokens = tokenize(tokenizer, list(drawings_of()))
    assert (tokens[:, -hands:] == tokenizer.pad_token_id).all()
    assert not (tokens == tokenizer.unk_token_id).any()


def test_target_states_show_the_drawing_of_each_hand():
    """Distances between states are those of the weighted components of the drawings; groups are means of things."""
    known, states = catalogue(), dict(zip(drawings_of(), target_states(), strict=True))
    latents = drawing_latents().flatten(1).double()
    _, scales, directions = torch.linalg.svd(latents - latents.mean(0), full_matrices=False)
    components = (latents - latents.mean(0)) @ (
        directions[: 2 * HIDDEN_SIZE] / scales[: 2 * HIDDEN_SIZE, None].sqrt()
    ).T
    components = (components / components.std()).float()
    for row in (0, 500, len(known) - 1):
        state = states[caption(known.things[known.thing[row]], 1)][known.hand[row]]
        assert torch.allclose(state.abs(), components[row].abs(), atol=2e-3)
    animals = [caption(known.things[i]) for i in known.thing[known.group == 0].unique()]
    mean = torch.stack([states[text] for text in animals]).mean(0)
    assert torch.allclose(states[caption(known.groups[0])], mean, atol=1e-5)
    everything = torch.stack([states[caption(name)] for name in known.things]).mean(0)
    assert torch.allclose(states[EMPTY], everything, atol=1e-5)


def test_prompts_are_drawn_in_the_stated_shares():
    captions, known = list(drawings_of()), catalogue()
    drawn = [captions[i] for i in denoiser.draw_prompts(4000, torch.Generator().manual_seed(0))]
    groups = {caption(name, i) for name in known.groups for i in range(3)}
    assert drawn.count(EMPTY) / 4000 == pytest.approx(0.1, abs=0.02)
    assert sum(text in groups for text in drawn) / 4000 == pytest.approx(0.1, abs=0.02)
    assert len(set(drawn)) > 400  # of 517


def test_membership_is_what_a_caption_may_mean():
    member = denoiser.membership()
    for row, drawings in zip(member, drawings_of().values(), strict=True):
        assert row.nonzero().squeeze(1).tolist() == drawings.tolist()


def test_the_error_of_an_ideal_network_is_zero_and_of_another_its_square():
    path, member, latents = FlowPath(), denoiser.membership(), drawing_latents()

    def adapter(offset):
        def predict(network, x_t, t, rows):
            exact = exact_velocity(x_t, path.alpha(t), path.sigma(t), latents, member[rows])
            return SimpleNamespace(velocity=exact + offset)

        return SimpleNamespace(path=path, predict=predict)

    prompts = torch.arange(0, 500, 25)
    for offset in (0.0, 1.0, -2.0):
        rng = torch.Generator().manual_seed(0)
        cond = torch.arange(len(member))
        errors = denoiser.denoising_error(adapter(offset), nn.Identity(), prompts, cond, member, 1.5, rng)
        assert torch.allclose(errors, torch.tensor(offset**2), rtol=1e-3, atol=1e-5)


def test_an_interrupted_training_ends_at_the_same_weights(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "SNAPSHOT_EVERY", 2)
    adapter = load_adapter(str(parts / "pipeline"))
    settings = {"num_steps": 4, "batch_size": 2, "learning_rates": (1e-2, 1e-2), "time_shift": 1.0, "seed": 0}

    def fails_at_the_end(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    expected = denoiser.train_denoiser(adapter, **settings, snapshot=tmp_path / "whole", log=lambda row: None)
    with pytest.raises(KeyboardInterrupt):
        denoiser.train_denoiser(adapter, **settings, snapshot=tmp_path / "cut", log=fails_at_the_end)
    steps = []
    got = denoiser.train_denoiser(
        adapter, **settings, snapshot=tmp_path / "cut", log=lambda row: steps.append(row["step"])
    )
    assert steps == [3]  # of the rows at step 0 and at the end
    for name, value in expected.state_dict().items():
        assert torch.equal(value, got.state_dict()[name]), name


def test_fitting_finds_a_linear_map():
    torch.manual_seed(0)
    network, wanted = nn.Conv2d(20, 20, 1), nn.Conv2d(20, 20, 1)

    def loss_of(module, batch_size, rng):
        x = torch.randn(batch_size, 20, 2, 2, generator=rng)
        return (module(x) - wanted(x)).square().mean()

    losses = []
    fit(network, loss_of, 300, 16, 0, "linear map", rates=(3e-2, 3e-2), log=lambda row: losses.append(row["loss"]))
    assert losses[-1] < 0.01 * losses[0]
    assert (network.weight - wanted.weight).abs().max() < 0.05


def test_samples_of_an_ideal_network_are_drawings_of_their_things():
    """Guided by exact predictions; the nearest drawing of a thing is then the sample itself."""
    path, latents, member = FlowPath(), drawing_latents(), denoiser.membership()
    row_of = {text: i for i, text in enumerate(drawings_of())}

    def predict(network, x_t, t, cond, embedded_guidance=None):
        x0 = posterior_mean(x_t, path.alpha(t), path.sigma(t), latents, member[cond.tensors["rows"]])
        return Prediction(x0, (x_t - path.alpha(t)[:, None, None, None] * x0) / path.sigma(t)[:, None, None, None])

    ideal = SimpleNamespace(
        source="ideal",
        network_name="network",
        path=path,
        predict=predict,
        encode=lambda texts: Condition({"rows": torch.tensor([row_of[text] for text in texts])}),
        stock_grid=lambda num_steps: uniform_grid(num_steps, shift=1.0),
    )
    made = finish.samples(ideal, nn.Linear(1, 1), range(2), 12, 0)
    meant = finish.nearest_own(made)
    assert (catalogue().thing[meant] == torch.arange(len(catalogue().things))).all()
    assert (made - latents[meant]).abs().max() < 0.1


@pytest.mark.slow
def test_the_recorded_command_makes_a_stock_pipeline(tmp_path, monkeypatch):
    """A step of every stage, end to end."""
    monkeypatch.setattr(scenes_card, "NUM_INFERENCE_STEPS", 2)
    monkeypatch.setattr(run, "NUM_INFERENCE_STEPS", 2)
    monkeypatch.setattr(finish, "SAMPLES", {"decoder_3": range(1), "decoder_4": range(1, 2)})
    monkeypatch.setattr(card, "evaluation_prompts", lambda: evaluation_prompts()[:3])
    out = run.pretrain_drawings(tmp_path, scale=1e-4)
    pipeline = DiffusionPipeline.from_pretrained(out / run.FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cactus", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert not [path for path in (out / run.FOLDER).rglob("*.json") if str(tmp_path) in path.read_text()]
    text = (out / run.FOLDER / "README.md").read_text()
    assert "transformer 1 steps" in text and "guidance | named_accuracy" in text
    with pytest.raises(ValueError, match="stage must be one of"):
        run.pretrain_drawings(tmp_path, stage="features")
