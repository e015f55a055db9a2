"""Anima, which diffusers has as modular blocks alone, through the adapter contract; its blocks are the judge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from diffusers.modular_pipelines.anima import AnimaAutoBlocks, AnimaModularPipeline
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.utils import is_torchvision_available
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from dpdmd.method.denoiser import Condition
from dpdmd.method.guidance import Guidance
from dpdmd.method.paths import Prediction, from_velocity
from dpdmd.method.rollout import GuidedTeacher
from dpdmd.models.base import network_denoiser
from dpdmd.models.load import load_adapter
from dpdmd.models.one_frame import OneFrameAdapter
from dpdmd.store.files import read_json, write_json
from tools.pretrain.text_encoders import new_tokenizer

NUM_TOKENS, GUIDANCE_SCALE = 16, 4.0


def new_blocks() -> Any:
    """Anima's blocks with random components of a test's size.

    concat_padding_mask is off, which it is not in Cosmos: with it the network calls torchvision.
    """
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    text = Qwen3Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, **sizes)
    text.pad_token_id = tokenizer.pad_token_id
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        rope_scale=(1.0, 1.0, 1.0),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    )
    for parameter in transformer.parameters():  # what starts at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    conditioner = AnimaTextConditioner(
        source_dim=16,
        target_dim=16,
        model_dim=16,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=len(tokenizer),
        min_sequence_length=NUM_TOKENS,
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.7, 0.2, 0.1, -0.3],
        latents_std=[2.8, 1.4, 0.6, 1.2],
    )
    blocks = AnimaAutoBlocks().init_pipeline()
    blocks.update_components(
        transformer=transformer.eval(),
        text_encoder=Qwen3Model(text).eval(),
        text_conditioner=conditioner.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizer,
        t5_tokenizer=tokenizer,
    )
    return blocks


class AnimaAdapter(OneFrameAdapter):
    """As much of an adapter as a teacher needs. blocks: with the text encoder, which our loader does not know."""

    pipeline_class = AnimaModularPipeline
    network_class = CosmosTransformer3DModel
    guidance_scale = GUIDANCE_SCALE
    num_inference_steps = 30
    token_limits = (("tokenizer", 512), ("t5_tokenizer", 512))
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    block_lists = ("transformer_blocks",)

    def __init__(self, source: str, blocks: Any):
        super().__init__(source)
        self.blocks = blocks

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The patch is of a video: (frames, rows, columns)."""
        patch = self.network_config["patch_size"][1]
        return self.network_config["in_channels"], *self.latent_size(height, width, default=16, patch=patch)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`prompt_embeds` (B, L, D): Qwen's states, seen by the tokens of a T5 tokenizer."""
        found = AnimaTextEncoderStep.encode_prompt(self.blocks, list(prompts), prepare_unconditional_embeds=False)
        embeds = self.blocks.text_conditioner(
            source_hidden_states=found["qwen_prompt_embeds"],
            target_input_ids=found["t5_input_ids"],
            target_attention_mask=found["t5_attention_mask"],
            source_attention_mask=found["qwen_attention_mask"],
        )
        return Condition({"prompt_embeds": embeds})

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition, embedded_guidance: float | None = None
    ) -> Prediction:
        """The velocity of a video of one frame."""
        embeds = cond.tensors["prompt_embeds"]
        velocity = network(hidden_states=x_t[:, :, None], timestep=t, encoder_hidden_states=embeds, return_dict=False)[
            0
        ]
        return from_velocity(x_t, velocity[:, :, 0], t)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the modular pipeline saves, and the model_index.json that it does not."""
    folder = tmp_path_factory.mktemp("anima")
    new_blocks().save_pretrained(str(folder))
    return folder


def test_a_modular_folder_is_no_pipeline_for_diffusers_and_is_refused_by_us(folder):
    with pytest.raises(OSError, match="no file named model_index"):
        DiffusionPipeline.from_pretrained(str(folder))
    with pytest.raises(ValueError, match="it has no model_index"):
        load_adapter(str(folder))


def test_anima_through_the_contract_draws_what_its_blocks_draw(folder):
    blocks = new_blocks()
    index = read_json(folder / "modular_model_index.json")
    parts = {name: value[:2] for name, value in index.items() if isinstance(value, list) and value[0]}
    write_json(folder / "model_index.json", {"_class_name": "AnimaModularPipeline"} | parts)
    adapter = AnimaAdapter(str(folder), blocks)
    shape = adapter.latent_shape(16, 24)
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle", "two blue squares"]
    teacher = GuidedTeacher(
        network_denoiser(adapter, adapter.load_network()),
        adapter.path,
        adapter.stock_grid(5, shape),
        Guidance(GUIDANCE_SCALE, adapter.guidance_rule),
    )
    ours = teacher.rollout(noise, adapter.encode(prompts), adapter.encode(["", ""]))
    options = {"height": 16, "width": 24, "num_inference_steps": 5, "output": "latents"}
    theirs = blocks(prompt=prompts, latents=noise[:, :, None], **options)[:, :, 0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (ours - noise).abs().max() > 0.1
    moved = teacher.rollout(noise, adapter.encode(["a green cross", "a cross"]), adapter.encode(["", ""]))
    assert (ours - moved).abs().max() > 1e-3


def test_the_network_of_cosmos_needs_torchvision_for_its_padding_mask():
    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "text_embed_dim": 16}
    network = CosmosTransformer3DModel(in_channels=4, out_channels=4, **sizes)
    mask, cond = torch.zeros(1, 1, 16, 16), torch.zeros(1, 4, 16)
    with pytest.raises(NameError, match="transforms"):
        network(torch.zeros(1, 4, 1, 8, 8), torch.ones(1), cond, padding_mask=mask)
