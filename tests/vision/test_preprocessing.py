"""Held against transformers' own processors, as far as they run without torchvision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dpdmd.vision.preprocessing import Preprocessing, clip_preprocessing, read_preprocessing

SIZES = [(48, 40), (37, 61), (224, 224), (300, 201), (20, 33)]


def _pixels(height, width):
    # Noise of full contrast: bicubic interpolation overshoots at both ends, where 8 bits clip.
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize("size", SIZES)
def test_a_clip_model_gets_what_the_official_processor_gives_it(size, tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil()
    processor.save_pretrained(tmp_path)
    expected = processor(Image.fromarray(_pixels(*size)), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip_preprocessing(224)(_tensor(_pixels(*size))), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(read_preprocessing(tmp_path)(_tensor(_pixels(*size))), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_dinov2_gets_what_the_official_processor_gives_it(size, tmp_path):
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    # As facebook/dinov2-large has it.
    official = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225], resample=3,
    )  # fmt: skip
    official.save_pretrained(tmp_path)
    expected = official(Image.fromarray(_pixels(*size)), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(read_preprocessing(tmp_path)(_tensor(_pixels(*size))), expected, rtol=0, atol=1e-6)


def test_dinov3_is_resized_as_floats_with_a_bilinear_filter(tmp_path):
    config = {
        "do_center_crop": None, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "DINOv3ViTImageProcessorFast", "image_std": [0.229, 0.224, 0.225], "resample": 2,
        "size": {"height": 32, "width": 32},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    pixels = _pixels(64, 64)
    ours = read_preprocessing(tmp_path)(_tensor(pixels))[0] * torch.tensor(config["image_std"])[:, None, None]
    ours = ours + torch.tensor(config["image_mean"])[:, None, None]
    # By half a triangle of support 2 spans four pixels, with weights 1, 3, 3, 1 over 8.
    weights = np.array([1, 3, 3, 1]) / 8
    window = pixels[3:7, 9:13].astype(float) / 255  # around output row 2, column 5
    expected = np.einsum("i,ijc,j->c", weights, window, weights)
    np.testing.assert_allclose(ours[:, 2, 5].numpy(), expected, atol=1e-6)


def test_images_of_the_right_size_keep_their_values():
    images = _tensor(_pixels(28, 28))
    preprocess = Preprocessing((28, 28), None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    expected = ((images + 1) / 2 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[
        :, None, None
    ]
    torch.testing.assert_close(preprocess(images), expected)


def test_an_image_smaller_than_the_crop_is_refused():
    with pytest.raises(ValueError, match="crops images to"):
        Preprocessing(None, (28, 28), (0.5,) * 3, (0.5,) * 3)(torch.zeros(1, 3, 20, 40))
