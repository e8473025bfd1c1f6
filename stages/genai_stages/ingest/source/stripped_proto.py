"""An ONNX file without its weights, even where they are inside the file.

A protobuf is parsed as a whole, so a model with its weights inside needs its own size in memory
several times over. But a weight's bytes lie in one piece in the file: here the file is walked field
by field, weights are skipped, and what is parsed refers to them as external data: in the ONNX file
itself, at their offset. Everything behind this sees one kind of model.

Field numbers are those of onnx.proto: ModelProto.graph 7; GraphProto.initializer 5; TensorProto
name 8, raw_data 9, external_data 13, data_location 14.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

INSIDE = 1024
"""Bytes; smaller weights stay in the graph."""
_GRAPH, _INITIALIZER, _RAW_DATA, _BYTES = 7, 5, 9, 2


def read_stripped(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; weights of 1 KB and more are external data in it or beside it.

    Raises:
        DecodeError: It is no protobuf of a model, or cut short.
    """
    if path.stat().st_size == 0:
        raise DecodeError("empty file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts: list[bytes] = []
        for number, start, body, end in _fields(data, 0, len(data)):
            if number == _GRAPH and body is not None:
                graph = b"".join(_graph(data, body, end, path.name))
                parts.append(_field(_GRAPH, graph))
            else:
                parts.append(data[start:end])
    model = onnx.ModelProto()
    model.ParseFromString(b"".join(parts))
    return model


def _graph(data: mmap.mmap, start: int, end: int, name: str) -> Iterator[bytes]:
    for number, first, body, last in _fields(data, start, end):
        if number == _INITIALIZER and body is not None and last - body >= INSIDE:
            yield _field(_INITIALIZER, _tensor(data, body, last, name))
        else:
            yield data[first:last]


def _tensor(data: mmap.mmap, start: int, end: int, name: str) -> bytes:
    """A TensorProto whose raw_data, if it is large, became a reference into the file."""
    parts: list[bytes] = []
    place: tuple[int, int] | None = None
    for number, first, body, last in _fields(data, start, end):
        if number == _RAW_DATA and body is not None and last - body >= INSIDE:
            place = (body, last - body)
        else:
            parts.append(data[first:last])
    if place is None:
        return b"".join(parts)
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    entries = {"location": name, "offset": str(place[0]), "length": str(place[1])}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return b"".join(parts) + bytes(tensor.SerializeToString())


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None, int]]:
    """(number, start, start of the content of a bytes field or None, end) of each field."""
    position = start
    while position < end:
        first = position
        tag, position = _varint(data, position, end)
        body: int | None = None
        match tag & 7:
            case 0:
                _, position = _varint(data, position, end)
            case 1:
                position += 8
            case 2:
                length, body = _varint(data, position, end)
                position = body + length
            case 5:
                position += 4
            case kind:
                raise DecodeError(f"wire type {kind} at byte {first}")
        if position > end or tag >> 3 == 0:
            raise DecodeError(f"a field at byte {first} reaches beyond its end")
        yield tag >> 3, first, body, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
    raise DecodeError(f"a number at byte {position} does not end")


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | _BYTES]) + length + bytes([size]) + content
