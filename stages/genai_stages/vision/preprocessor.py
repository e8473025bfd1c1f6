"""preprocessor_config.json, or config.json, of an encoder -> how pictures become its pixels.

The keys are those of Hugging Face's image processors
(https://huggingface.co/docs/transformers/main_classes/image_processor). What would need another
picture than one resized as a whole (tiles, padding, several crops) is refused by its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genai_core.container.vision_info import Preprocessing, Resample
from genai_core.errors import BadModel
from genai_core.files.foreign import read_json_object
from genai_core.sources.vision_files import PREPROCESSOR_ROLES

__all__ = ["read_preprocessing"]

_WHERE = "spec.vision.source"
_TILED = {
    "do_pad": "pads pictures",
    "do_image_splitting": "cuts pictures into tiles",
    "do_pan_and_scan": "cuts pictures into several crops",
    "image_grid_pinpoints": "cuts pictures into tiles",
    "max_image_tiles": "cuts pictures into tiles",
    "max_dynamic_patch": "cuts pictures into tiles",
    "temporal_patch_size": "gives the encoder patches instead of a picture",
}
"""Key -> what is done where it is set."""
_RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's number."""
_BILINEAR = 2
"""What an image processor does that says nothing of it."""
_BYTE = 255
_DEFAULT_MOST_PIXELS = 1024 * 1024


