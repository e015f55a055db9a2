import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from dpdmd.world.pretrain.autoencoder import new_autoencoder
from dpdmd.world.pretrain.run import silent_t5
from dpdmd.world.pretrain.text_encoders import new_text_encoder, new_tokenizer
from dpdmd.world.pretrain.transformer import new_transformer


def build_sd3(t5) -> StableDiffusion3Pipeline:
    tokenizer = new_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=new_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=new_autoencoder(),
        text_encoder=new_text_encoder(tokenizer).eval(),
        tokenizer=tokenizer,
        text_encoder_2=new_text_encoder(tokenizer).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    )


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory) -> str:
    """A random StableDiffusion3Pipeline folder whose T5 says nothing, as the built-in teacher's."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3")
    pipeline = build_sd3(silent_t5(len(new_tokenizer())))
    pipeline.vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sd3_folder_with_t5(tmp_path_factory) -> str:
    """The same with a T5 that speaks, so that nothing can be folded."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3_t5")
    t5 = silent_t5(len(new_tokenizer()))
    torch.nn.init.ones_(t5.encoder.final_layer_norm.weight)
    build_sd3(t5).save_pretrained(folder)
    return str(folder)
