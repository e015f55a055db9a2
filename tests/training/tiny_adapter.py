"""A model family small enough to train in a test: two linear layers on (4, 4, 4) latents."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from dpdmd.method.denoiser import Condition
from dpdmd.method.grids import Grid, uniform_grid
from dpdmd.method.guidance import linear_rule
from dpdmd.method.paths import FlowPath, from_velocity
from dpdmd.method.randomness import generator
from dpdmd.models.student_file import LORA_FILE
from dpdmd.store.files import write_json
from dpdmd.store.tensors import write_tensors

SHAPE = (4, 4, 4)
PROMPTS = ["a red circle", "a blue cross", "a small triangle", "a green square", "a circle", "a white star", "a ring"]


class TinyNetwork(nn.Module):
    """velocity = W2 tanh(W1 [x, t, prompt])."""

    from_config = classmethod(lambda cls, config: cls())

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64 + 1 + 8, 32)
        self.second = nn.Linear(32, 64)
        self.blocks = nn.ModuleList()

    def forward(self, x, t, embeds):
        hidden = self.first(torch.cat([x.flatten(1), t[:, None], embeds], dim=1))
        return self.second(torch.tanh(hidden)).view_as(x)


@cache
def _weights_file():
    """The weights in a file, for processes that read only some of them."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    write_tensors(folder / "diffusion_pytorch_model.safetensors", TinyAdapter().load_network().state_dict())
    return folder / "diffusion_pytorch_model.safetensors"


class TinyPipeline:
    """Saves a LoRA as stock pipelines do."""

    def load_lora_weights(self, *args, **kwargs):
        """Only looked for: a pipeline without it takes no LoRA."""
        raise NotImplementedError

    @staticmethod
    def save_lora_weights(folder, network_lora_layers, network_lora_adapter_metadata):
        write_tensors(Path(folder, LORA_FILE), {f"network.{name}": t for name, t in network_lora_layers.items()})


class TinyAdapter:
    """See `dpdmd.models.base.ModelAdapter`."""

    path = FlowPath()
    prediction_space = "velocity"
    guidance_scale = 2.0
    num_inference_steps = 8
    guidance_rule = staticmethod(linear_rule)
    embedded_guidance = None
    stored_dtype = torch.float32
    texts, vae, token_limits = None, nn.Identity(), ()
    lora_targets = ("first", "second")
    block_lists = ("blocks",)
    feature_lists = ("first", "second")
    vae_factor = 2
    loras = ()
    notes: list[str] = []  # noqa: RUF012
    takes_negative_prompt = True
    network_name, network_class, pipeline_class = "network", TinyNetwork, TinyPipeline
    network_config: ClassVar = {}

    def __init__(self, source: str = "tiny"):
        self.source = source
        self.encoded: list[str] = []

    def latent_shape(self, height=None, width=None):
        if (height or 8) % 2:
            raise ValueError(f"height must be divisible by 2, got {height}")
        return SHAPE

    def load_network(self, dtype=torch.float32):
        network = TinyNetwork()
        rng = generator(0, "tiny_network")
        for parameter in network.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)
        return network.to(dtype)

    def network_files(self):
        return [_weights_file()]

    def blank_network(self):
        with torch.device("meta"):
            return TinyNetwork()

    def encode(self, prompts):
        self.encoded += prompts
        return Condition({"embeds": torch.stack([torch.randn(8, generator=generator(0, p)) for p in prompts])})

    def encode_negative(self, prompts):
        """Otherwise than a prompt of the same text, unless it is empty."""
        return self.encode([f"not {prompt}" if prompt else "" for prompt in prompts])

    def predict(self, network, x_t, t, cond, embedded_guidance=None):
        return from_velocity(x_t, network(x_t, t, cond.tensors["embeds"]), t)

    callback = "callback_on_step_end"

    def picture_tokens(self, output, x_t, cond):
        return output[:, None]

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)

    def encode_images(self, images):
        return nn.functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1))

    def stock_grid(self, num_steps, latent_shape=None):
        times = torch.linspace(1, 0.01, num_steps, dtype=torch.float64)
        return Grid((*(3 * times / (1 + 2 * times)).tolist(), 0.0))

    def uniform_grid(self, num_steps, latent_shape=None, *, shift=3.0):
        return uniform_grid(num_steps, shift=shift)

    def sized_scheduler(self, kind, grids):
        """None: it is never exported."""

    def call_arguments(self, scheduler, grid, embedded_guidance=None):
        return {"sigmas": list(grid.times[:-1])}


class PictureAdapter(TinyAdapter):
    """The same with pictures of 32 x 32 pixels, by an autoencoder that has weights, and a folder with a network."""

    vae_factor = 8

    def __init__(self, source: str | Path):
        super().__init__(str(source))
        self.vae = nn.ConvTranspose2d(SHAPE[0], 3, 8, stride=8).requires_grad_(False)
        rng = generator(0, "tiny_autoencoder")
        for parameter in self.vae.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)

    def decode(self, latents):
        return self.vae(latents)

    @staticmethod
    def save(folder: Path, weights: str = "some weights") -> None:
        """Write the files of a model folder by which a teacher is identified."""
        for part in ("network", "text_encoder", "vae"):
            (folder / part).mkdir(parents=True)
            (folder / part / "model.safetensors").write_text(weights)
        index = {part: ["x", "Y"] for part in ("network", "text_encoder", "vae")}
        write_json(folder / "model_index.json", index | {"_class_name": "TinyPipeline"})
