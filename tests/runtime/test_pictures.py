"""Pictures are decoded as they look, or refused in one line; pixels are what an encoder wants."""

from __future__ import annotations

import io
import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genai_core.container.vision_info import Preprocessing
from genai_core.errors import BadInput
from genai_runtime.vision.pictures import MOST_PIXELS, read_picture
from genai_runtime.vision.pixels import pixels_of

ORIENTATION = 0x0112
PLAIN: dict[str, Any] = {
    "resample": "bilinear", "scale": 1 / 255, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7),
}  # fmt: skip


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def halves(mode: str = "RGB", left: Any = (200, 30, 40), right: Any = (20, 60, 220)) -> Image.Image:
    """8 x 4, left and right of one color each."""
    picture = Image.new(mode, (8, 4), left)
    picture.paste(right, (4, 0, 8, 4))
    return picture


def near(data: bytes, left: Any, right: Any, *, within: int = 3) -> None:
    found = np.asarray(read_picture(data, where="a"), int)
    assert found.shape == (4, 8, 3)
    assert np.abs(found[1, 1] - left).max() <= within, found[1, 1]
    assert np.abs(found[1, 6] - right).max() <= within, found[1, 6]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_read_picture_takes_every_format(kind: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }
    near(file_of(halves(), kind, **options.get(kind, {})), (200, 30, 40), (20, 60, 220))


@pytest.mark.parametrize(
    ("picture", "left", "right"),
    [
        (halves("L", 200, 20), (200,) * 3, (20,) * 3),
        (halves("LA", (200, 255), (20, 0)), (200,) * 3, (255,) * 3),
        (halves("RGBA", (200, 30, 40, 255), (20, 60, 220, 0)), (200, 30, 40), (255,) * 3),
        (halves("RGBA", (200, 30, 40, 255), (0, 0, 0, 128)), (200, 30, 40), (127,) * 3),
        (halves().convert("P", palette=Image.Palette.ADAPTIVE), (200, 30, 40), (20, 60, 220)),
        (halves("1", 1, 0), (255,) * 3, (0,) * 3),
        (halves("I;16", 200 * 257, 20 * 257), (200,) * 3, (20,) * 3),
    ],
    ids=["grey", "grey-alpha", "transparent", "half-transparent", "palette", "bits", "grey-16"],
)
def test_read_picture_makes_rgb_of_every_mode(picture: Image.Image, left: Any, right: Any) -> None:
    near(file_of(picture), left, right)


def test_read_picture_takes_a_transparent_palette_for_white() -> None:
    picture = halves().convert("P", palette=Image.Palette.ADAPTIVE)
    near(file_of(picture, "GIF", transparency=picture.getpixel((6, 1))), (200, 30, 40), (255,) * 3)


def test_read_picture_makes_rgb_of_a_printers_colors() -> None:
    picture = halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0))
    near(file_of(picture, "JPEG", quality=100, subsampling=0), (255, 0, 0), (0, 0, 255), within=40)


def test_read_picture_turns_it_as_its_camera_says() -> None:
    turned = halves().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 270 degrees
    data = file_of(turned, "PNG", exif=exif)
    near(data, (200, 30, 40), (20, 60, 220))


def test_read_picture_takes_the_first_of_a_stereo_camera() -> None:
    right = halves(left=(0, 0, 0), right=(0, 0, 0))
    out = io.BytesIO()
    halves().save(out, "MPO", save_all=True, append_images=[right], quality=100, subsampling=0)
    near(out.getvalue(), (200, 30, 40), (20, 60, 220))


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has one row of nothing."""
    data = bytearray(file_of(Image.new("L", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def animated(kind: str) -> bytes:
    return file_of(halves(), kind, save_all=True, append_images=[halves(left=(0, 0, 0))])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "no picture of a known format"),
        (file_of(halves(), "TIFF"), "no picture of a known format"),
        (file_of(halves())[:60], "cannot be decoded"),
        (file_of(halves(), "JPEG")[:-8], "cannot be decoded"),
        (animated("GIF"), r"it is animated \(2 pictures\)"),
        (animated("WEBP"), r"it is animated \(2 pictures\)"),
        (animated("PNG"), r"it is animated \(2 pictures\)"),
        (header_of_png(8000, 6000), "it has 8000 x 6000 pixels, at most 40 million"),
        (header_of_png(2**31 - 1, 2**31 - 1), "it has 2147483647 x 2147483647 pixels, at most 40"),
    ],
    ids=["empty", "eps", "tiff", "cut", "cut-jpeg", "gif", "webp", "apng", "large", "bomb"],
)
def test_read_picture_refuses_in_one_line(data: bytes, told: str) -> None:
    with pytest.raises(BadInput, match=told) as refused:
        read_picture(data, where="messages[0]")
    assert refused.value.where == "messages[0]"
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
def test_read_picture_refuses_or_reads_whatever_is_damaged(noise: bytes, kind: str) -> None:
    data = bytearray(file_of(halves(), kind))
    start = sum(noise) % len(data)
    data[start : start + len(noise)] = noise
    try:
        found = read_picture(bytes(data), where="a", most_pixels=10_000)
    except BadInput:
        return
    assert found.mode == "RGB"
    assert found.size[0] * found.size[1] <= 10_000


def test_the_bound_on_pixels_is_forty_million() -> None:
    assert MOST_PIXELS == 40_000_000


def test_pixels_of_scales_each_channel_by_its_own() -> None:
    how = Preprocessing(size=(4, 8), **PLAIN)
    found = pixels_of(halves(), how, where="a")
    assert found.shape == (1, 3, 4, 8)
    assert found.dtype == np.float32
    for channel, value in enumerate((200, 30, 40)):
        expected = (value / 255 - how.mean[channel]) / how.std[channel]
        assert found[0, channel, 1, 1] == pytest.approx(expected, abs=1e-6)


def test_pixels_of_cuts_the_middle_out_of_the_resized_picture() -> None:
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    wide.paste((0, 255, 0), (20, 0, 40, 20))
    plain = {**PLAIN, "mean": (0, 0, 0), "std": (1, 1, 1), "resample": "nearest"}
    found = pixels_of(wide, Preprocessing(size=(10, 10), shortest_edge=10, **plain), where="a")
    assert found[0, 1].min() == 1.0, "the green middle alone"
    whole = pixels_of(wide, Preprocessing(size=(10, 9), **plain), where="a")
    assert whole[0, 1, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0], "the whole, squeezed"


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 30), st.integers(1, 4000))
def test_pixels_of_keep_proportions_within_bounds_in_multiples(
    width: int, height: int, multiple: int, least: int
) -> None:
    most = max(least, 4 * multiple * multiple) * 8
    how = Preprocessing(multiple=multiple, least_pixels=least, most_pixels=most, **PLAIN)
    picture = Image.new("RGB", (width, height))
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(BadInput, match="one side is more than 200 times the other"):
            pixels_of(picture, how, where="a")
        return
    rows, columns = pixels_of(picture, how, where="a").shape[2:]
    assert rows % multiple == columns % multiple == 0
    assert rows * columns >= least
    slim = multiple * math.ceil(math.sqrt(most * 200))  # a side of one multiple
    assert rows * columns <= max(most, slim)
    if min(rows, columns) >= 8 * multiple:
        assert rows / columns == pytest.approx(height / width, rel=0.3)