def read_preprocessing(
    folder: Path, encoder_size: tuple[int, int] | None, *, multiple: int = 1
) -> Preprocessing:
    """What the files of an encoder say.

    Args:
        folder: Of the encoder's source, by roles.
        encoder_size: Height and width of the pixels that it takes; None = any.
        multiple: Without a size: what the sides must be multiples of, as far as the graph tells.

    Raises:
        BadModel: No file says it, what is said does not fit the encoder, or needs what is not
            supported.
    """
    said: dict[str, Any] = {}
    for name in reversed(PREPROCESSOR_ROLES):
        if (folder / name).is_file():
            said |= _known(read_json_object(folder / name, where=name))
    for key, what in _TILED.items():
        if _does_more(said.get(key)):
            raise BadModel(
                f"its preprocessing {what} ({key}: {said[key]!r}), which is not supported",
                where=_WHERE,
                remedy="export an encoder that takes each picture as a whole",
            )
    try:
        return Preprocessing(
            **(_fixed(said, encoder_size) if encoder_size else _free(said, multiple)),
            resample=_resample(said),
            scale=_number(said, "rescale_factor", 1 / _BYTE) if _does(said, "do_rescale") else 1.0,
            mean=_channels(said, "image_mean") if _does(said, "do_normalize") else (0, 0, 0),
            std=_channels(said, "image_std") if _does(said, "do_normalize") else (1, 1, 1),
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"])) or "preprocessing"
        raise BadModel(
            f"{place}: {problem['msg']}", where=PREPROCESSOR_ROLES[0], remedy="correct it"
        ) from error


def _known(read: Mapping[str, Any]) -> dict[str, Any]:
    """The file's keys, and of a whole model's config.json those of its encoder."""
    inner = read.get("vision_config")
    return {**(inner if isinstance(inner, Mapping) else {}), **read}


def _does_more(value: object) -> bool:
    """Whether a flag is set, or a number or a list says more than one."""
    if isinstance(value, bool) or value is None:
        return bool(value)
    return value > 1 if isinstance(value, int | float) else bool(value)


def _does(said: Mapping[str, Any], key: str) -> bool:
    return said.get(key) is not False


def _fixed(said: Mapping[str, Any], encoder: tuple[int, int]) -> dict[str, Any]:
    """Of an encoder of one size."""
    resized, edge = _said_size(said, said.get("size", said.get("image_size")))
    cropped, _ = (
        _said_size(said, said.get("crop_size")) if said.get("do_center_crop") else (None, 0)
    )
    final = cropped or resized
    if final is not None and final != encoder:
        raise BadModel(
            f"its preprocessing yields {final[0]} x {final[1]} pixels, the encoder takes "
            f"{encoder[0]} x {encoder[1]}",
            where=_WHERE,
            remedy="export the encoder for the size of its preprocessing, or correct that",
        )
    if cropped is not None and edge is None and resized is not None:
        if resized != cropped:
            raise BadModel(
                f"its preprocessing resizes to {resized[0]} x {resized[1]} and then cuts "
                f"{cropped[0]} x {cropped[1]} out; only a shortest_edge goes with do_center_crop",
                where=_WHERE,
                remedy="resize to the encoder's size, or state size.shortest_edge",
            )
        edge = None
    if edge is not None and cropped is None:
        raise BadModel(
            f"its preprocessing brings the shorter side to {edge} and leaves the other as it is, "
            f"the encoder takes {encoder[0]} x {encoder[1]}",
            where=_WHERE,
            remedy="state do_center_crop and crop_size, or size.height and size.width",
        )
    if edge is not None and edge < max(encoder):
        raise BadModel(
            f"its preprocessing brings the shorter side to {edge}, and cuts {encoder[0]} x "
            f"{encoder[1]} out of that",
            where=_WHERE,
            remedy="correct size.shortest_edge or crop_size",
        )
    return {"size": encoder, "shortest_edge": edge}


def _free(said: Mapping[str, Any], multiple: int) -> dict[str, Any]:
    """Of an encoder that takes any size."""
    patch = said.get("patch_size")
    if not isinstance(patch, int) or isinstance(patch, bool) or patch < 1:
        raise BadModel(
            "neither preprocessor_config.json nor config.json says patch_size, a number: the sides "
            "of pictures are multiples of it",
            where=_WHERE,
            remedy="write it there, or export the encoder for one size",
        )
    merged = patch * int(_number(said, "merge_size", 1))
    most = _number(said, "max_pixels", _DEFAULT_MOST_PIXELS)
    return {
        "multiple": merged * multiple // _common(merged, multiple),
        "least_pixels": int(_number(said, "min_pixels", 1)),
        "most_pixels": int(most),
    }


def _common(one: int, other: int) -> int:
    while other:
        one, other = other, one % other
    return one


def _said_size(said: Mapping[str, Any], size: object) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width, or the length of the shorter side."""
    if not _does(said, "do_resize") or size is None:
        return None, None
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size), None
    if isinstance(size, Mapping):
        sides = size.get("height"), size.get("width")
        if all(isinstance(side, int) for side in sides):
            return (int(sides[0]), int(sides[1])), None  # type: ignore[arg-type]
        edge = size.get("shortest_edge")
        if isinstance(edge, int):
            return None, edge
    raise BadModel(
        f"size {size!r} is neither a number, nor height and width, nor a shortest_edge"[:300],
        where=_WHERE,
        remedy="correct it in preprocessor_config.json",
    )


def _resample(said: Mapping[str, Any]) -> Resample:
    number = said.get("resample", _BILINEAR)
    known = isinstance(number, int) and not isinstance(number, bool)
    if not known or not 0 <= number < len(_RESAMPLES):
        raise BadModel(
            f"resample {number!r} is none of Pillow's numbers 0 to 5"[:200],
            where=_WHERE,
            remedy="correct it in preprocessor_config.json",
        )
    found: Resample = _RESAMPLES[number]
    return found


def _number(said: Mapping[str, Any], key: str, default: float) -> float:
    value = said.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise BadModel(
            f"{key} {value!r} is no number above 0"[:200], where=_WHERE, remedy="correct it"
        )
    return float(value)


def _channels(said: Mapping[str, Any], key: str) -> Sequence[float]:
    value = said.get(key)
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ):
        told = "does not say" if value is None else f"says {value!r:.100} for"
        raise BadModel(
            f"{' or '.join(PREPROCESSOR_ROLES)} {told} {key}, three numbers",
            where=_WHERE,
            remedy="save the processor of the encoder's training beside it, or set "
            "do_normalize: false",
        )
    return value
