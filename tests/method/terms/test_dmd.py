import pytest
import torch
from torch.testing import assert_close

from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import FlowPath, Prediction
from dpdmd.method.terms.dmd import Dmd, score_health

STUDENT_GRID = uniform_grid(4, shift=3)


def dmd(scale=3.0, *, low=0.02, high=0.98, shift=1.0, normalisation="dpdmd"):
    return Dmd(guidance=Guidance(scale), tau_low=low, tau_high=high, tau_shift=shift, normalisation=normalisation)


@pytest.mark.parametrize("detach_first", [False, True])
def test_dmd_trains_the_student_after_the_cut_and_no_other_role(detach_first, networks, micro_batch, student_step):
    student, teacher, fake = networks
    step = student_step(*networks, **micro_batch, detach_first=detach_first)
    dmd()(step).loss.backward()
    assert student.steps_with_gradient() == [not detach_first, True, True, True]
    assert teacher.denoise.steps_with_gradient() == fake.denoise.steps_with_gradient() == [False] * 4


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
def test_dmd_gradient_at_the_samples_is_that_of_the_formula(normalisation, networks, micro_batch, student_step):
    step = student_step(*networks, **micro_batch)
    x = step.rollout.x0
    x.retain_grad()
    dmd(3.0, normalisation=normalisation)(step).loss.backward()

    _, teacher, fake = networks
    ((x_tau, tau, fake_cond),) = fake.calls
    ((teacher_x, teacher_t, _),) = teacher.calls
    assert torch.equal(teacher_x[:4], x_tau) and torch.equal(teacher_t[:4], tau)
    assert torch.equal(fake_cond.tensors["mean"], step.cond.tensors["mean"])
    tau_ = tau[:, None, None, None]
    noise = (x_tau - (1 - tau_) * x.detach()) / tau_
    assert abs(noise.mean()) < 0.4 and abs(noise.std() - 1) < 0.3  # 96 standard normal values
    assert len(noise.round(decimals=2).unique()) > 70  # and not some of them for every sample or channel

    with torch.no_grad():
        c, u = (teacher.denoise(x_tau, tau, cond).x0 for cond in (step.cond, step.uncond))
        real = u + 3 * (c - u)
        unlike = {"dmd2": x, "dpdmd": x_tau}[normalisation] - real
        norms = torch.stack([row.abs().mean() for row in unlike])
        expected = (fake.denoise(x_tau, tau, step.cond).x0 - real) / norms[:, None, None, None] / x.numel()
    assert_close(x.grad, expected, atol=1e-6, rtol=1e-3)


def test_the_scores_are_evaluated_without_a_graph(networks, micro_batch, student_step):
    dmd()(student_step(*networks, **micro_batch))
    assert networks[1].grad_enabled == networks[2].grad_enabled == [False]


def test_tau_is_stratified_over_the_batch_inside_its_range(networks, micro_batch, student_step):
    dmd(low=0.2, high=0.6)(student_step(*networks, **micro_batch))
    _, tau, _ = networks[2].calls[0]
    assert ((tau - 0.2) / 0.4 * 4).floor().sort().values.tolist() == [0, 1, 2, 3]
    dmd(low=0.2, high=0.6, shift=3.0)(student_step(*networks, **micro_batch))
    u, shifted = (tau - 0.2) / 0.4, networks[2].calls[1][1]
    assert_close(shifted, 0.2 + 0.4 * 3 * u / (1 + 2 * u))


def test_the_draws_are_named_by_the_micro_batch(networks, micro_batch, student_step):
    for seed in (5, 5, 6):
        dmd()(student_step(*networks, **micro_batch, seed=seed))
    (x_a, tau_a, _), (x_b, tau_b, _), (x_c, tau_c, _) = networks[2].calls
    assert torch.equal(x_a, x_b) and torch.equal(tau_a, tau_b)
    assert not torch.equal(x_a, x_c) and not torch.equal(tau_a, tau_c)


@pytest.mark.parametrize("normalisation", ["dmd2", "dpdmd"])
def test_dmd_moves_a_student_to_the_guided_distribution_of_its_teacher(
    normalisation, stepwise_network, exact_gaussian, prompts, student_step
):
    # Exact scores: the teacher's N(mean, .5^2) by prompt, the student's own Gaussian at every update. One step from
    # noise makes x0 = (1 - weight) z - bias - gain mean. The only fixed point is the guided teacher: u + s (c - u),
    # width .5.
    path, scale, std = FlowPath(), 2.0, 0.5
    cond, uncond = prompts([1.0, -1.0] * 16), prompts([0.25] * 32)
    student = stepwise_network((1.0, 0.0), seed=3)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

    def fake_score(x_t, t, cond):
        mean = -student.bias - student.gain * cond.tensors["mean"]
        return exact_gaussian(path, abs(1 - student.weight.item()))(x_t, t, prompts(mean.detach()))

    rng = torch.Generator().manual_seed(0)
    for update in range(200):
        step = student_step(
            student,
            exact_gaussian(path, std),
            fake_score,
            noise=torch.randn(32, 1, 2, 2, generator=rng),
            cond=cond,
            uncond=uncond,
            student_grid=Grid((1.0, 0.0)),
            seed=update,
        )
        optimizer.zero_grad()
        dmd(scale, normalisation=normalisation)(step).loss.backward()
        optimizer.step()
        schedule.step()

    means = [-student.bias.item() - student.gain.item() * c for c in (1.0, -1.0)]
    expected = [0.25 + scale * (c - 0.25) for c in (1.0, -1.0)]
    assert means == pytest.approx(expected, abs=0.05)
    assert abs(1 - student.weight.item()) == pytest.approx(std, abs=0.05)


def test_health_compares_the_scores_as_seen_from_the_samples(randn):
    x, r = randn(0, 3, 2, 4, 4), randn(1, 3, 2, 4, 4)

    def health(multiple):
        return score_health(x, Prediction(x + r, x), Prediction(x + multiple * r, x))

    assert health(1.0) == pytest.approx({"cosine": 1, "relative_gap": 0, "magnitude_ratio": 1}, abs=1e-5)
    assert health(2.0) == pytest.approx({"cosine": 1, "relative_gap": 1, "magnitude_ratio": 2}, abs=1e-5)
    assert health(-0.5) == pytest.approx({"cosine": -1, "relative_gap": 1.5, "magnitude_ratio": 0.5}, abs=1e-5)
