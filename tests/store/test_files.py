import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import files_of_at_most

from dpdmd.store import digests, files, png
from dpdmd.store import tensors as tensors_io
from dpdmd.store.files import read_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "metrics.json"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError, match="disk"), files.atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("disk")
    assert names(tmp_path) == ["metrics.json"] and target.read_text() == "old"


def test_nothing_is_visible_under_the_name_before_the_write_ends(tmp_path):
    target = tmp_path / "new" / "image.png"
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(b"done")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename across file systems is not atomic
        assert temporary.suffix == ".png"  # writers choose their format by it
    assert names(target.parent) == ["image.png"] and target.read_bytes() == b"done"


def test_json_round_trip_keeps_text_as_it_is(tmp_path):
    value = {"prompt": "a red square – größer", "scores": [0.5, 1e-9, None, True]}
    files.write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "größer" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_numbers_that_json_has_not(value, tmp_path):
    files.write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": value})
    assert names(tmp_path) == ["a.json"] and json.loads((tmp_path / "a.json").read_text()) == {"loss": 1.0}


def test_tensors_round_trip(tmp_path, randn):
    tensors = {"w": randn(0, 2, 3).requires_grad_(), "transposed": randn(1, 3, 2).T, "half": randn(2, 4).bfloat16()}
    tensors_io.write_tensors(tmp_path / "w.safetensors", tensors, {"step": "3"})
    read = tensors_io.read_tensors(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert names(tmp_path) == ["w.safetensors"]


READERS = [read_json, tensors_io.read_tensors, png.read_png]


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*nowhere\.dat"):
        read(tmp_path / "nowhere.dat")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [b"", b"{half", b"\x89PNG\r\n\x1a\n\xff\xfe"])
def test_a_broken_file_is_named(read, content, tmp_path):
    (tmp_path / "broken.dat").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.dat is not a? ?(valid|readable)"):
        read(tmp_path / "broken.dat")


def test_a_truncated_png_is_named(tmp_path, randn):
    png.write_png(tmp_path / "image.png", randn(0, 3, 32, 32))
    whole = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"image\.png is not a readable image"):
        png.read_png(tmp_path / "image.png")


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"dp" * 300_000)
    assert digests.sha256_of(tmp_path / "a") == hashlib.sha256(b"dp" * 300_000).hexdigest()


def test_every_value_of_a_png_survives_exactly(tmp_path):
    levels = torch.arange(256.0).reshape(1, 16, 16) / 127.5 - 1
    image = torch.cat([levels, levels.flip(1), levels.mT])
    png.write_png(tmp_path / "image.png", image)
    assert torch.equal(png.read_png(tmp_path / "image.png"), image)


def test_a_png_is_within_half_a_level_and_clamps(tmp_path):
    image = torch.linspace(-1, 1, 3 * 8 * 6).reshape(3, 8, 6)
    png.write_png(tmp_path / "image.png", image)
    # One level is 2 / 255 in [-1, 1]; rounding to the nearest leaves half of it.
    assert (png.read_png(tmp_path / "image.png") - image).abs().max() <= 1 / 255 + 1e-6
    png.write_png(tmp_path / "image.png", torch.stack([torch.full((2, 2), v) for v in (-3.0, 0.0, 3.0)]))
    assert np.asarray(Image.open(tmp_path / "image.png"))[0, 0].tolist() == [0, 128, 255]


def test_rows_columns_and_channels_keep_their_places(tmp_path):
    image = torch.full((3, 2, 3), -1.0)
    image[0, 0, 2] = 1.0  # red at the right of the upper row
    image[2, 1, 0] = 1.0  # blue at the left of the lower row
    png.write_png(tmp_path / "image.png", image)
    picture = Image.open(tmp_path / "image.png")
    assert picture.size == (3, 2)
    assert picture.getpixel((2, 0)) == (255, 0, 0) and picture.getpixel((0, 1)) == (0, 0, 255)


def test_a_place_that_can_be_written_is_found_so_and_left_as_it_is(tmp_path):
    assert files.require_writable(tmp_path / "a" / "b" / "file") == tmp_path
    (tmp_path / "file").write_text("mine")
    files.require_writable(tmp_path / "file")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


@pytest.mark.parametrize("place", ["folder", "file/inside", "/proc/inside", "/"])  # where not even root may write
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=f"cannot write the page .*{place}"):
        files.require_writable(tmp_path / place, "the page")


def test_the_folder_that_takes_no_file_is_named_with_the_reason():
    with pytest.raises(FileNotFoundError) as refused:
        files.require_writable("/proc/nope/deeper/page.html")
    assert str(refused.value) == (
        "cannot write /proc/nope/deeper/page.html: no file can be made in /proc (No such file or directory); choose "
        "another place"
    )


def test_tensors_that_cannot_be_written_are_an_oserror_naming_the_file(tmp_path):
    with files_of_at_most(100), pytest.raises(OSError, match=r"could not write .*a\.safetensors.*too large"):
        tensors_io.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1000)})
    assert not any(tmp_path.iterdir())


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xef\xbb\xbfb"}')
    assert read_json(path) == {"a": "\ufeffb"}
