"""Folders of images: which are read, with which prompts, and what is wrong with them."""

import json

import numpy as np
import pytest
from PIL import Image

from dpdmd.data.images import captioned_images, images_digest, read_image


def picture(path, size=(8, 8), colour=(255, 0, 0)):
    Image.new("RGB", size, colour).save(path)
    return path


def test_prompts_come_from_metadata_or_from_a_file_next_to_the_image(tmp_path):
    for name in ("b.png", "a.JPG", "c.jpeg", "d.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text(" from the text file\n")
    (tmp_path / "c.txt").write_text("not this one")
    rows = [
        {"file_name": "c.jpeg", "prompt": "from the metadata", "text": "other"},
        {"file_name": "d.png", "prompt": ""},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "notes.md").write_text("no image")
    found = [(path.name, prompt) for path, prompt in captioned_images(tmp_path)]
    assert found == [("a.JPG", "from the text file"), ("b.png", ""), ("c.jpeg", "from the metadata"), ("d.png", "")]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert dict(captioned_images(tmp_path, "text"))[tmp_path / "c.jpeg"] == "other"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata\.jsonl, line 2 is not valid JSON"),
        ('{"file_name": "a.png"}', r"line 2 needs"),
        ('["a.png"]', r'metadata\.jsonl, line 2 needs "file_name" and \'prompt\' \(data\.column\), got \['),
        ('{"file_name": "z.png", "prompt": "x"}', r"names 1 images that are not in the folder, the first is z\.png"),
    ],
)
def test_broken_metadata_is_named(tmp_path, line, message):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "x"}\n' + line)
    with pytest.raises(ValueError, match=message):
        captioned_images(tmp_path)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder of images"):
        captioned_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no images: \.png, \.jpg, .* are read"):
        captioned_images(tmp_path)


def test_an_image_is_cut_from_the_middle_and_keeps_its_shape(tmp_path):
    # Red, green, blue thirds side by side: the middle square is green.
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    for i in range(3):
        pixels[:, 10 * i : 10 * i + 10, i] = 255
    Image.fromarray(pixels).save(tmp_path / "thirds.png")
    image = read_image(tmp_path / "thirds.png", 10, 10)
    assert image.shape == (3, 10, 10)
    assert image[1].min() == 1 and image[0].max() == image[2].max() == -1
    assert read_image(tmp_path / "thirds.png", 4, 6).shape == (3, 4, 6)
    wide = read_image(tmp_path / "thirds.png", 10, 30)
    assert np.array_equal(((wide + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8), pixels)


def test_transparent_grey_and_turned_images_are_read_as_seen(tmp_path):
    Image.new("L", (8, 8), 255).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", 8, 8).min() == 1
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png", 8, 8)
    assert turned[:, :4].max() == -1 and turned[:, 4:].min() == 1


def test_a_broken_image_is_named(tmp_path):
    whole = picture(tmp_path / "a.png", (64, 64)).read_bytes()
    for content in (whole[:60], b"text", b""):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(OSError, match=r"a\.png is not a readable image: .*; replace it or remove it"):
            read_image(tmp_path / "a.png", 8, 8)


def test_the_digest_knows_content_and_prompts(tmp_path):
    picture(tmp_path / "a.png")
    first = images_digest(captioned_images(tmp_path))
    assert images_digest(captioned_images(tmp_path)) == first
    (tmp_path / "a.txt").write_text("said")
    second = images_digest(captioned_images(tmp_path))
    picture(tmp_path / "a.png", colour=(0, 0, 0))
    assert len({first, second, images_digest(captioned_images(tmp_path))}) == 3


def test_captions_of_other_tools_are_read_or_refused_by_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a cat\n")
    assert [prompt for _, prompt in captioned_images(tmp_path)] == ["a cat"]
    for name in ("metadata.parquet", "metadata.tsv"):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=f"{name} is not read; write its captions as metadata.jsonl or"):
            captioned_images(tmp_path)
        (tmp_path / name).unlink()
