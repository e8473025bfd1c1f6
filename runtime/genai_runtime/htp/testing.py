"""A tiny quantized decoder, written by hand, for the tests of the Snapdragon backend.

Two layers, grouped-query attention, static shapes, QDQ with 16-bit activations, 8-bit weights and
an 8-bit key-value cache: the form that the convert stage produces, without needing that stage. The
weights and encodings depend on the seed alone, so every AR and CL of one seed shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from genai_core.facts import RopeTable
from genai_runtime.htp.metadata import GraphMetadata, TensorMetadata

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, VOCAB, LAYERS = 64, 4, 2, 16, 256, 512, 2
THETA = 10000.0
MASK = -100.0
SPLITS = {
    1: ((0, LAYERS, True, True),),
    3: ((0, 0, True, False), (0, 1, False, False), (1, 2, False, True)),
}
"""Number of splits -> for each: first layer, last layer (exclusive), embedding?, lm_head?"""

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TensorEncoding:
    """Affine quantization of a tensor: `value = (integer - zero_point) * scale`."""

    scale: float
    zero_point: int
    bits: int


@dataclass
class _Graph:
    """Nodes and weights of one part in float."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Float] = field(default_factory=dict)
    integers: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    inputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def ints(self, *values: int) -> str:
        name = "i_" + "_".join(str(v).replace("-", "m") for v in values)
        self.integers[name] = np.array(values, np.int64)
        return name


