"""Train the built-in flow further so that it draws scenes of other heights and widths as well.

    python -m tools.pretrain.sizes --out runs/sizes/teacher          about an hour on one quiet core

A scene of another size is the same plane seen through another window around the centre of the usual one: at 24 x 40 it
loses four rows at the top and at the bottom, and shows four more columns on either side. Every step has one size, as an
update of a student has. The result is a pipeline folder, for `benchmarks.sizes`.
"""

import argparse
import itertools
import shutil
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dpdmd.method.losses import denoising_loss
from dpdmd.method.paths import add_noise
from dpdmd.method.randomness import generator
from dpdmd.models.load import built_in_teacher, load_adapter
from dpdmd.store.files import atomic_folder
from dpdmd.world.captions import all_captions
from dpdmd.world.scenes import IMAGE_SIZE, Scenes, render, sample_scenes
from tools.pretrain.denoiser import draw_batch, learning_rate_factor

SIZES = ((32, 32), (24, 40), (40, 24))
NUM_STEPS, BATCH_SIZE, LEARNING_RATE, TIME_SHIFT, EMA_DECAY = 4000, 96, 5e-4, 1.5, 0.995
NUM_SCENES = 20_000


def render_window(scenes: Scenes, height: int, width: int) -> Tensor:
    """Scenes through a window (B, 3, height, width) around their centre, put together from shifted renderings."""
    picture = torch.empty(len(scenes), 3, height, width)
    corners = ([*range(0, side - IMAGE_SIZE, IMAGE_SIZE), max(side - IMAGE_SIZE, 0)] for side in (height, width))
    for top, left in itertools.product(*corners):
        moved = dict(scenes.continuous)
        moved["x"] = moved["x"] + (width - IMAGE_SIZE) / 2 - left
        moved["y"] = moved["y"] + (height - IMAGE_SIZE) / 2 - top
        tile = render(Scenes(scenes.discrete, moved))
        place = picture[:, :, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
        place.copy_(tile[:, :, : place.shape[2], : place.shape[3]])
    return picture


@torch.no_grad()
def window_latents(adapter, scenes: Scenes, height: int, width: int) -> Tensor:
    """Latents (N, 4, height / 4, width / 4) of scenes."""
    chunks = torch.arange(len(scenes)).split(500)
    return torch.cat([adapter.encode_images(render_window(scenes[rows], height, width)) for rows in chunks])


def train_at_sizes(out: Path, *, num_steps: int = NUM_STEPS, num_scenes: int = NUM_SCENES, seed: int = 0) -> Path:
    """Write the further trained teacher to the folder `out`, which is returned; nothing is done if it exists.

    Raises FloatingPointError if the loss is not finite.
    """
    if out.exists():
        return out
    adapter = load_adapter("scenes")
    scenes = sample_scenes(num_scenes, generator(seed, "sizes_scenes"))
    latents = [window_latents(adapter, scenes, *size) for size in SIZES]
    network = adapter.load_network().train()
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    texts = ["", *all_captions()]
    row_of, conditions = {text: i for i, text in enumerate(texts)}, adapter.encode(texts)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.99))
    progress = tqdm(range(num_steps), desc="sizes")
    for step in progress:
        rng = generator(seed, "sizes_batch", step)
        own = latents[int(torch.randint(len(SIZES), (), generator=rng))]
        x0, eps, t, captions = draw_batch(scenes, own, BATCH_SIZE, TIME_SHIFT, rng)
        cond = conditions[torch.tensor([row_of[caption] for caption in captions])]
        prediction = adapter.predict(network, add_noise(adapter.path, x0, eps, t), t, cond)
        loss = denoising_loss(prediction, x0, eps, adapter.prediction_space, adapter.path, t)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * learning_rate_factor(step, num_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in network.parameters()], 1 - decay)
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
    network.load_state_dict(average, strict=False)
    with atomic_folder(out) as folder:
        shutil.copytree(built_in_teacher(), folder, dirs_exist_ok=True)
        shutil.rmtree(folder / adapter.network_name)
        network.save_pretrained(folder / adapter.network_name)  # pyright: ignore[reportCallIssue]  # a diffusers model
    return out


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder to write; nothing is done if it exists.")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help=f"Number of steps. Default: {NUM_STEPS}.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of all random numbers. Default: 0.")
    arguments = parser.parse_args()
    print(f"teacher: {train_at_sizes(arguments.out, num_steps=arguments.steps, seed=arguments.seed)}")


if __name__ == "__main__":
    main()
