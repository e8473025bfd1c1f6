"""The source model as it lies on disk: parsed, checked, its weights left where they are.

`Constant` is the one form in which weights and folded values travel through ingest. A weight's
array is mapped afresh at each use and dropped afterwards, so that the pages of a model that does
not fit into memory do not pile up in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from genai_core.errors import BadModel
from genai_core.files.foreign import boundary, read_json_object
from genai_stages.graph.packed_bits import packed_bytes, unpack_bits
from genai_stages.ingest.source.number_dims import number_dims
from genai_stages.ingest.source.reference_form import reference_form
from genai_stages.ingest.source.stripped_proto import read_stripped

Array = npt.NDArray[Any]

_SMALL = 4096
"""Elements of a tensor that is looked into when the file is read."""
_FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
}


_BYTE = 8
ROUNDINGS = {
    np.dtype(np.float16): 2.0**-11,
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
}
"""One unit in the last place of a cosine of 0.5 to 1, by the type that it is stored in."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is a floating type, bfloat16 included."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype == np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that is known: an initializer, or folded from known ones.

    Attributes:
        name: The source's name.
        shape: Its dimensions.
        dtype: Floating types count as float32, in which everything is computed.
        load: Yields the array; called at each use.
        origin: The initializer of which this is a transposed, reshaped or widened view.
        rounding: Of the type in which it is stored, see `ROUNDINGS`; zero for float32 and integers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], Array]
    origin: str | None = None
    rounding: float = 0.0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def array(self) -> Array:
        """The values; floats as float32."""
        array = self.load()
        if is_float(array.dtype) and array.dtype != np.float32:
            return array.astype(np.float32)
        return array

    @classmethod
    def of(cls, name: str, array: Array, *, origin: str | None = None) -> Constant:
        """Wrap an array that is in memory."""
        array = np.asarray(array)
        if is_float(array.dtype) and array.dtype != np.float32:
            array = array.astype(np.float32)
        return cls(name, array.shape, array.dtype, lambda: array, origin)


@dataclasses.dataclass(frozen=True)
class SourceModel:
    """A parsed ONNX file and its config.json.

    Attributes:
        path: The ONNX file.
        model: Its graph; functions inlined.
        config: config.json, empty where there is none.
        rounding: By how much the rotary tables that its graph stores are rounded, see `ROUNDINGS`.
        change: What was changed in it after reading, see `changed`.
    """

    path: Path
    model: ir.Model
    config: Mapping[str, Any]
    rounding: float = 0.0
    change: Callable[[onnx.ModelProto], None] | None = None

    def stripped(self, *, stored: bool = True) -> onnx.ModelProto:
        """The model as a protobuf without its weights, to run it or a part of it.

        In its reference form: see `reference_form`.

        Args:
            stored: Whether weights refer to the source's files; else 16 bit floats are called
                float32, for who puts such data in their place.
        """
        proto = _read_proto(self.path)
        if self.change is not None:
            self.change(proto)
        reference_form(proto, stored=stored)
        return proto

    def changed(self, change: Callable[[onnx.ModelProto], None]) -> SourceModel:
        """The same source with a change of its graph, its file left as it is."""
        before = self.change

        def both(proto: onnx.ModelProto) -> None:
            if before is not None:
                before(proto)
            change(proto)

        proto = _read_proto(self.path)
        both(proto)
        return dataclasses.replace(self, model=_graph_of(proto, self.path), change=both)

    @property
    def opset(self) -> int:
        """Version of the default domain."""
        return int(self.model.graph.opset_imports.get("", 1))


