"""MANIQA: image quality without a prompt, by a network trained on human ratings of distorted images."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpdmd.store.errors import library_errors
from dpdmd.store.tensors import read_tensors
from dpdmd.vision.quality.blip_vision import vision_model
from dpdmd.vision.quality.load import weights_file
from dpdmd.vision.weights import Weights

NUM_CROPS, CROP_SEED, BATCH = 20, 0, 4
# Indices, from 0, of the blocks of the vision transformer whose outputs are used.
USED_BLOCKS = (6, 7, 8, 9)
WINDOW, SHIFT, NUM_HEADS, RESIDUAL_SCALE = 4, 2, 4, 0.8
OUTSIDE = -100.0
# UNUSED: tensors that the release saves but does not use in its forward pass. BUFFERS: tensors that follow from shapes.
UNUSED = ("vit.norm.", "vit.head.", "vit.fc_norm.", "vit.blocks.10.", "vit.blocks.11.", ".downsample.")
BUFFERS = ("attn_mask", "relative_position_index")


def maniqa(weights: Weights, device: str) -> Callable[[Tensor, list[str]], Tensor]:
    """MANIQA, a quality score that ignores the prompt: mean over 20 crops of 224 x 224 pixels.

    The score of a crop is a weighted mean over its patches.
    weights: a folder with the release's tensors under their own names, in one .safetensors file.
    Raises ValueError if weights are missing or do not fit, and for images smaller than a crop.
    Source: arXiv 2204.08958; differs: all images of one size are cropped at the same random positions, whereas the
    release draws new positions for every image.
    """
    tensors = read_tensors(weights_file(weights.folder))
    with library_errors(f"{weights.name} does not contain MANIQA"):
        network = Maniqa(tensors).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def score(images: Tensor, prompts: list[str]) -> Tensor:
        parts = [crops(image, network.crop_size).to(device) for image in images]
        return torch.stack([torch.cat([network(p) for p in part.split(BATCH)]).mean().cpu() for part in parts])

    return score


def crops(image: Tensor, size: int) -> Tensor:
    """Random crops (20, 3, size, size) of an image (3, H, W), at positions that depend only on H and W.

    Raises ValueError if the image is smaller than a crop.
    """
    height, width = image.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"maniqa needs images of at least {size} x {size} pixels, got {height} x {width}")
    rng = torch.Generator().manual_seed(CROP_SEED)
    tops, lefts = (torch.randint(0, side - size + 1, (NUM_CROPS,), generator=rng).tolist() for side in (height, width))
    return torch.stack([image[:, t : t + size, left : left + size] for t, left in zip(tops, lefts, strict=True)])


class Maniqa(nn.Module):
    """The released network, with its configuration inferred from the shapes of its tensors."""

    tablock1: nn.ModuleList
    tablock2: nn.ModuleList
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    swintransformer1: "Windows"
    swintransformer2: "Windows"

    def __init__(self, tensors: dict[str, Tensor]):
        """Raises KeyError or RuntimeError if tensors are missing or do not fit."""
        super().__init__()
        tensors = {
            name: tensor.float()
            for name, tensor in tensors.items()
            if not name.endswith(BUFFERS) and not any(part in name for part in UNUSED)
        }
        vision = {name.removeprefix("vit."): tensor for name, tensor in tensors.items() if name.startswith("vit.")}
        self.vit = vision_model(vision, with_norm=False)
        config = cast("Any", self.vit.config)  # of which transformers declares a side as a number or several
        self.grid: int = config.image_size // config.patch_size
        self.crop_size: int = config.image_size
        for number in (1, 2):
            wide, width = tensors[f"conv{number}.weight"].shape[1::-1]
            attentions = [ChannelAttention(self.grid**2) for _ in range(_count(tensors, f"tablock{number}."))]
            setattr(self, f"tablock{number}", nn.ModuleList(attentions))
            setattr(self, f"conv{number}", nn.Conv2d(wide, width, 1))
            setattr(self, f"swintransformer{number}", Windows(tensors, f"swintransformer{number}.", width, self.grid))
        self.fc_score, self.fc_weight = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Identity(), nn.Linear(width, 1), last)
            for last in (nn.ReLU(), nn.Sigmoid())
        )
        self.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("vit.")} | _own_vision(self))

    def forward(self, crops: Tensor) -> Tensor:
        """Scores (B,) of crops (B, 3, H, W) in [-1, 1], where H and W are the network's crop size."""
        x = self._block_outputs(crops)
        for attentions, convolution, windows in (
            (self.tablock1, self.conv1, self.swintransformer1),
            (self.tablock2, self.conv2, self.swintransformer2),
        ):
            for attention in attentions:
                x = attention(x)
            x = windows(convolution(x.unflatten(2, (self.grid, self.grid)))).flatten(2)
        x = x.transpose(1, 2)
        score, weight = self.fc_score(x)[..., 0], self.fc_weight(x)[..., 0]
        return (score * weight).sum(dim=1) / weight.sum(dim=1)

    def _block_outputs(self, crops: Tensor) -> Tensor:
        """The outputs of the four USED_BLOCKS, concatenated along channels: (B, C, patches)."""
        hidden, seen = self.vit.embeddings(crops), []
        for number, layer in enumerate(self.vit.encoder.layers):
            hidden = layer(hidden)
            if number in USED_BLOCKS:
                seen.append(hidden[:, 1:])
        return torch.cat(seen, dim=2).transpose(1, 2)


