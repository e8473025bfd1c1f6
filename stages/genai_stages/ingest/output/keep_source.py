"""Keep the source's graph beside the core graph, its weights pointing into the core's files.

The source itself is what a built model is held against, so it must outlive the stage that read it,
and a second copy of its weights must not. A weight of the source is one of the core's, or several
rows of it behind each other, often turned: the kept graph says so with ordinary operators in front
(Concat, Gather, Transpose, Reshape, Cast), and every weight said so was compared with the source's
bytes. What the core has not (tables, norms that were shifted) lies in a file of its own.

`source/model.onnx` names its data relative to the folder of the core graph; open it with that as
ONNX Runtime's folder of external initializers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from genai_core.facts import ModelFacts, TensorSource
from genai_stages.graph.core_graph import mapped, read_core
from genai_stages.graph.tensor_file import TensorFile
from genai_stages.ingest.admission.source_inputs import SourceInputs
from genai_stages.ingest.source.source_model import Array, SourceModel, constant_of
from genai_stages.ingest.source.stripped_proto import INSIDE

SOURCE_FOLDER = "source"
SOURCE_FILE = f"{SOURCE_FOLDER}/model.onnx"
REST_FILE = f"{SOURCE_FOLDER}/rest.data"
CORE = "core:"
"""What the names of the core's weights begin with in the kept graph."""
_BLOCK = 1 << 24
"""Values compared at a time."""
_IR_VERSION = 4
"""From here on initializers need not be inputs."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """How a source was kept.

    Attributes:
        pointing: Weights that point into the core's files.
        bytes_pointing: Bytes of the source that they stand for.
        bytes_copied: Bytes that lie in a file of their own.
    """

    pointing: int
    bytes_pointing: int
    bytes_copied: int


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A weight of the core and the source's channels that it holds."""

    name: str
    tensor: ir.ExternalTensor
    rows: tuple[int, ...] | range | None


def keep_source(source: SourceModel, core: Path, inputs: SourceInputs | None = None) -> Kept:
    """Write `source/model.onnx` (and `source/rest.data`) into the folder of the core graph.

    Args:
        source: As it was read, at its own sizes.
        core: Folder of the finished core graph.
        inputs: Of the source, where they tell more than the graph: sizes of caches that its own
            shapes leave open, and windows that stand in config.json.
    """
    model, facts = read_core(core)
    pieces = _pieces(model, facts)
    proto = source.stripped(stored=False)
    _lift_constants(proto)
    if inputs is not None and inputs.native is None:
        _state(proto.graph, inputs)
    (core / SOURCE_FOLDER).mkdir(exist_ok=True)
    held = source.model.graph.initializers
    made: list[onnx.NodeProto] = []
    kept: list[onnx.TensorProto] = []
    used: dict[str, onnx.TensorProto] = {}
    pointing = bytes_pointing = bytes_copied = 0
    lifted = {
        str(value.name): attribute.as_tensor()
        for node in source.model.graph
        if node.op_type == "Constant"
        for value in node.outputs
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    }
    with TensorFile(core / REST_FILE) as rest:
        for tensor in proto.graph.initializer:
            size = int(np.prod(tensor.dims, dtype=np.int64))
            if size * 4 < INSIDE and not tensor.external_data:
                kept.append(tensor)
                continue
            value = held.get(tensor.name)
            known = value.const_value if value is not None else lifted.get(tensor.name)
            assert known is not None
            array = constant_of(source.path, tensor.name, known).load()
            nodes = _expression(tensor, array, pieces.get(tensor.name, ()), used)
            if nodes is not None:
                made += nodes
                pointing += 1
                bytes_pointing += array.nbytes
                continue
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = array.astype(np.float32, copy=False)
            added = rest.add(tensor.name, array).const_value
            assert isinstance(added, ir.ExternalTensor)
            kept.append(_external(tensor.name, tensor.data_type, REST_FILE, added))
            bytes_copied += added.length or 0
    if not bytes_copied:
        (core / REST_FILE).unlink()
    _write(proto, [*kept, *used.values()], made, core / SOURCE_FILE)
    return Kept(pointing, bytes_pointing, bytes_copied)


def _write(
    proto: onnx.ModelProto,
    initializers: Sequence[onnx.TensorProto],
    made: Iterable[onnx.NodeProto],
    path: Path,
) -> None:
    graph = proto.graph
    nodes = [*made, *graph.node]
    outside = {name for node in nodes for name in node.output}
    for field, entries in (
        (graph.node, nodes),
        (graph.initializer, list(initializers)),
        (graph.input, [value for value in graph.input if value.name not in outside]),
    ):
        copies = [entry.__class__.FromString(entry.SerializeToString()) for entry in entries]
        del field[:]
        field.extend(copies)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _state(graph: onnx.GraphProto, inputs: SourceInputs) -> None:
    """Write into a dynamic graph what is known of its inputs."""
    caches = {cache.name: cache.dims for cache in inputs.named("past")}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, caches.get(value.name, ()), strict=False):
            if isinstance(size, int):
                dim.dim_value = size
    windows = {window.name: window for window in inputs.named("window")}
    left = [value for value in graph.input if value.name not in windows]
    del graph.input[:]
    graph.input.extend(left)
    for name, window in windows.items():
        graph.initializer.append(
            numpy_helper.from_array(np.array(window.number, window.dtype), name)
        )


