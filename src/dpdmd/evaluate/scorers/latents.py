"""Scores from the latents of images and their teacher, without any further network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.evaluate.diversity import pairwise_distance
from dpdmd.evaluate.intervals import mean_estimate, ratio_estimate
from dpdmd.evaluate.scores import Scores
from dpdmd.method.residual import residual


@dataclass(frozen=True)
class Latents:
    """Latents x0 (P * R, C, H, W) of images, and what the teacher's denoising makes of them (`method.residual`)."""

    x0: Tensor
    denoised: Tensor


def latent_scores(num_prompts: int, ours: Latents, of_teacher: Latents) -> Scores:
    """ "agreement" with the teacher; of two images per prompt or more "latent_diversity", its share, "latent_distance".

    agreement: the teacher's residual on its own images, divided by that on ours. latent_diversity: mean distance of the
    denoised latents of a prompt, so that a student's noise is not taken for diversity. latent_distance: mean absolute
    difference from the teacher's latents of the same noise, divided by that between the teacher's of one prompt.
    Averaged over prompts. How much these say: benchmarks/in_run_quality.py.
    """

    def per_prompt(latents: Tensor) -> Tensor:
        return latents.flatten(1).unflatten(0, (num_prompts, -1))

    here, there = (residual(x.x0, x.denoised).unflatten(0, (num_prompts, -1)).mean(1) for x in (ours, of_teacher))
    estimates = {"agreement": ratio_estimate(there.tolist(), here.tolist())}
    if len(ours.x0) > num_prompts:
        mine, theirs = (pairwise_distance(per_prompt(x.denoised)).tolist() for x in (ours, of_teacher))
        distance, spread = _differences(per_prompt(ours.x0).double(), per_prompt(of_teacher.x0).double())
        estimates |= {"latent_diversity": mean_estimate(mine), "latent_diversity_share": ratio_estimate(mine, theirs)}
        estimates["latent_distance"] = ratio_estimate(distance.tolist(), spread.tolist())
    return Scores(estimates)


def _differences(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |x_i - y_i| and mean |y_i - y_j|, i != j, of each prompt; x, y: (P, R, D)."""
    number, size = y.shape[1:]
    between = torch.cdist(y, y, p=1).sum((1, 2)) / (number * (number - 1) * size)
    return (x - y).abs().mean((1, 2)), between
