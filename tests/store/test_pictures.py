"""Picture files as people see them, in closed form for each kind."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from dpdmd.data.images import read_image
from dpdmd.store.pictures import natural_key, picture_size, pictures_in, read_picture
from dpdmd.store.png import read_png, write_png

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


def pixels(path) -> np.ndarray:
    seen = np.asarray(read_picture(path))
    assert np.array_equal(((read_png(path).permute(1, 2, 0) + 1) * 127.5).round().byte().numpy(), seen)
    return seen


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_every_orientation_is_seen_upright(orientation, undo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), undo(CORNERS))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_white_and_half_transparent_ones_mixed_with_it(mode, tmp_path):
    path = tmp_path / "a.png"
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putdata([0, 1])
        image.save(path, transparency=0)
        expected = [[[255, 255, 255], [40, 50, 60]]]
    elif mode == "RGB":
        image = Image.new("RGB", (2, 1), (1, 2, 3))
        image.putpixel((1, 0), (4, 5, 6))
        image.save(path, transparency=(1, 2, 3))
        expected = [[[255, 255, 255], [4, 5, 6]]]
    else:
        grey, clear, half = ((0,), (0,), (0,)) if mode == "LA" else ((0, 0, 255), (255, 0, 0), (0, 0, 0))
        image = Image.new(mode, (3, 1), (*grey, 255))
        image.putpixel((1, 0), (*clear, 0))
        image.putpixel((2, 0), (*half, 51))  # a fifth of black
        image.save(path)
        first = [0, 0, 0] if mode == "LA" else [0, 0, 255]
        expected = [[first, [255, 255, 255], [204, 204, 204]]]
    assert pixels(path).tolist() == expected


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 257 * 100 + 128, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 100, 100, 255]


def test_a_palette_and_one_bit_are_their_colours(tmp_path):
    image = Image.fromarray(CORNERS).quantize(4)
    image.save(tmp_path / "p.png")
    assert np.array_equal(pixels(tmp_path / "p.png"), CORNERS)
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    assert pixels(tmp_path / "b.png").tolist() == [[[255] * 3, [0] * 3]]


def test_cmyk_is_converted_and_a_profile_is_used(tmp_path):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    image.save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - [0, 255, 255]).max() <= 2
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "b.jpg", quality=100, icc_profile=profile)
    assert np.array_equal(pixels(tmp_path / "b.jpg"), pixels(tmp_path / "a.jpg"))  # a profile of other colours


def profile(gamma: float) -> bytes:
    """A profile with sRGB's primaries and another gamma, written out: ICC.1:2001-04, tags of a matrix profile."""
    fixed = lambda *values: b"".join(struct.pack(">i", round(value * 65536)) for value in values)  # noqa: E731
    xyz = lambda *values: b"XYZ " + bytes(4) + fixed(*values)  # noqa: E731
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"a" + bytes(80),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", 128 + len(table + data), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249) + bytes(48)
    return head + table + data


def as_srgb(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_colours_go_through_the_profile_or_the_gamma_of_the_file(gamma, alpha, tmp_path):
    values = np.array([[[10, 128, 250], [64, 0, 200]]], dtype=np.uint8)
    image, chunk = Image.fromarray(values), PngInfo()
    if alpha:
        image.putalpha(255)
    image.save(tmp_path / "icc.png", icc_profile=profile(gamma))
    chunk.add(b"gAMA", struct.pack(">I", round(1e5 / gamma)))
    image.save(tmp_path / "gama.png", pnginfo=chunk)
    expected = 255 * as_srgb((values / 255) ** gamma)
    assert np.abs(pixels(tmp_path / "gama.png") - expected).max() <= 0.5
    assert np.abs(pixels(tmp_path / "icc.png") - expected).max() <= 2  # colour management rounds


def test_the_usual_gamma_and_a_broken_profile_change_nothing(tmp_path):
    chunk = PngInfo()
    chunk.add(b"gAMA", struct.pack(">I", 45455))
    Image.fromarray(CORNERS).save(tmp_path / "a.png", pnginfo=chunk)
    Image.fromarray(CORNERS).save(tmp_path / "b.png", icc_profile=b"no profile")
    assert all(np.array_equal(pixels(tmp_path / name), CORNERS) for name in ("a.png", "b.png"))


def test_of_an_animation_it_is_the_first_picture(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.array_equal(pixels(tmp_path / name), np.asarray(frames[0]))


def test_a_clear_grey_of_sixteen_bits_is_white(tmp_path):
    Image.fromarray(np.array([[300, 257]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=300)
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [255, 1]


def test_no_program_is_given_what_is_named_as_a_picture(tmp_path):
    """Pillow gives encapsulated PostScript to Ghostscript, which runs it."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"a\.png is not a readable image: cannot identify"):
        read_picture(tmp_path / "a.png")


def test_the_discriminator_and_the_metrics_see_the_same(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(CORNERS).convert("RGBA").save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png", 2, 2) == read_png(tmp_path / "a.png")).all()


@pytest.mark.parametrize("kind", ["empty", "half", "zeros", "text", "large", "folder"])
def test_a_broken_picture_is_refused_by_its_name(kind, tmp_path):
    path, buffer = tmp_path / "a.png", io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    if kind == "folder":
        path.mkdir()
    elif kind == "large":
        Image.new("1", (20000, 10000)).save(path)
    else:
        half = content[: len(content) // 2]
        path.write_bytes(
            {"empty": b"", "half": half, "zeros": half + bytes(len(content) - len(half)), "text": b"no image"}[kind]
        )
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        read_picture(path)


def test_pictures_come_in_natural_order_without_what_systems_add(tmp_path):
    for name in ("img_10.png", "img_2.PNG", "img_1.webp", "._img_1.png", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in pictures_in(tmp_path)] == ["img_1.webp", "img_2.PNG", "img_10.png"]
    assert sorted(["10", "9", "a1", "1"], key=natural_key) == ["1", "9", "10", "a1"]


def test_an_image_that_is_not_finite_is_not_written(tmp_path, randn):
    image = randn(0, 3, 4, 4)
    image[0, 1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match=r"a\.png has values that are not finite"):
        write_png(tmp_path / "a.png", image)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".avif", ".bmp", ".gif", ".tif", ".TIFF", ".webp"])
def test_every_kind_of_picture_that_people_keep_is_read(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100} if suffix == ".avif" else {}
    Image.new("RGB", (8, 8), (250, 128, 4)).save(path, **options)
    assert pictures_in(tmp_path) == [path]
    assert np.abs(pixels(path).astype(int) - [250, 128, 4]).max() <= (2 if suffix == ".avif" else 0)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "a.jxl"])
def test_a_kind_of_picture_that_is_not_read_is_named_and_not_passed_over(name, tmp_path):
    for file in ("b.png", name):
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=rf"{name} is a picture of a kind that is not read"):
        pictures_in(tmp_path)


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_the_size_in_a_header_is_that_of_the_picture(tmp_path, orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (7, 5)).save(tmp_path / "a.jpg", exif=exif)
    width, height = read_picture(tmp_path / "a.jpg").size
    assert picture_size(tmp_path / "a.jpg") == (height, width)
