"""VisualQuality-R1 on a tiny random Qwen2.5-VL."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dpdmd.vision.quality import visual_quality_r1 as scorer
from dpdmd.vision.quality.load import load_quality

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a tokenizer of one token per byte, as they are saved."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    inner = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=SPECIAL, eos_token="<|im_end|>")
    number = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "vision_start", "im_end")}
    torch.manual_seed(0)
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": len(symbols), "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "eos_token_id": number["im_end"], "bos_token_id": None, "pad_token_id": number["im_end"],
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=number["image_pad"],
        vision_start_token_id=number["vision_start"], video_token_id=len(symbols) + 1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("vqr1")
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _images():
    return torch.randint(0, 256, (2, 3, 70, 90), generator=torch.Generator().manual_seed(0)) / 127.5 - 1


def test_the_question_is_the_chat_with_the_pixels_of_the_official_processor(folder):
    """One token for each 28 x 28 pixels of the resized image, between the question's words."""
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    question = scorer.inputs(_images()[0], tokenizer, model.config)
    assert question["image_grid_thw"].tolist() == [[1, 4, 6]]  # 70 x 90 pixels to 56 x 84, in patches of 14
    is_image = question["input_ids"] == model.config.image_token_id
    assert int(is_image.sum()) == 6 and torch.equal(question["mm_token_type_ids"].bool(), is_image)
    text = tokenizer.decode(question["input_ids"][0]).replace("<|image_pad|>" * 6, "IMAGE")
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <|vision_start|>IMAGE"
        f"<|vision_end|>{scorer.QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    from PIL import Image

    picture = Image.fromarray(((_images()[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    official = Qwen2VLImageProcessorPil(size=scorer.SIZE)(picture, return_tensors="pt")
    torch.testing.assert_close(question["pixel_values"], official["pixel_values"])


def test_decoding_is_greedy_and_an_answer_without_a_number_is_a_failure(folder, monkeypatch):
    monkeypatch.setattr(scorer, "MAX_NEW_TOKENS", 4)
    quality = load_quality(f"visual_quality_r1={folder}")
    assert quality.score(_images(), ["", ""]).isnan().all()  # a random network says nothing

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    question = scorer.inputs(_images()[0], tokenizer, model.config)
    tokens = question["input_ids"]
    with torch.no_grad():
        for _ in range(4):  # by hand, without the library's generation or its memory of keys
            kinds = (tokens == model.config.image_token_id).int()
            more = {"input_ids": tokens, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(tokens)}
            logits = model(**(question | more), use_cache=False).logits[0, -1]
            tokens = torch.cat([tokens, logits.argmax()[None, None]], dim=1)
    expected = tokenizer.decode(tokens[0, question["input_ids"].shape[1] :], skip_special_tokens=True)
    assert scorer._answer(model, question, tokenizer) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>2 of 5</think><answer>3.75</answer>", 3.75),
        ("<answer>1</answer> no, <answer> 4.20 </answer>", 4.2),
        ("<answer>\n5.00\n</answer>", 5.0),
        ("<answer>3.5/5</answer>", 3.5),
        ("the quality is 4.5", math.nan),
        ("<answer>4.5", math.nan),
        ("<answer>good</answer>", math.nan),
        ("<answer>between 3 and 4</answer>", math.nan),
        ("<answer>7.5</answer>", math.nan),
        ("", math.nan),
    ],
)
def test_an_answer_is_one_number_from_1_to_5_or_none(text, value):
    assert scorer.parse_answer(text) == pytest.approx(value, nan_ok=True)
