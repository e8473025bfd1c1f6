"""`genai.Attention` as ONNX Runtime's GroupQueryAttention, and what it needs around it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from genai_stages.backends.cpu.model_graph import MICROSOFT, ModelGraph
from genai_stages.graph.expand_attention import AttentionSpec

__all__ = ["add_attention", "rotates_inside", "table_inputs"]

_HEAD_MULTIPLE = 8
_ROTARY_HEAD_MULTIPLE = 16
_ROTARY_HALF_MULTIPLE = 8


def padded_head(head_dim: int) -> int:
    """Width of a head in the cache."""
    return -(-head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE


def rotates_inside(spec: AttentionSpec) -> bool:
    """Whether GroupQueryAttention's own rotary embedding can express this one."""
    return (
        bool(spec.rope)
        and spec.head_dim % _ROTARY_HEAD_MULTIPLE == 0
        and spec.rotary_dim % (2 * _ROTARY_HALF_MULTIPLE) == 0
    )


def table_inputs(rope: str) -> tuple[str, str]:
    """Names of the graph inputs that carry a rotary table."""
    suffix = "" if rope == "default" else f"_{rope}"
    return f"cos_cache{suffix}", f"sin_cache{suffix}"


def add_attention(graph: ModelGraph, node: ir.Node) -> None:
    """An attention, from its projections to its flat context."""
    spec = AttentionSpec.of(node)
    given = [graph.named(value) for value in node.inputs] + ["", ""]
    query, key, value, query_norm, key_norm = given[:5]
    name = str(node.outputs[0].name)
    query = _head(graph, query, spec, spec.num_heads, norm=query_norm)
    key = _head(graph, key, spec, spec.kv_heads, norm=key_norm)
    value = _padded(graph, value, spec, spec.kv_heads)
    width = padded_head(spec.head_dim)
    inputs, presents = [query, key, value], []
    for kind in ("key", "value"):
        shape: list[int | str] = [graph.batch, spec.kv_heads, "S", width]
        inputs.append(graph.input(f"past_key_values.{spec.layer}.{kind}", TensorProto.FLOAT, shape))
        presents.append(f"present.{spec.layer}.{kind}")
        graph.outputs.append(helper.make_tensor_value_info(presents[-1], TensorProto.FLOAT, shape))
    inputs += [
        graph.input("seqlens_k", TensorProto.INT32, [graph.batch]),
        graph.input("total_sequence_length", TensorProto.INT32, [1]),
    ]
    if rotates_inside(spec):
        inputs += _tables(graph, spec)
    context = name if width == spec.head_dim else f"{name}.padded"
    attributes: dict[str, int | float] = {
        "num_heads": spec.num_heads,
        "kv_num_heads": spec.kv_heads,
        "scale": float(spec.scale),
        "do_rotary": int(rotates_inside(spec)),
        "rotary_interleaved": int(spec.interleaved),
        "softcap": float(spec.softcap),
    }
    if spec.window:
        attributes["local_window_size"] = spec.window
    made = helper.make_node(
        "GroupQueryAttention",
        inputs,
        [context, *presents],
        name=f"GroupQueryAttention:{name}",
        domain=MICROSOFT,
    )
    made.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
    graph.nodes.append(made)
    if context != name:
        shaped = _split_heads(graph, context, spec.num_heads, width)
        ends = [graph.ints(0), graph.ints(spec.head_dim), graph.ints(3)]
        cut = graph.op("Slice", [shaped, *ends], f"{name}.cut")
        flat = graph.ints(0, 0, spec.num_heads * spec.head_dim)
        graph.op("Reshape", [cut, flat], name)


def _head(graph: ModelGraph, tensor: str, spec: AttentionSpec, heads: int, *, norm: str) -> str:
    """Query or key on its way to the kernel: normed, rotated where it can't, padded."""
    if norm:
        shaped = _split_heads(graph, tensor, heads, spec.head_dim)
        normed = graph.op(
            "RMSNormalization",
            [shaped, norm],
            f"{tensor}.normed",
            axis=-1,
            epsilon=float(spec.qk_norm_epsilon),
        )
        flat = graph.ints(0, 0, heads * spec.head_dim)
        tensor = graph.op("Reshape", [normed, flat], f"{tensor}.normed.flat")
    if spec.rope and not rotates_inside(spec):
        tensor = graph.op(
            "RotaryEmbedding",
            [tensor, *_tables(graph, spec), _positions(graph)],
            f"{tensor}.rotated",
            num_heads=heads,
            interleaved=int(spec.interleaved),
            rotary_embedding_dim=0 if spec.rotary_dim == spec.head_dim else spec.rotary_dim,
        )
    return _padded(graph, tensor, spec, heads)


def _tables(graph: ModelGraph, spec: AttentionSpec) -> list[str]:
    half = spec.rotary_dim // 2
    return [graph.input(name, TensorProto.FLOAT, ["S", half]) for name in table_inputs(spec.rope)]


def _positions(graph: ModelGraph) -> str:
    """Positions of the new tokens, int64 [batch, T]."""
    name = "positions"
    if name not in graph.made:
        graph.made.add(name)
        total = graph.input("total_sequence_length", TensorProto.INT32, [1])
        wide = graph.op("Cast", [total], "positions.total", to=TensorProto.INT64)
        tokens = graph.op("Shape", ["input_ids"], "positions.tokens", start=1, end=2)
        past = graph.op("Sub", [wide, tokens], "positions.past")
        scalars = [graph.op("Squeeze", [value], f"{value}.scalar") for value in (past, wide)]
        step = graph.constant("positions.step", np.array(1, dtype=np.int64))
        row = graph.op("Range", [*scalars, step], "positions.row")
        if graph.batch == 1:
            graph.op("Unsqueeze", [row, graph.ints(0)], name)
        else:
            shape = graph.op("Shape", ["input_ids"], "positions.shape")
            graph.op("Expand", [row, shape], name)
    return name


def _padded(graph: ModelGraph, tensor: str, spec: AttentionSpec, heads: int) -> str:
    width = padded_head(spec.head_dim)
    if width == spec.head_dim:
        return tensor
    shaped = _split_heads(graph, tensor, heads, spec.head_dim)
    zeros = graph.ints(0, 0, 0, 0, 0, 0, 0, width - spec.head_dim)
    wide = graph.op("Pad", [shaped, zeros], f"{tensor}.wide")
    return graph.op("Reshape", [wide, graph.ints(0, 0, heads * width)], f"{tensor}.padded")


def _split_heads(graph: ModelGraph, tensor: str, heads: int, width: int) -> str:
    return graph.op("Reshape", [tensor, graph.ints(0, 0, heads, width)], f"{tensor}.heads")
