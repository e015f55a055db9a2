"""The picture of a validation: the images unchanged, under the text of their prompt."""

import torch
from PIL import ImageFont

from dpdmd.method.randomness import generator
from dpdmd.training.validation.picture import _wrapped, picture, text_strip

LONG = "an old lighthouse at the edge of a cliff, painted in water colours, early light, seen from far below " * 4


def noise(stream: str, *shape: int):
    return torch.rand(shape, generator=generator(0, stream)) * 2 - 1


def test_every_image_stands_below_its_prompt_teacher_above_student():
    teacher, student = noise("teacher", 4, 3, 100, 120), noise("student", 4, 3, 100, 120)
    drawn = picture(teacher, student, ["a red circle", LONG])
    assert drawn.shape[-1] == 2 * 122
    top = 0
    for number, prompt in enumerate(["a red circle", LONG]):
        strip = text_strip(prompt, 244)
        assert torch.equal(drawn[:, top : top + strip.shape[1]], strip) and strip.min() < 0 < strip.max()
        for row, images in enumerate((teacher, student)):
            for column in range(2):
                y, x = top + strip.shape[1] + 102 * row + 1, 122 * column + 1
                assert torch.equal(drawn[:, y : y + 100, x : x + 120], images[2 * number + column])
        top += strip.shape[1] + 2 * 102
    assert drawn.shape[1] == top


def test_small_images_are_enlarged_by_a_whole_factor():
    teacher = noise("teacher", 1, 3, 32, 32)
    drawn = picture(teacher, teacher, ["one"])
    text = drawn.shape[1] - 2 * 98
    assert torch.equal(drawn[:, text + 1 : text + 97, 1:97][:, 1::3, 2::3], teacher[0])


def test_text_is_broken_at_spaces_and_what_is_left_out_is_marked():
    font = ImageFont.load_default(12)
    lines = _wrapped(LONG, 400, font)
    assert len(lines) == 3 and lines[-1].endswith("...") and all(font.getlength(line) <= 400 for line in lines)
    assert LONG.startswith(" ".join(lines).removesuffix("...").rstrip())
    assert _wrapped("two\n lines  of text", 400, font) == ["two lines of text"]
    assert "".join(_wrapped("x" * 90, 200, font)) == "x" * 90  # nowhere to break
    assert _wrapped("", 400, font) == [""]
