"""ERNIE-Image: velocity prediction, timestep 1000 t, FLUX.2's latents, tokens that follow those of the image."""

from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dpdmd.method.denoiser import Condition
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.models import parts
from dpdmd.models.flux2_latents import Flux2LatentsAdapter
from dpdmd.store.errors import InputError

NUM_TOKENS = 2048  # to which the public models' tokenizers cut prompts; memory is planned for them
VARIANCE_FLOOR = 1e-5  # which the stock pipeline adds, whatever its autoencoder's configuration says


class ErnieImageAdapter(Flux2LatentsAdapter):
    """Adapter of ERNIE-Image.

    By default the stock pipeline has a language model, if it has one, rewrite every prompt. Neither teacher nor student
    does. Its call takes no sigmas and no shift for the size: a student's grid is one that its scheduler draws alone.
    ERNIE-Image-Turbo, which is already distilled, needs guidance_scale 1 and 8 steps.
    """

    pipeline_class = ErnieImagePipeline
    network_class = ErnieImageTransformer2DModel
    guidance_scale = 4.0
    num_inference_steps = 50
    variance_floor = VARIANCE_FLOOR  # pyright: ignore[reportAssignmentType]  # a property by default
    unguided: ClassVar = {"guidance_scale": 1.0, "use_pe": False}
    token_limits = (("tokenizer", None),)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("layers",)

    def __init__(self, source: str):
        super().__init__(source)
        if self.scheduler_config.get("use_dynamic_shifting"):
            raise InputError(
                f"{source}: ERNIE-Image needs a scheduler with a fixed shift; use_dynamic_shifting is not supported"
            )
        if (patch_size := self.network_config["patch_size"]) != 1:
            raise InputError(f"{source}: an ERNIE-Image network with patch_size {patch_size} is not supported")

    @cached_property
    def texts(self) -> Any:
        """The stock pipeline with only its tokenizer and text encoder."""
        rewriting = ("pe", "pe_tokenizer")
        return parts.load_text_pipeline(self.pipeline_class, self.source, self.network_name, "vae", *rewriting)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D) and `mask` (B, L), 1 = token; L is the length of the longest prompt."""
        tokens = [row.cpu() for row in self.texts.encode_prompt(list(prompts), self.texts.device)]
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in tokens], batch_first=True)
        return Condition({"prompt_embeds": pad_sequence(tokens, batch_first=True), "mask": mask})

    def blank_condition(self, num_prompts: int) -> Condition:
        """Zeros for NUM_TOKENS tokens."""
        shape = num_prompts, NUM_TOKENS
        embeds = torch.zeros(*shape, self.network_config["text_in_dim"])
        return Condition({"prompt_embeds": embeds, "mask": torch.ones(shape, dtype=torch.long)})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """Convert the transformer's velocity to a prediction."""
        if x_t.is_meta:  # where torch has no autocast, which the stock module switches off
            places: Any = getattr(network, "module", network).pos_embed  # without its wrapper for several processes
            places.forward = lambda ids: ids.new_empty(*ids.shape[:2], 1, places.dim)
        velocity = network(
            hidden_states=x_t,
            timestep=1000 * t,
            text_bth=cond.tensors["prompt_embeds"],
            text_lens=cond.tensors["mask"].sum(dim=1),
            return_dict=False,
        )[0]
        return from_velocity(x_t, velocity, t)

    def picture_tokens(self, output: Any, x_t: Tensor, cond: Condition) -> Tensor:
        """The first tokens; blocks return (N, B, D)."""
        return output[: x_t.shape[2:].numel()].transpose(0, 1)

    def lora_names(self, layers: dict[str, Tensor]) -> dict[str, Tensor]:
        """diffusers' names of the modules after the prefix of ComfyUI, of which older versions know no other."""
        return {f"diffusion_model.{name}": tensor for name, tensor in layers.items()}
