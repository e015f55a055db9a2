"""Train the built-in world's perceptual features to recognise every factor of rendered, slightly degraded scenes."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpdmd.method.randomness import generator
from dpdmd.world.features import FEATURE_DIM, SceneFeatures
from dpdmd.world.scenes import (
    CONTINUOUS_FACTORS,
    DISCRETE_FACTORS,
    ROTATION_RANGE,
    SHAPES,
    SIDES,
    SIZES,
    Y_RANGE,
    Scenes,
    render,
    sample_scenes,
)

LEARNING_RATE = 2e-3
MAX_NOISE_STD = 0.15
MAX_BLUR_SIGMA = 1.0
MAX_BRIGHTNESS_SHIFT = 0.08
# Directions whose variance is below this share of the largest one are amplified no further by `balance`. Without
# balancing, shape changes the features 25 times as much as position (cosine distances 0.52 and 0.02). With 0.01, no
# factor changes them more than 4 times as much as another, and pixel noise of std 0.05 by less than 0.001.
WHITENING_FLOOR = 0.01

# Full range of each continuous factor in the world, with which regression targets are scaled to [-1, 1].
RANGES = {
    "x": (SIDES["left"][0], SIDES["right"][1]),
    "y": Y_RANGE,
    "radius": (SIZES["small"][0], SIZES["large"][1]),
    "rotation": ROTATION_RANGE,
}


class FactorHeads(nn.Module):
    """One linear head per factor on the features: logits of discrete factors, scaled values of continuous factors."""

    def __init__(self) -> None:
        super().__init__()
        self.discrete = nn.ModuleDict({f: nn.Linear(FEATURE_DIM, len(v)) for f, v in DISCRETE_FACTORS.items()})
        self.continuous = nn.Linear(FEATURE_DIM, len(CONTINUOUS_FACTORS))


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Degrade images by random blur (sigma up to 1 pixel), brightness shift and Gaussian noise (std up to 0.15)."""
    num = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, 1, 1, 1, generator=rng)

    sigma = uniform(0.05, MAX_BLUR_SIGMA)
    taps = torch.exp(-0.5 * (torch.arange(-2, 3)[None, None, None] / sigma).square())
    taps = taps / taps.sum(dim=-1, keepdim=True)
    kernel = (taps * taps.transpose(-1, -2)).expand(num, 3, 5, 5).reshape(num * 3, 1, 5, 5)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate").reshape(1, num * 3, *(s + 4 for s in images.shape[2:]))
    blurred = F.conv2d(padded, kernel, groups=num * 3).reshape(images.shape)
    noise = uniform(0, MAX_NOISE_STD) * torch.randn(images.shape, generator=rng)
    return blurred + uniform(-MAX_BRIGHTNESS_SHIFT, MAX_BRIGHTNESS_SHIFT) + noise


def factor_loss(heads: FactorHeads, features: Tensor, scenes: Scenes) -> Tensor:
    """Mean cross-entropy of the discrete factors plus mean squared error of the scaled continuous factors.

    The rotation of circles is undefined and therefore excluded.
    """
    loss = sum(F.cross_entropy(head(features), scenes.discrete[f]) for f, head in heads.discrete.items())
    low, high = torch.tensor([RANGES[f] for f in CONTINUOUS_FACTORS]).T
    values = torch.stack([scenes.continuous[f] for f in CONTINUOUS_FACTORS], dim=1)
    error = heads.continuous(features) - (2 * (values - low) / (high - low) - 1)
    defined = torch.ones_like(error)
    defined[:, CONTINUOUS_FACTORS.index("rotation")] = (scenes.discrete["shape"] != SHAPES.index("circle")).float()
    return loss / len(heads.discrete) + (defined * error.square()).sum() / defined.sum()


@torch.no_grad()
def held_out_accuracy(
    network: SceneFeatures, heads: FactorHeads, *, num_scenes: int, seed: int, degraded: bool
) -> dict[str, float]:
    """Score the heads on new scenes: share of correct discrete factors, mean absolute error of continuous factors."""
    rng = generator(seed, "features_held_out")
    scenes = sample_scenes(num_scenes, rng)
    images = augment(render(scenes), rng) if degraded else render(scenes)
    features = torch.cat([network(part) for part in images.split(256)])
    out = {}
    for factor, head in heads.discrete.items():
        out[factor] = float((head(features).argmax(1) == scenes.discrete[factor]).float().mean())
    predicted = heads.continuous(features)
    for i, factor in enumerate(CONTINUOUS_FACTORS):
        low, high = RANGES[factor]
        error = (low + (predicted[:, i] + 1) / 2 * (high - low) - scenes.continuous[factor]).abs()
        if factor == "rotation":
            error = error[scenes.discrete["shape"] != SHAPES.index("circle")]
        out[f"{factor}_error"] = float(error.mean())
    return out


