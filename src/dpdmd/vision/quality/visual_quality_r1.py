"""VisualQuality-R1: a vision-language model that reasons about an image's quality and then answers with a number."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dpdmd.models.checked import load_checked
from dpdmd.store.errors import library_errors
from dpdmd.store.png import to_uint8
from dpdmd.vision.weights import Weights

LOWEST, HIGHEST = 1.0, 5.0
MAX_NEW_TOKENS = 2048
QUESTION = (
    "You are doing the image quality assessment task. Here is the question: "
    "What is your overall rating on the quality of this picture? The rating should be a float between 1 and 5, "
    "rounded to two decimal places, with 1 representing very poor quality and 5 representing excellent quality. "
    "First output the thinking process in <think> </think> tags and then output the final answer with only one score "
    "in <answer> </answer> tags."
)
IMAGE = "<|image_pad|>"
# The result of the model's chat template for one image and QUESTION, with numbered images.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <|vision_start|>"
    f"{IMAGE}<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
# The release's limits of the number of pixels.
SIZE = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*5(?:\.0+)?)?\s*")


def visual_quality_r1(weights: Weights, device: str) -> Callable[[Tensor, list[str]], Tensor]:
    """VisualQuality-R1, a quality score from 1 to 5 that ignores the prompt; NaN if the model's answer has no number.

    Images are scored one at a time, because a batch would need padding. On a GPU the model runs in bf16, as in the
    release.
    Raises ValueError if a file is missing.
    Source: arXiv 2505.14460; differs: answers are decoded greedily, so that an image has a single score, whereas the
    release samples them; and an answer without a number gives NaN, whereas the release substitutes a random number.
    """
    with library_errors(f"{weights.name} does not contain a Qwen2.5-VL model"):
        tokenizer = AutoTokenizer.from_pretrained(weights.folder, trust_remote_code=False)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = load_checked(Qwen2_5_VLForConditionalGeneration, weights.folder, "Qwen2.5-VL weights", dtype=dtype)
    model = model.to(device).eval().requires_grad_(False)

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        answers = [_answer(model, inputs(image, tokenizer, model.config), tokenizer) for image in images]
        return torch.tensor([parse_answer(answer) for answer in answers])

    return score


def inputs(image: Tensor, tokenizer: Any, config: Any) -> dict[str, Tensor]:
    """The model's inputs for QUESTION about an image (3, H, W) in [-1, 1]."""
    vision = config.vision_config
    process = Qwen2VLImageProcessorPil(
        size=SIZE,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    pixels = process(to_uint8(image[None])[0].numpy(), input_data_format="channels_last", return_tensors="pt")
    num_tokens = int(pixels["image_grid_thw"].prod()) // vision.spatial_merge_size**2
    tokens = tokenizer(CHAT.replace(IMAGE, IMAGE * num_tokens), return_tensors="pt")
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        # Without it the image tokens would get the position ids of text tokens.
        "mm_token_type_ids": (tokens["input_ids"] == config.image_token_id).int(),
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": pixels["image_grid_thw"],
    }


def parse_answer(text: str) -> float:
    """Parse the number in the last <answer> of a text; NaN if there is none, or if it is not a number from 1 to 5."""
    answers = ANSWER.findall(text)
    match = NUMBER.fullmatch(answers[-1]) if answers else None
    value = float(match.group(1)) if match else float("nan")
    return value if LOWEST <= value <= HIGHEST else float("nan")


@torch.no_grad()
def _answer(model: Any, question: dict[str, Tensor], tokenizer: Any) -> str:
    question = {name: tensor.to(model.device) for name, tensor in question.items()}
    # The generation settings shipped with the model would sample; its repetition penalty is kept.
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    tokens = model.generate(**question, **greedy, max_new_tokens=MAX_NEW_TOKENS)
    return tokenizer.decode(tokens[0, question["input_ids"].shape[1] :], skip_special_tokens=True)