def read_source(path: Path, config: Mapping[str, Any]) -> SourceModel:
    """Parse an ONNX file and check that its data is there.

    Raises:
        BadModel: It is cut short, no ONNX, or its external data is missing, too short or outside
            its folder.
    """
    if not path.is_file():
        raise BadModel("there is no such file", where=path.name, remedy="name the ONNX file")
    with boundary(
        path.name,
        what="it is not an ONNX model, or it was cut short",
        remedy="copy the file again and compare its size",
    ):
        model = _graph_of(_read_proto(path), path)
    if not len(model.graph) or not model.graph.inputs or not model.graph.outputs:
        raise BadModel(
            "the graph has no nodes, inputs or outputs",
            where=path.name,
            remedy="export the model again",
        )
    for name, value in model.graph.initializers.items():
        where = f"{path.name}: {name}"
        tensor = value.const_value
        if tensor is None:
            raise BadModel("the initializer has no data", where=where)
        with boundary(where, what="it is no tensor of numbers", remedy="export the model again"):
            tensor.dtype.numpy()
            if isinstance(tensor, ir.ExternalTensor):
                _check_external(path, tensor)
            elif tensor.size <= _SMALL:
                tensor.numpy()  # its bytes fill its shape
    return SourceModel(path, model, config)


def _read_proto(path: Path) -> onnx.ModelProto:
    proto = read_stripped(path)
    number_dims(proto)
    return proto


def _graph_of(proto: onnx.ModelProto, path: Path) -> ir.Model:
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    if model.functions:
        from onnx_ir.passes.common import InlinePass

        InlinePass()(model)
    return model


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    where = f"{path.name}: {tensor.name}"
    location = PurePosixPath(str(tensor.location).replace("\\", "/"))
    if location.is_absolute() or ".." in location.parts or not location.parts:
        raise BadModel(
            f"its data lies outside the model's folder ({location})",
            where=where,
            remedy="keep the data beside the ONNX file",
        )
    file = path.parent / location
    if not file.is_file():
        raise BadModel(
            f"the file of its data, {location}, is missing",
            where=where,
            remedy="copy it beside the ONNX file",
        )
    dims = [int(dim) for dim in tensor.shape.numpy()]
    if min(dims, default=0) < 0:
        raise BadModel(f"its shape is {dims}", where=where, remedy="export the model again")
    # Plain integers: a product of dimensions may be more than 64 bits hold.
    needed = packed_bytes(math.prod(dims), tensor.dtype.bitwidth)
    start = tensor.offset or 0
    have = file.stat().st_size
    length = tensor.length if tensor.length is not None else needed
    if length != needed:
        raise BadModel(
            f"it needs {needed} bytes and its entry names {length}",
            where=where,
            remedy="export the model again",
        )
    if start + needed > have:
        raise BadModel(
            f"{location} is too short: it ends at byte {have}, the tensor at {start + needed}",
            where=where,
            remedy="copy the file again and compare its size",
        )


def constant_of(path: Path, name: str, tensor: ir.TensorProtocol) -> Constant:
    """The constant of an initializer or a Constant; external data is mapped at each use.

    Raises:
        BadModel: Its external data is missing, too short or outside the model's folder.
    """
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    dtype = np.dtype(np.float32) if tensor.dtype in _FLOATS else tensor.dtype.numpy()
    stored = tensor.dtype.numpy()
    rounding = ROUNDINGS.get(stored, 0.0)
    if not isinstance(tensor, ir.ExternalTensor):
        return Constant(name, shape, dtype, tensor.numpy, name, rounding)
    _check_external(path, tensor)
    file = path.parent / str(tensor.location)
    offset = int(tensor.offset or 0)

    def load() -> Array:
        if 0 in shape:
            return np.zeros(shape, stored)
        bits = tensor.dtype.bitwidth
        if bits >= _BYTE:
            return np.memmap(file, stored, "r", offset, shape)
        count = int(np.prod(shape, dtype=np.int64))
        packed = np.memmap(file, np.uint8, "r", offset, packed_bytes(count, bits))
        if is_float(stored):
            raise BadModel(
                f"weights of type {tensor.dtype.name} are not read",
                where=f"{path.name}: {name}",
                remedy="export the model with integer or wider float weights",
            )
        values = unpack_bits(packed, bits, count, signed=tensor.dtype.is_signed())
        return values.astype(stored).reshape(shape)

    return Constant(name, shape, dtype, load, name, rounding)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json; empty where there is none.

    Raises:
        BadModel: It is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config: dict[str, Any] = read_json_object(path)
    return config