@torch.no_grad()
def factor_distances(network: nn.Module, *, num_pairs: int = 1024, seed: int = 0) -> dict[str, float]:
    """Mean cosine distance between the features of two scenes that differ in a single factor, for each factor.

    The other value of a factor is drawn uniformly. A new position is drawn within its side, a new side mirrors x, a new
    size draws a new radius, and rotation is changed for all shapes but circles. "all" compares independent scenes.
    """
    rng = generator(seed, "factor_distances")
    scenes = sample_scenes(num_pairs, rng)
    fresh = sample_scenes(num_pairs, rng)
    base = network(render(scenes))
    turnable = scenes.discrete["shape"] != SHAPES.index("circle")
    out = {}
    for factor, values in DISCRETE_FACTORS.items():
        step = torch.randint(1, len(values), (num_pairs,), generator=rng)
        discrete = scenes.discrete | {factor: (scenes.discrete[factor] + step) % len(values)}
        continuous = dict(scenes.continuous)
        if factor == "side":
            continuous["x"] = 32 - continuous["x"]
        if factor == "size":
            low, high = torch.tensor(list(SIZES.values()))[discrete["size"]].T
            continuous["radius"] = low + (high - low) * torch.rand(num_pairs, generator=rng)
        other = network(render(Scenes(discrete, continuous)))
        out[factor] = float(1 - F.cosine_similarity(base, other).mean())
    low, high = torch.tensor(list(SIDES.values()))[scenes.discrete["side"]].T
    x = low + (high - low) * torch.rand(num_pairs, generator=rng)
    for name, changed, rows in (
        ("position", {"x": x, "y": fresh.continuous["y"]}, slice(None)),
        ("rotation", {"rotation": fresh.continuous["rotation"]}, turnable),
    ):
        other = network(render(Scenes(scenes.discrete, scenes.continuous | changed)))
        out[name] = float(1 - F.cosine_similarity(base, other)[rows].mean())
    out["all"] = float(1 - F.cosine_similarity(base, network(render(fresh))).mean())
    return out


@torch.no_grad()
def balance(network: SceneFeatures, images: Tensor) -> None:
    """Centre the features and partially whiten them over the world's scenes, by changing `project` and `mean`.

        feature <- (C + floor * l_max)^(-1/2) (feature - E feature)

    C is the covariance of the features, l_max its largest eigenvalue and floor = WHITENING_FLOOR. A classifier gives
    some factors a much larger scale than others, and these would dominate a pairwise cosine.
    """
    features = torch.cat([network(part) for part in images.split(256)]).double()
    centred = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    scale = (values.clamp_min(0) + WHITENING_FLOOR * values[-1]).rsqrt()
    softened = ((vectors * scale) @ vectors.T).float()
    network.mean.copy_(softened @ (network.mean + features.mean(0).float()))
    network.project.weight.copy_(softened @ network.project.weight)
    network.project.bias.copy_(softened @ network.project.bias)


def train_features(
    num_steps: int = 2400,
    batch_size: int = 128,
    seed: int = 0,
    log: Callable[[str], None] = print,
    *,
    num_held_out: int = 4096,
) -> SceneFeatures:
    """Train the features with heads for all factors (AdamW, cosine decay), then `balance` them.

    Logs the loss, the accuracy on `num_held_out` new scenes, and `factor_distances`. The heads are discarded because
    they apply to the features before balancing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, heads = SceneFeatures(), FactorHeads()
    parameters = [*network.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    start = time.monotonic()
    for step in range(num_steps):
        for group in optimiser.param_groups:
            warmup = min(1.0, (step + 1) / 50)
            group["lr"] = LEARNING_RATE * warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        rng = generator(seed, "features", step)
        scenes = sample_scenes(batch_size, rng)
        loss = factor_loss(heads, network(augment(render(scenes), rng)), scenes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0 or step == num_steps - 1:
            log(f"step {step}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s")
    network.eval().requires_grad_(False)
    for degraded in (False, True):
        scores = held_out_accuracy(network, heads, num_scenes=num_held_out, seed=seed, degraded=degraded)
        log(f"held out, {'degraded' if degraded else 'clean'}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    balance(network, render(sample_scenes(8192, generator(seed, "features_balance"))))
    log("cosine distance by factor: " + "  ".join(f"{k} {v:.3f}" for k, v in factor_distances(network).items()))
    return network
