"""A container's CPU model, read without its weights: what an executor must know of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
from pydantic import TypeAdapter, ValidationError

from genai_core.errors import BadModel
from genai_core.facts import RopeTable
from genai_runtime.cpu.locations import Holds, check_locations
from genai_runtime.cpu.onnx_edits import ATTENTION, attribute

ROPE_KEY = "genai.rope"
"""Metadata of the model: JSON of its rotary tables."""

EXACT_KEY = "genai.exact_int8"
"""Metadata of the model: "1" where its int8 weights are wide enough to saturate."""

_TABLES = TypeAdapter(dict[str, RopeTable])
_STATE_AXES = 3
_NEEDED = frozenset({"input_ids", "seqlens_k", "total_sequence_length"})


@dataclass(frozen=True)
class CacheTensor:
    """Keys or values of one layer: float32 [1, heads, tokens, width].

    Attributes:
        name: `0.key`, `0.value`, `1.key` ...
        heads: KV heads.
        width: Features of a head, as the cache has them.
    """

    name: str
    heads: int
    width: int


@dataclass(frozen=True)
class CpuModel:
    """See the module's docstring.

    Attributes:
        path: Its file, beside its data.
        proto: The graph; weights lie outside.
        wide: Its int8 weights may saturate u8 x s8 kernels.
        rope: The rotary tables that it states.
        cache: Its cache tensors.
        vocab_size: V of the logits.
        windows: Some layers see a window of the last tokens only.
        token_count: Rows of the embedding table.
        given: Further inputs float32 [1, T, width], name -> width.
        states: Further outputs likewise.
    """

    path: Path
    proto: onnx.ModelProto
    wide: bool
    rope: dict[str, RopeTable]
    cache: tuple[CacheTensor, ...]
    vocab_size: int
    windows: bool
    token_count: int
    given: dict[str, int]
    states: dict[str, int]


def read_model(path: Path, *, holds: Holds | None = None) -> CpuModel:
    """Read `model.onnx`.

    Args:
        path: The file.
        holds: See `check_locations`.

    Raises:
        BadModel: It is no ONNX file, not a model of this form, or its data lies elsewhere.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - no weights inside
    except Exception as error:  # protobuf and the file system raise their own kinds
        raise BadModel("not an ONNX file", where=str(path)) from error
    check_locations(proto, path, holds=holds)
    graph = proto.graph
    inputs = {value.name: _shape(value) for value in graph.input}
    attentions = [node for node in graph.node if node.op_type == ATTENTION]
    if not set(inputs) >= _NEEDED or not attentions or not graph.output:
        raise BadModel("not a dynamic model with GroupQueryAttention", where=str(path))
    properties = {prop.key: prop.value for prop in proto.metadata_props}
    try:
        rope = _TABLES.validate_python(json.loads(properties.get(ROPE_KEY, "{}")))
    except (ValueError, ValidationError, RecursionError) as error:
        raise BadModel(f"its metadata {ROPE_KEY} is not readable", where=str(path)) from error
    prefix = "past_key_values."
    return CpuModel(
        path=path,
        proto=proto,
        wide=properties.get(EXACT_KEY) == "1",
        rope=rope,
        cache=tuple(
            CacheTensor(name.removeprefix(prefix), shape[1], shape[3])
            for name, shape in inputs.items()
            if name.startswith(prefix)
        ),
        vocab_size=_shape(graph.output[0])[2],
        windows=any(attribute(node, "local_window_size", -1) > 0 for node in attentions),
        token_count=_token_count(graph) or _shape(graph.output[0])[2],
        given={name: shape[2] for name, shape in inputs.items() if len(shape) == _STATE_AXES},
        states={
            value.name: _shape(value)[2]
            for value in graph.output[1:]
            if not value.name.startswith("present.")
        },
    )


def _token_count(graph: onnx.GraphProto) -> int:
    """Rows of the table that token ids select from; 0 where no table is found."""
    tables = {node.input[0] for node in graph.node if "input_ids" in list(node.input)[1:2]}
    return next((int(t.dims[0]) for t in graph.initializer if t.name in tables and t.dims), 0)


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
