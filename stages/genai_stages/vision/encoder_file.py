"""An encoder's ONNX file: what it takes and gives, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from genai_core.errors import BadModel
from genai_runtime.cpu.locations import check_locations

__all__ = ["EncoderForm", "read_encoder"]

_WHERE = "spec.vision.source"
_REMEDY = (
    "export the encoder and its projector as one graph: pixel_values float [1, 3, height, width] "
    "-> embeddings float [1, tokens, hidden size]"
)
_AXES = 4
_COLOURS = 3
_OUTPUT_AXES = (2, 3)
_FLOATS = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}


@dataclass(frozen=True)
class EncoderForm:
    """What an encoder takes and gives.

    Attributes:
        input: Name of the pixels, float32 or float16 [1, 3, height, width].
        output: Name of the embeddings, [1, tokens, width] or [tokens, width].
        size: Height and width of the pixels; None: both are free.
    """

    input: str
    output: str
    size: tuple[int, int] | None


def read_encoder(path: Path) -> EncoderForm:
    """Read `vision_encoder.onnx`.

    Raises:
        BadModel: It is no ONNX file, its data lies elsewhere, or it takes or gives something else.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - no weights inside
    except Exception as error:  # protobuf and the file system raise their own kinds
        raise BadModel("not an ONNX file", where=_WHERE, remedy=_REMEDY) from error
    check_locations(proto, path, holds=None)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    pixels = _the_only(inputs, "takes")
    embeddings = _the_only(list(proto.graph.output), "gives")
    shape = _shape(pixels)
    if len(shape) != _AXES or shape[0] not in (1, None) or shape[1] not in (_COLOURS, None):
        raise BadModel(
            f"its input {pixels.name} has the shape {_told(shape)}, not [1, 3, height, width]",
            where=_WHERE,
            remedy=_REMEDY,
        )
    height, width = shape[2:]
    if (height is None) is not (width is None):
        raise BadModel(
            f"one side of its input {pixels.name} {_told(shape)} is free, the other is not",
            where=_WHERE,
            remedy=_REMEDY,
        )
    if len(_shape(embeddings)) not in _OUTPUT_AXES:
        raise BadModel(
            f"its output {embeddings.name} has the shape {_told(_shape(embeddings))}, not "
            "[1, tokens, hidden size]",
            where=_WHERE,
            remedy=_REMEDY,
        )
    size = None if height is None or width is None else (height, width)
    return EncoderForm(pixels.name, embeddings.name, size)


def _the_only(values: list[onnx.ValueInfoProto], does: str) -> onnx.ValueInfoProto:
    if len(values) != 1:
        shown = ", ".join(value.name for value in values[:5]) or "nothing"
        raise BadModel(
            f"it {does} {len(values)} tensors ({shown}), not one", where=_WHERE, remedy=_REMEDY
        )
    (value,) = values
    kind = value.type.tensor_type.elem_type
    if kind not in _FLOATS:
        name = onnx.TensorProto.DataType.Name(kind).lower()
        raise BadModel(
            f"it {does} {value.name} as {name}, not float32 or float16",
            where=_WHERE,
            remedy=_REMEDY,
        )
    return value


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


def _told(shape: list[int | None]) -> str:
    return "[" + ", ".join("?" if side is None else str(side) for side in shape) + "]"