def _lift_constants(proto: onnx.ModelProto) -> None:
    """Large constants become initializers, which may lie outside of the graph."""
    left: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        first = node.attribute[0] if node.op_type == "Constant" and node.attribute else None
        if first is not None and first.name == "value" and first.t.ByteSize() >= INSIDE:
            first.t.name = node.output[0]
            proto.graph.initializer.append(first.t)
        else:
            left.append(node)
    if len(left) < len(proto.graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)


def _pieces(model: ir.Model, facts: ModelFacts) -> Mapping[str, list[_Piece]]:
    """The core's weights by the source tensor that they come from."""
    pieces: dict[str, list[_Piece]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        origin = facts.provenance.get(name) or TensorSource(source=name)
        rows: tuple[int, ...] | range | None = origin.index
        if rows is None and origin.rows is not None:
            rows = range(*origin.rows)
        pieces.setdefault(origin.source, []).append(_Piece(name, tensor, rows))
    return pieces


def _expression(
    tensor: onnx.TensorProto,
    array: Array,
    pieces: Sequence[_Piece],
    used: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto] | None:
    """Nodes that make a source's weight of the core's, if every byte is the same; else None."""
    chosen = _covering(pieces)
    if chosen is None:
        return None
    channels = np.concatenate([_channels(piece) for piece in chosen])
    order = np.argsort(channels)
    turned = _turned(array, chosen, channels)
    if turned is None:
        return None
    nodes: list[onnx.NodeProto] = []
    names = []
    for piece in chosen:
        name = f"{CORE}{piece.name}"
        kind = onnx.TensorProto.FLOAT
        used.setdefault(name, _external(name, kind, str(piece.tensor.location), piece.tensor))
        names.append(name)

    def step(kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{tensor.name}:{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    last = names[0] if len(names) == 1 else step("Concat", names, axis=0)
    if not np.array_equal(order, np.arange(len(order))):
        index = f"{tensor.name}:order"
        used[index] = numpy_helper.from_array(order, index)
        last = step("Gather", [last, index], axis=0)
    if turned:
        last = step("Transpose", [last], perm=[1, 0])
    shape = [len(order), *chosen[0].tensor.shape.numpy()[1:]]
    if list(tensor.dims) != (shape[::-1] if turned else shape):
        index = f"{tensor.name}:shape"
        used[index] = numpy_helper.from_array(np.array(tensor.dims, np.int64), index)
        last = step("Reshape", [last, index])
    if tensor.data_type != onnx.TensorProto.FLOAT:
        last = step("Cast", [last], to=tensor.data_type)
    if not nodes:
        step("Identity", [last])
    nodes[-1].output[0] = tensor.name
    return nodes


def _channels(piece: _Piece) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    count = piece.tensor.shape.numpy()[0]
    return np.arange(count) if piece.rows is None else np.array(piece.rows, np.int64)


def _covering(pieces: Sequence[_Piece]) -> list[_Piece] | None:
    """Pieces that hold each channel once; None where some are missing."""
    for piece in pieces:
        if piece.rows is None and len(piece.tensor.shape):
            return [piece]
    chosen: list[_Piece] = []
    covered: set[int] = set()
    for piece in pieces:
        rows = set(piece.rows or ())
        if rows and not rows & covered and len(rows) == len(piece.rows or ()):
            chosen.append(piece)
            covered |= rows
    if not chosen or covered != set(range(len(covered))):
        return None
    return chosen


def _turned(
    array: Array, pieces: Sequence[_Piece], channels: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> bool | None:
    """Whether the source holds [in, out] instead of [out, in]; None where bytes differ."""
    inside = pieces[0].tensor.shape.numpy()[1:]
    width = int(np.prod(inside, dtype=np.int64))
    if len(inside) > 1 or array.size != len(channels) * width:
        return None
    plain = array.reshape(len(channels), *inside)
    if _same(plain, pieces, channels):
        return False
    if not inside:
        return None
    return True if _same(array.reshape(width, -1).T, pieces, channels) else None


def _same(
    wanted: Array, pieces: Sequence[_Piece], channels: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> bool:
    start = 0
    for piece in pieces:
        have = mapped(piece.tensor)
        rows = channels[start : start + len(have)]
        start += len(have)
        whole = bool(np.all(np.diff(rows) == 1))
        for part in _parts(len(have), max(1, have[:1].size)):
            place = slice(rows[part][0], rows[part][-1] + 1) if whole else rows[part]
            one = np.ascontiguousarray(wanted[place])
            two = np.ascontiguousarray(have[part].astype(one.dtype))
            if not np.array_equal(one.reshape(-1).view(np.uint8), two.reshape(-1).view(np.uint8)):
                return False
    return True


def _parts(rows: int, width: int) -> Iterator[slice]:
    # A small block first: most of what differs differs at once.
    step = max(1, _BLOCK // width)
    first = min(rows, 8)
    yield slice(0, first)
    for start in range(first, rows, step):
        yield slice(start, min(rows, start + step))


def _external(name: str, kind: int, location: str, tensor: ir.ExternalTensor) -> onnx.TensorProto:
    entry = onnx.TensorProto(
        name=name,
        data_type=kind,
        dims=tensor.shape.numpy(),
        data_location=onnx.TensorProto.EXTERNAL,
    )
    fields = {"location": location, "offset": tensor.offset or 0, "length": tensor.length}
    for key, value in fields.items():
        entry.external_data.add(key=key, value=str(value))
    return entry