class ChannelAttention(nn.Module):
    """Attention over channels, x + softmax(q k^T / sqrt(N)) v, for x (B, C, N)."""

    def __init__(self, num_places: int):
        super().__init__()
        self.c_q, self.c_k, self.c_v = (nn.Linear(num_places, num_places) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        attention = (self.c_q(x) @ self.c_k(x).transpose(1, 2) * x.shape[2] ** -0.5).softmax(dim=-1)
        # The release transposes the result before it reshapes it, and was trained this way.
        return x + (attention @ self.c_v(x)).transpose(1, 2).reshape(x.shape)


class Windows(nn.Module):
    """Attention within windows of 4 x 4 positions, shifted by 2 in every second block, for x (B, C, H, W)."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, width: int, grid: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(_count(tensors, f"{prefix}layers.")):
            name = f"{prefix}layers.{i}.blocks."
            hidden = tensors[f"{name}0.mlp.fc1.weight"].shape[0]
            blocks = [WindowBlock(width, hidden, grid, SHIFT * (j % 2)) for j in range(_count(tensors, name))]
            self.layers.append(
                nn.ModuleDict({"blocks": nn.ModuleList(blocks), "conv": nn.Conv2d(width, width, 3, 1, 1)})
            )

    def forward(self, x: Tensor) -> Tensor:
        for layer in cast("Iterable[Any]", self.layers):  # torch declares any nn.Module
            y = x.permute(0, 2, 3, 1)
            for block in layer["blocks"]:
                y = block(y)
            x = x + RESIDUAL_SCALE * F.relu(layer["conv"](y.permute(0, 3, 1, 2)))
        return x


class WindowBlock(nn.Module):
    """A layer of a Swin transformer, for x (B, H, W, C) with H = W = grid."""

    offsets: Tensor
    mask: Tensor

    def __init__(self, width: int, hidden: int, grid: int, shift: int):
        super().__init__()
        if grid <= WINDOW or grid % WINDOW:
            raise RuntimeError(f"the side of the patch grid must be a larger multiple of {WINDOW}, got {grid}")
        self.shift = shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, NUM_HEADS))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.attn.register_parameter("relative_position_bias_table", table)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.register_buffer("offsets", _offsets(), persistent=False)
        self.register_buffer("mask", _mask(grid, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), dims=(1, 2))
        y = torch.roll(_unwindowed(self._attend(_windowed(y)), y.shape), (self.shift, self.shift), dims=(1, 2))
        x = x + y
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))

    def _attend(self, windows: Tensor) -> Tensor:
        """Attention within each window; input and output are (B, windows, positions, C)."""
        q, k, v = self.attn["qkv"](windows).unflatten(-1, (3, NUM_HEADS, -1)).movedim(-3, 0).transpose(-3, -2)
        table = self.attn.get_parameter("relative_position_bias_table")
        bias = table[self.offsets].movedim(-1, 0)  # (heads, positions, positions)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias + self.mask[:, None]
        return self.attn["proj"]((scores.softmax(dim=-1) @ v).transpose(-3, -2).flatten(-2))


def _windowed(x: Tensor) -> Tensor:
    """Divide (B, H, W, C) into windows, (B, windows, positions, C)."""
    x = x.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _unwindowed(windows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_windowed`; shape: (B, H, W, C)."""
    rows = shape[1] // WINDOW
    x = windows.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (rows, -1))
    return x.transpose(2, 3).reshape(shape)


def _offsets() -> Tensor:
    """Index into the table of position biases for each pair of positions in a window, by their relative position."""
    place = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
    down, across = place[:, :, None] - place[:, None, :] + WINDOW - 1
    return down * (2 * WINDOW - 1) + across


def _mask(grid: int, shift: int) -> Tensor:
    """Attention mask (windows, positions, positions), added to the scores.

    It separates positions that are neighbours only because of the cyclic shift.
    """
    side = torch.arange(grid)
    region = (side >= grid - WINDOW).long() + (side >= grid - shift).long() if shift else torch.zeros_like(side)
    regions = _windowed((3 * region[:, None] + region[None, :])[None, :, :, None])[0, :, :, 0]
    return OUTSIDE * (regions[:, :, None] != regions[:, None, :]).float()


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _own_vision(module: Maniqa) -> dict[str, Tensor]:
    return {f"vit.{name}": tensor for name, tensor in module.vit.state_dict().items()}
