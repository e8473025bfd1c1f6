"""The bytes of a picture -> an RGB picture, or a refusal in one line.

Nothing of a picture is decoded before its size is known. Formats are those that programs send;
others (PostScript, film, icons with several pictures) are never handed to a decoder.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from genai_core.errors import BadInput

__all__ = ["FORMATS", "MOST_PIXELS", "read_picture"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

MOST_PIXELS = 40_000_000
"""Height x width: 120 MB decoded."""

_SAVED = "save it as PNG or JPEG"
_STEREO = "MPO"
"""A JPEG with further pictures behind it, as some cameras write: the first is the picture."""
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")

# Pillow's own bound warns on stderr below it; ours is checked as soon as a header is read.
Image.MAX_IMAGE_PIXELS = None


def read_picture(data: bytes, *, where: str, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Decode a picture, turned as its camera says; what is transparent lies on white.

    Args:
        data: The file's bytes.
        where: What an error names.
        most_pixels: Height x width at most.

    Raises:
        BadInput: It is no picture of a known format, too large, animated, or cut off.
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # decoders raise many kinds
        raise BadInput(
            f"no picture of a known format ({', '.join(FORMATS)})", where=where, remedy=_SAVED
        ) from error
    with opened:
        width, height = opened.size
        if width * height > most_pixels:
            raise BadInput(
                f"it has {width} x {height} pixels, at most {most_pixels / 1e6:g} million are "
                "decoded",
                where=where,
                remedy="send a smaller picture",
            )
        try:
            frames = int(getattr(opened, "n_frames", 1))
            if frames == 1 or opened.format == _STEREO:
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
        except MemoryError:
            raise
        except Exception as error:  # likewise: cut off, or damaged
            said = " ".join(str(error).split())[:100] or type(error).__name__
            raise BadInput(
                f"it cannot be decoded ({said})", where=where, remedy="send the whole file"
            ) from error
    raise BadInput(
        f"it is animated ({frames} pictures)", where=where, remedy="save the one that is meant"
    )


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _GREY_16:  # Pillow would cut values off at 255
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        above = picture.convert("RGBA")
        below = Image.new("RGBA", above.size, (255, 255, 255, 255))
        return Image.alpha_composite(below, above).convert("RGB")
    return picture.convert("RGB")
