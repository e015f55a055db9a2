"""Measure the perceptual distance of the built-in world: its sensitivity, its gradients, its cost.

    python benchmarks/perceptual.py distances
    python benchmarks/perceptual.py gradients --updates 30
    python benchmarks/perceptual.py seconds
    python benchmarks/perceptual.py memory

distances: for pairs of scenes that differ in one property (512 pairs each), the mean distance, the share of pairs that
    are further apart than after a shift by one pixel, and the mean squared error of the pixels.
gradients: norms of the gradients of the student's weights from the two terms of scenes_dmd_perceptual, both with
    weight 1, at the start, after a third of --updates and after --updates of the recipe; three micro-batches each.
seconds: CPU seconds of one iteration (median of five) of DMD, of both variants of the perceptual term, and of the
    adversarial term.
memory: peak memory of a forward and backward pass with one 1024 x 1024 image, through an autoencoder like SD3's and
    through VGG16, on tensors without data.

Each takes one to a few minutes on one core.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from benchmarks.trainers import new_trainer
from dpdmd.method.objective import Objective
from dpdmd.method.randomness import generator
from dpdmd.planning.memory import LiveBytes
from dpdmd.recipe.toml import load_recipe
from dpdmd.training.updates import student_loss
from dpdmd.vision.perceptual import Lpips, PerceptualDistance, lpips_shapes, perceptual_distance
from dpdmd.world.scenes import DISCRETE_FACTORS, IMAGE_SIZE, Scenes, render, sample_scenes

NUM_PAIRS = 512
NUM_BATCHES = 3
FOLDER = "output.folder=runs/perceptual"  # nothing is written there


def changes(scenes: Scenes, rng: torch.Generator) -> dict[str, Tensor]:
    """{what is different: images}."""
    base, values = render(scenes), scenes.continuous

    def moved(**continuous: Tensor) -> Tensor:
        return render(Scenes(scenes.discrete, values | continuous))

    def another(factor: str) -> Tensor:
        number = len(DISCRETE_FACTORS[factor])
        step = torch.randint(1, number, (len(scenes),), generator=rng)
        return render(Scenes(scenes.discrete | {factor: (scenes.discrete[factor] + step) % number}, values))

    return {
        **{f"moved by {px:g} pixels": moved(x=values["x"] + px) for px in (0.25, 0.5, 1, 2, 4)},
        **{f"turned by {degrees} degrees": moved(rotation=values["rotation"] + degrees) for degrees in (5, 15)},
        **{f"radius larger by {px:g}": moved(radius=values["radius"] + px) for px in (0.5, 1, 3)},
        **{f"brighter by {step:g}": base + step for step in (0.1, 0.4)},
        **{f"noise of std {std:g}": base + std * torch.randn(base.shape, generator=rng) for std in (0.05, 0.2)},
        **{f"another {factor}": another(factor) for factor in ("shape", "colour", "background")},
        "on the other side": moved(x=IMAGE_SIZE - values["x"]),
        "another scene": render(sample_scenes(len(scenes), rng)),
    }


@torch.no_grad()
def distances() -> None:
    """A table of `changes`."""
    rng, distance = generator(0, "perceptual"), PerceptualDistance("scenes", (IMAGE_SIZE, IMAGE_SIZE))
    scenes = sample_scenes(NUM_PAIRS, rng)
    base, images = render(scenes), changes(scenes, rng)
    near = distance(images["moved by 1 pixels"], base)
    print("| change | distance | further apart than one pixel | squared error of pixels |\n|---|---|---|---|")
    for name, changed in images.items():
        d, error = distance(changed, base), F.mse_loss(changed, base)
        print(f"| {name} | {d.mean():.3f} | {(d > near).float().mean():.2f} | {error:.3f} |")


def gradients(updates: int) -> None:
    """Norms and cosine of the two terms' gradients."""
    trainer = new_trainer(load_recipe("scenes_dmd_perceptual", [FOLDER]))
    terms = [replace(term, weight=1.0) for term in trainer.plan.objective.terms]
    parameters = trainer.updaters["student"].parameters

    def gradient(term, index: int) -> Tensor:
        batch = trainer.batches.micro_batch("student", trainer.step, index)
        x0 = trainer.parts.teacher_samples(batch) if trainer.parts.teacher_samples else None
        loss = student_loss(
            trainer.denoisers, replace(trainer.plan, objective=Objective((term,))), batch, teacher_x0=x0
        )
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.total, parameters)])

    print("| updates | DMD | perceptual | ratio | cosine |\n|---|---|---|---|---|")
    while True:
        if trainer.step in (0, updates // 3, updates):
            for index in range(NUM_BATCHES):
                dmd, perceptual = (gradient(term, index) for term in terms)
                ratio, cosine = perceptual.norm() / dmd.norm(), F.cosine_similarity(dmd, perceptual, dim=0)
                print(f"| {trainer.step} | {dmd.norm():.2f} | {perceptual.norm():.2f} | {ratio:.1f} | {cosine:.2f} |")
        if trainer.step == updates:
            return
        trainer.iterate()


def seconds() -> None:
    """Median of five iterations, after one as warm-up."""
    perceptual = "objective.perceptual.num_pairs="
    runs = {
        "DMD": ("scenes_dmd", []),
        "DMD + perceptual, new noise": ("scenes_dmd_perceptual", [perceptual]),
        "DMD + perceptual, samples kept": ("scenes_dmd_perceptual", [perceptual + "32"]),
        "DMD + adversarial": ("scenes_dmd_adversarial", ["objective.adversarial.num_real=32"]),
    }
    print("| objective | CPU seconds per update |\n|---|---|")
    for name, (recipe, overrides) in runs.items():
        trainer = new_trainer(load_recipe(recipe, [FOLDER, *overrides]))
        trainer.iterate()
        times = []
        for _ in range(5):
            started = time.process_time()
            trainer.iterate()
            times.append(time.process_time() - started)
        print(f"| {name} | {median(times):.2f} |")


def memory() -> None:
    """The largest number of GiB alive at a time."""

    def peak(shape: tuple[int, ...], see: Callable[[Tensor], list[Tensor]], precision: str) -> float:
        given = torch.randn(shape, requires_grad=True)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            seen = see(given)
        with live:
            perceptual_distance(seen, [maps.detach() for maps in seen]).sum().backward()
        return live.peak / 2**30

    print("| precision | autoencoder | VGG16 |\n|---|---|---|")
    with FakeTensorMode(allow_non_fake_inputs=True):
        levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        autoencoder = AutoencoderKL(**levels, **blocks).requires_grad_(False)
        shapes = lpips_shapes((64, 3, 3, 3))
        backbone = Lpips({name: torch.empty(shape) for name, shape in shapes.items()}).requires_grad_(False)
        for precision in ("fp32", "bf16"):
            decoding = peak((1, 16, 128, 128), lambda z: [autoencoder.decode(z).sample], precision)
            features = peak((1, 3, 1024, 1024), backbone, "fp32")
            print(f"| {precision} | {decoding:.1f} GiB | {features:.1f} GiB |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("distances", "gradients", "seconds", "memory"), help="what to measure")
    parser.add_argument("--updates", type=int, default=30, help="number of student updates for gradients; default: 30")
    arguments = parser.parse_args()
    if arguments.what == "gradients":
        gradients(arguments.updates)
    else:
        {"distances": distances, "seconds": seconds, "memory": memory}[arguments.what]()