@cache
def weights(seed: int = 7) -> Mapping[str, Float]:
    """Float weights by name; MatMul weights are [in, out]."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, gain: float = 1.0) -> Float:
        made = rng.standard_normal(shape) * gain / np.sqrt(shape[0])
        return np.asarray(made, np.float32)

    made: dict[str, Float] = {"embed": rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)}
    for layer in range(LAYERS):
        p = f"l{layer}."
        made[p + "norm1"] = (1 + 0.1 * rng.standard_normal(HIDDEN)).astype(np.float32)
        made[p + "q"] = normal(HIDDEN, HEADS * HEAD_DIM, gain=HEAD_DIM**-0.5 * 1.5)
        made[p + "k"] = normal(HIDDEN, KV_HEADS * HEAD_DIM, gain=1.5)
        made[p + "v"] = normal(HIDDEN, KV_HEADS * HEAD_DIM)
        made[p + "o"] = normal(HEADS * HEAD_DIM, HIDDEN)
        made[p + "norm2"] = (1 + 0.1 * rng.standard_normal(HIDDEN)).astype(np.float32)
        made[p + "gate"] = normal(HIDDEN, INTER)
        made[p + "up"] = normal(HIDDEN, INTER)
        made[p + "down"] = normal(INTER, HIDDEN)
    made["norm"] = (1 + 0.1 * rng.standard_normal(HIDDEN)).astype(np.float32)
    made["head"] = normal(HIDDEN, VOCAB, gain=2.0)
    return made


def _linear(g: _Graph, x: str, name: str, seed: int) -> str:
    g.weights[name + ".w"] = weights(seed)[name]
    return g.add("MatMul", [x, name + ".w"], name)


def _norm(g: _Graph, x: str, name: str, seed: int) -> str:
    g.weights[name + ".w"] = weights(seed)[name]
    return g.add("RMSNormalization", [x, name + ".w"], name, axis=-1, epsilon=1e-5)


def _heads(g: _Graph, x: str, ar: int, heads: int) -> str:
    flat = g.add("Reshape", [x, g.ints(1, ar, heads, HEAD_DIM)], x + ".heads")
    return g.add("Transpose", [flat], x + ".t", perm=[2, 0, 1, 3])


def _rotate(g: _Graph, x: str) -> str:
    half = HEAD_DIM // 2
    first = g.add("Slice", [x, g.ints(0), g.ints(half), g.ints(3)], x + ".a")
    second = g.add("Slice", [x, g.ints(half), g.ints(HEAD_DIM), g.ints(3)], x + ".b")
    cos, sin = "position_ids_cos", "position_ids_sin"
    left = g.add(
        "Sub",
        [g.add("Mul", [first, cos], x + ".ac"), g.add("Mul", [second, sin], x + ".bs")],
        x + ".l",
    )
    right = g.add(
        "Add",
        [g.add("Mul", [second, cos], x + ".bc"), g.add("Mul", [first, sin], x + ".as")],
        x + ".r",
    )
    return g.add("Concat", [left, right], x + ".rot", axis=3)


def _layer(g: _Graph, x: str, layer: int, size: tuple[int, int], seed: int) -> str:
    ar, cl = size
    p, past = f"l{layer}.", cl - ar
    group = HEADS // KV_HEADS
    for name in ("position_ids_cos", "position_ids_sin"):
        g.inputs[name] = (TensorProto.FLOAT, (1, 1, ar, HEAD_DIM // 2))
    g.inputs["attention_mask"] = (TensorProto.FLOAT, (1, 1, ar, cl))
    g.inputs[f"past_key_{layer}_in"] = (TensorProto.FLOAT, (KV_HEADS, 1, HEAD_DIM, past))
    g.inputs[f"past_value_{layer}_in"] = (TensorProto.FLOAT, (KV_HEADS, 1, past, HEAD_DIM))
    n = _norm(g, x, p + "norm1", seed)
    q = _rotate(g, _heads(g, _linear(g, n, p + "q", seed), ar, HEADS))
    k = _rotate(g, _heads(g, _linear(g, n, p + "k", seed), ar, KV_HEADS))
    v = _heads(g, _linear(g, n, p + "v", seed), ar, KV_HEADS)
    kt = g.add("Transpose", [k], p + "kt", perm=[0, 1, 3, 2])
    new_k = g.add("Identity", [kt], f"past_key_{layer}_out")
    new_v = g.add("Identity", [v], f"past_value_{layer}_out")
    g.outputs[new_k] = (KV_HEADS, 1, HEAD_DIM, ar)
    g.outputs[new_v] = (KV_HEADS, 1, ar, HEAD_DIM)
    keys = g.add("Concat", [f"past_key_{layer}_in", new_k], p + "keys", axis=3)
    values = g.add("Concat", [f"past_value_{layer}_in", new_v], p + "values", axis=2)
    q = g.add("Reshape", [q, g.ints(KV_HEADS, 1, group * ar, HEAD_DIM)], p + "qg")
    scores = g.add("MatMul", [q, keys], p + "scores")
    scores = g.add("Reshape", [scores, g.ints(KV_HEADS, group, ar, cl)], p + "scores.h")
    masked = g.add("Add", [scores, "attention_mask"], p + "masked")
    probs = g.add("Softmax", [masked], p + "probs", axis=-1)
    probs = g.add("Reshape", [probs, g.ints(KV_HEADS, 1, group * ar, cl)], p + "probs.g")
    context = g.add("MatMul", [probs, values], p + "context")
    context = g.add("Reshape", [context, g.ints(HEADS, 1, ar, HEAD_DIM)], p + "context.h")
    context = g.add("Transpose", [context], p + "context.t", perm=[1, 2, 0, 3])
    context = g.add("Reshape", [context, g.ints(1, ar, HEADS * HEAD_DIM)], p + "context.f")
    x = g.add("Add", [x, _linear(g, context, p + "o", seed)], p + "attn")
    n = _norm(g, x, p + "norm2", seed)
    gate = _linear(g, n, p + "gate", seed)
    silu = g.add("Mul", [gate, g.add("Sigmoid", [gate], p + "sig")], p + "silu")
    inner = g.add("Mul", [silu, _linear(g, n, p + "up", seed)], p + "inner")
    return g.add("Add", [x, _linear(g, inner, p + "down", seed)], f"hidden_states_{layer + 1}")


def _part(ar: int, cl: int, part: tuple[int, int, bool, bool], seed: int) -> _Graph:
    first, last, embedding, lm_head = part
    g = _Graph()
    x = f"hidden_states_{first}"
    if embedding:
        g.weights["embed.w"] = weights(seed)["embed"]
        g.inputs["input_ids"] = (TensorProto.INT32, (1, ar))
        g.add("Gather", ["embed.w", "input_ids"], x, axis=0)
    else:
        g.inputs[x] = (TensorProto.FLOAT, (1, ar, HIDDEN))
    for layer in range(first, last):
        x = _layer(g, x, layer, (ar, cl), seed)
    if lm_head:
        logits = g.add("Identity", [_linear(g, _norm(g, x, "norm", seed), "head", seed)], "logits")
        g.nodes[-2].output[0] = logits
        g.nodes.pop()
        x = logits
    g.outputs[x] = (1, ar, VOCAB if lm_head else HIDDEN)
    return g


def _model(g: _Graph, name: str, outputs: Mapping[str, tuple[int, ...] | None]) -> onnx.ModelProto:
    graph = helper.make_graph(
        g.nodes,
        name,
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in g.inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(w, n) for n, w in g.weights.items()]
        + [numpy_helper.from_array(w, n) for n, w in g.integers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def float_model(
    ar: int, cl: int, part: tuple[int, int, bool, bool] = SPLITS[1][0], *, seed: int = 7
) -> onnx.ModelProto:
    """One part of the decoder in float32."""
    g = _part(ar, cl, part, seed)
    return _model(g, f"ar{ar}_cl{cl}", dict(g.outputs))


def rotary(positions: NDArray[np.int64]) -> tuple[Float, Float]:
    """Cos and sin, [1, 1, T, HEAD_DIM / 2] float32, for the given positions."""
    frequencies = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = positions[:, None] * frequencies[None]
    return (
        np.cos(angle)[None, None].astype(np.float32),
        np.sin(angle)[None, None].astype(np.float32),
    )


def mask(ar: int, cl: int, past: int) -> Float:
    """The additive mask [1, 1, ar, cl]: `past` tokens at the front, the new ones at the end."""
    visible = np.zeros((ar, cl), bool)
    visible[:, :past] = True
    visible[:, cl - ar :] = np.tril(np.ones((ar, ar), bool))
    return np.where(visible, 0.0, MASK).astype(np.float32)[None, None]


@cache
def encodings(seed: int = 7) -> Mapping[str, TensorEncoding]:
    """Encodings of all tensors, from one float pass over 64 random tokens."""
    ar, cl = 64, 128
    g = _part(ar, cl, SPLITS[1][0], seed)
    names = [node.output[0] for node in g.nodes]
    model = _model(g, "calibration", dict.fromkeys(names))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    cos, sin = rotary(np.arange(ar))
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": np.random.default_rng(seed).integers(0, VOCAB, (1, ar), dtype=np.int32),
        "position_ids_cos": cos,
        "position_ids_sin": sin,
        "attention_mask": mask(ar, cl, 0),
    }
    for name, (_, shape) in g.inputs.items():
        feeds.setdefault(name, np.zeros(shape, np.float32))
    results = dict(zip(names, session.run(names, feeds), strict=True))
    made = {n: _asymmetric(float(v.min()), float(v.max())) for n, v in results.items()}
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            out = results[f"past_{kind}_{layer}_out"]
            scale = float(np.abs(out).max()) / 127.0
            both = TensorEncoding(scale, 128, 8)
            made[f"past_{kind}_{layer}_in"] = made[f"past_{kind}_{layer}_out"] = both
            made[f"l{layer}.{kind}s"] = both
    made["hidden_states_0"] = _asymmetric(
        float(weights(seed)["embed"].min()), float(weights(seed)["embed"].max())
    )
    made["position_ids_cos"] = made["position_ids_sin"] = _asymmetric(-1.0, 1.0)
    made["attention_mask"] = _asymmetric(MASK, 0.0)
    for node in g.nodes:  # what only moves numbers keeps its input's encoding
        if node.op_type in ("Reshape", "Transpose", "Slice"):
            made[node.output[0]] = made[node.input[0]]
        if node.op_type == "Softmax":
            made[node.output[0]] = _asymmetric(0.0, 1.0)
        if node.op_type == "Concat" and node.output[0].endswith(".rot"):
            low = min(results[i].min() for i in node.input)
            high = max(results[i].max() for i in node.input)
            made.update(dict.fromkeys([*node.input, node.output[0]], _asymmetric(low, high)))
    return made


def _asymmetric(low: float, high: float) -> TensorEncoding:
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / 65535
    return TensorEncoding(scale, round(-low / scale), 16)


def _quantized_weight(
    value: Float, encoding: TensorEncoding | None
) -> tuple[NDArray[np.generic], NDArray[np.float32], NDArray[np.generic], dict[str, Any]]:
    if value.ndim == 2 and encoding is None:
        scale = (np.abs(value).max(axis=0) / 127).astype(np.float32)
        integer = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
        return integer, scale, np.zeros(scale.shape, np.int8), {"axis": 1}
    e = encoding or _asymmetric(float(value.min()), float(value.max()))
    integer = np.clip(np.rint(value / e.scale) + e.zero_point, 0, 65535).astype(np.uint16)
    return integer, np.array(e.scale, np.float32), np.array(e.zero_point, np.uint16), {}


def quantized(
    ar: int, cl: int, part: tuple[int, int, bool, bool] = SPLITS[1][0], *, seed: int = 7
) -> onnx.ModelProto:
    """One part as QDQ ONNX with integer graph inputs and outputs (uint16, cache uint8)."""
    g, table = _part(ar, cl, part, seed), encodings(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.generic]] = dict(g.integers)
    kinds = {8: (TensorProto.UINT8, np.uint8), 16: (TensorProto.UINT16, np.uint16)}

    def parameters(name: str, e: TensorEncoding) -> list[str]:
        constants[name + ".scale"] = np.array(e.scale, np.float32)
        constants[name + ".zero"] = np.array(e.zero_point, kinds[e.bits][1])
        return [name + ".scale", name + ".zero"]

    inputs, outputs = [], []
    for name, (kind, shape) in g.inputs.items():
        if kind == TensorProto.INT32:
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
            continue
        e = table[name]
        inputs.append(helper.make_tensor_value_info(name, kinds[e.bits][0], shape))
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [name, *parameters(name, e)], [name + "_dq"], name=name + "_DQ"
            )
        )
    for name, value in g.weights.items():
        shared = table["hidden_states_0"] if name == "embed.w" else None
        integer, scale, zero, attributes = _quantized_weight(value, shared)
        constants |= {name + "_q": integer, name + ".scale": scale, name + ".zero": zero}
        nodes.append(
            helper.make_node(
                "DequantizeLinear",
                [name + "_q", name + ".scale", name + ".zero"],
                [name + "_dq"],
                name=name + "_DQ",
                **attributes,
            )
        )
    rename: Callable[[str], str] = lambda n: n if n in g.integers or n == "input_ids" else n + "_dq"  # noqa: E731
    for node in g.nodes:
        name = node.output[0]
        e = table[name]
        source = rename(node.input[0])
        if node.op_type != "Identity":  # a conversion 16 -> 8 bit is DQ, Q without an op between
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [rename(i) for i in node.input]
            copy.output[:] = [name + "_f"]
            nodes.append(copy)
            source = name + "_f"
        integer_name = name if name in g.outputs else name + "_q"
        pair = parameters(name, e)
        nodes.append(
            helper.make_node("QuantizeLinear", [source, *pair], [integer_name], name=name + "_Q")
        )
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [integer_name, *pair], [name + "_dq"], name=name + "_DQ"
            )
        )
    used = {i for node in nodes for i in node.input}
    nodes = [n for n in nodes if n.output[0] in used or n.output[0] in g.outputs]
    for name, shape in g.outputs.items():
        outputs.append(helper.make_tensor_value_info(name, kinds[table[name].bits][0], shape))
    graph = helper.make_graph(
        nodes,
        f"ar{ar}_cl{cl}",
        inputs,
        outputs,
        [numpy_helper.from_array(np.ascontiguousarray(c), n) for n, c in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def write(folder: Path, ar: int, cl: int, *, splits: int = 1, seed: int = 7) -> list[Path]:
    """Write every part of one quantized graph below `folder`; paths in split order."""
    made = []
    for index, part in enumerate(SPLITS[splits], 1):
        path = folder / f"ar{ar}_cl{cl}_{index}_of_{splits}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(quantized(ar, cl, part, seed=seed), path)
        made.append(path)
    return made


def graph_metadata(
    name: str, ar: int, cl: int, part: tuple[int, int, bool, bool] = SPLITS[1][0], *, seed: int = 7
) -> GraphMetadata:
    """What the vendor's library would say of one part, from the encodings."""
    g, table = _part(ar, cl, part, seed), encodings(seed)

    def described(tensor: str, shape: tuple[int, ...]) -> TensorMetadata:
        if tensor == "input_ids":
            return TensorMetadata(name=tensor, shape=shape, dtype="int32")
        e = table[tensor]
        scale = float(np.float32(e.scale))
        dtype = f"uint{e.bits}"
        return TensorMetadata(
            name=tensor, shape=shape, dtype=dtype, scale=scale, offset=-e.zero_point
        )

    return GraphMetadata(
        name=name,
        inputs=tuple(described(n, shape) for n, (_, shape) in g.inputs.items()),
        outputs=tuple(described(n, shape) for n, shape in g.outputs.items()),
    )


def rope_table() -> RopeTable:
    """The decoder's rotary table."""
    frequencies = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return RopeTable(
        rotary_dim=HEAD_DIM, inv_freq=[float(np.float32(f)) for f in frequencies], theta=THETA
    )


def graph_name(ar: int, cl: int, split: int, *, splits: int) -> str:
    """`prompt_ar32_cl128_1_of_3`, `token_ar1_cl128_1_of_3`."""
    return f"{'token' if ar == 1 else 'prompt'}_ar{ar}_cl{cl}_{split}_of_{splits}"
