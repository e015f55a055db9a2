import torch
from diffusers import StableDiffusion3Pipeline

from dpdmd.world.captions import all_captions
from dpdmd.world.pretrain.run import pretrain
from dpdmd.world.pretrain.text_encoders import NUM_TOKENS, factor_labels, new_tokenizer, tokenize
from dpdmd.world.pretrain.transformer import sample_times


def test_every_caption_fits_the_tokenizer_without_unknown_words():
    tokenizer = new_tokenizer()
    longest = max(len(tokenizer(text).input_ids) for text in all_captions())
    assert longest <= NUM_TOKENS
    assert not (tokenize(tokenizer, all_captions()) == tokenizer.unk_token_id).any()


def test_labels_name_what_a_caption_names():
    labels = factor_labels(["a small blue cross", ""])
    assert {factor: values.tolist() for factor, values in labels.items()} == {
        "shape": [3, 4],
        "colour": [2, 6],
        "size": [0, 2],
        "background": [6, 6],
    }


def test_training_times_follow_the_shifted_uniform_law():
    t = sample_times(20_000, torch.Generator().manual_seed(0))
    # P(t < 1/2) for t = 2 u / (1 + u) is u(1/2) = 1/3.
    assert abs((t < 0.5).double().mean().item() - 1 / 3) < 1e-3


def test_the_recorded_command_makes_a_stock_pipeline(tmp_path):
    """Two steps of every stage, end to end, in two processes."""
    folder = pretrain(tmp_path, stage="all", scale=1e-4, processes=2)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red circle", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3)
    before = (tmp_path / "parts" / "transformer.safetensors").stat().st_mtime_ns
    pretrain(tmp_path, stage="transformer", scale=1e-4)
    assert (tmp_path / "parts" / "transformer.safetensors").stat().st_mtime_ns == before
