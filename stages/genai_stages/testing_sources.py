"""Hand-written source models, for tests of ingest: one architecture in many ways of writing it.

Exporters differ in where they scale scores, how they hide keys, repeat heads or spell a norm. A
`Style` picks one way for each; the graph is written node by node, with dynamic sizes, as none
of them does, so that recognition by structure is tried on what it has not seen.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]


@dataclasses.dataclass(frozen=True)
class Style:
    """Sizes of a model and the way it is written.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate: Width of the MLP.
        vocab: Tokens.
        rotary: Pairs of channels: halves, neighbours, or none at all.
        rotary_dim: Rotated channels, None = all.
        waves: Cosines and sines computed from frequencies, or ready for 512 positions.
        theta: Base of the frequencies; config.json says 10000 whatever it is.
        wave_factor: On cosines and sines.
        norm: How 1 / sqrt is spelled.
        projection: Operator of the projections.
        bias: Biases on query, key and value.
        scale: Where scores are scaled.
        score_scale: By what, None = the root of a head's width.
        mask: How keys are hidden; `new tokens`: by a triangle of the new ones, stretched over all.
        repeat: How key heads are repeated for grouped queries.
        fused: One projection for query, key and value.
        turned_keys: The cache holds keys as [.., D, P].
        positions: An input, or counted from the attention mask.
        past: Whether there is a cache at all.
        tied: The head uses the embedding table.
        window: Sliding window, 0 = none.
        external: Weights in `model.data`.
        half: Weights stored as float16.
        contrib: Norms and attention as ONNX Runtime's own fused operators; with rotary halves or
            neighbours, a past, and fused projections where `fused`. `multi`: as a builder writes
            them for float16 on the CPU: keys repeated before MultiHeadAttention, or, with as many
            key heads as query heads, its own past and bias.
        late: What begins to depend on the position at `late_from`: a factor on queries, new keys,
            new values, all values, scores, probabilities or the stream; a bias on scores; a mask of
            chunks; the window; other frequencies of ready waves; position embeddings.
        late_from: A position.
        seed: Of the weights.
    """

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    intermediate: int = 48
    vocab: int = 64
    rotary: Literal["halves", "neighbours", "none"] = "halves"
    rotary_dim: int | None = None
    waves: Literal["computed", "ready"] = "computed"
    theta: float = 10000.0
    wave_factor: float = 1.0
    norm: Literal["div", "reciprocal", "power", "quotient"] = "div"
    projection: Literal["matmul", "gemm", "transposed", "conv"] = "matmul"
    bias: bool = False
    scale: Literal["query", "key", "multiply", "divide", "both"] = "divide"
    score_scale: float | None = None
    mask: Literal["infinite", "lowest", "where", "new tokens"] = "lowest"
    repeat: Literal["expand", "broadcast"] = "expand"
    fused: bool = False
    turned_keys: bool = False
    positions: Literal["input", "counted"] = "input"
    past: bool = True
    tied: bool = False
    window: int = 0
    external: bool = False
    half: bool = False
    contrib: Literal[False, True, "multi"] = False
    late: Literal[
        "", "query", "key", "value", "values", "scores", "probs", "stream", "bias", "chunks",
        "window", "waves", "learned",
    ] = ""  # fmt: skip
    late_from: int = 100
    seed: int = 0


def write_source(folder: Path, style: Style | None = None, **changes: object) -> Style:
    """Write `model.onnx` and `config.json` of a style into a folder; returns the style."""
    style = dataclasses.replace(style or Style(), **changes)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    model = _Writer(style).run()
    external: dict[str, Any] = {}
    if style.external:
        external = {"save_as_external_data": True, "location": "model.data", "size_threshold": 256}
    onnx.save(model, folder / "model.onnx", **external)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": style.layers,
        "hidden_size": style.hidden,
        "num_attention_heads": style.heads,
        "num_key_value_heads": style.kv_heads,
        "head_dim": style.head_dim,
        "vocab_size": style.vocab,
        "rope_theta": 10000.0,
    }
    if style.rotary_dim is not None:
        config["partial_rotary_factor"] = style.rotary_dim / style.head_dim
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return style


class _Writer:
    def __init__(self, style: Style) -> None:
        self.style = style
        self.random = np.random.default_rng(style.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def run(self) -> onnx.ModelProto:
        style = self.style
        self.input("input_ids", TensorProto.INT64, ["B", "T"])
        self.input("attention_mask", TensorProto.INT64, ["B", "K"])
        if style.positions == "input":
            self.input("position_ids", TensorProto.INT64, ["B", "T"])
        table = self.weight("embed", (style.vocab, style.hidden))
        stream = self.op("Gather", table, "input_ids", axis=0)
        self.sizes()
        if style.late == "learned":
            rows = np.zeros((512, style.hidden), np.float32)
            rows[style.late_from :] = self.random.standard_normal(rows[style.late_from :].shape)
            added = self.op("Gather", self.constant(rows), self.position())
            stream = self.op("Add", stream, added)
        if style.rotary != "none":
            self.waves()
        self.hidden_keys()
        for layer in range(style.layers):
            stream = self.layer(layer, stream)
        final = self.norm(stream, "final")
        if style.tied:
            turned = self.op("Transpose", table, perm=[1, 0])
            logits = self.op("MatMul", final, turned)
        else:
            logits = self.project(final, "head", style.hidden, style.vocab)
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        self.output("logits", ["B", "T", style.vocab])
        graph = helper.make_graph(self.nodes, "source", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def input(self, name: str, kind: int, shape: list[int | str]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def output(self, name: str, shape: list[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        self.count += 1
        output = name or f"t{self.count}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, array: Array) -> str:
        self.count += 1
        self.weights.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def weight(self, name: str, shape: tuple[int, ...], *, mean: float = 0.0) -> str:
        spread = 0.2 if len(shape) == 1 else 1.5 / math.sqrt(shape[1])
        values = (mean + spread * self.random.standard_normal(shape)).astype(np.float32)
        if self.style.half and len(shape) > 1:
            self.weights.append(numpy_helper.from_array(values.astype(np.float16), name))
            return self.op("Cast", name, to=TensorProto.FLOAT)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def sizes(self) -> None:
        """The numbers of new tokens and of all, as [1] tensors."""
        shape = self.op("Shape", "input_ids")
        self.new = self.op("Slice", shape, self.ints(1), self.ints(2))
        shape = self.op("Shape", "attention_mask")
        self.total = self.op("Slice", shape, self.ints(1), self.ints(2))
        self.behind = self.op("Sub", self.total, self.new)

    def scalar(self, name: str) -> str:
        return self.op("Squeeze", name, self.ints(0))

    def position(self) -> str:
        """[B, T] int64."""
        if self.style.positions == "input":
            return "position_ids"
        counted = self.op("CumSum", "attention_mask", self.constant(np.array(1, np.int64)))
        counted = self.op("Sub", counted, self.ints(1))
        return self.op("Slice", counted, self.behind, self.total, self.ints(1))

    def waves(self) -> None:
        style = self.style
        rotary = style.rotary_dim or style.head_dim
        exponent = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
        inv_freq = (1.0 / np.float32(style.theta) ** exponent).astype(np.float32)
        if style.waves == "ready":
            angles = np.arange(512)[:, None] * inv_freq.astype(np.float64)
            if style.late == "waves":
                later = angles[style.late_from :] / np.linspace(1, 3, len(inv_freq))
                angles = np.concatenate([angles[: style.late_from], later])
            tables = [self.constant(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
            rows = [self.op("Gather", table, self.position()) for table in tables]
            self.cos, self.sin = (self.op("Unsqueeze", row, self.ints(1)) for row in rows)
            return
        position = self.op("Cast", self.position(), to=TensorProto.FLOAT)
        position = self.op("Unsqueeze", position, self.ints(1, 3))
        angle = self.op("Mul", position, self.constant(inv_freq))
        self.cos, self.sin = self.op("Cos", angle), self.op("Sin", angle)
        if style.wave_factor != 1.0:
            factor = self.number(style.wave_factor)
            self.cos, self.sin = (self.op("Mul", wave, factor) for wave in (self.cos, self.sin))

    def later(self, kind: str, x: str, *axes: int) -> str:
        """A tensor times 1 + 1.5 log(1 + floor(position / late_from)), where the style says so.

        Llama 4 and Ministral 3 scale queries so. `axes` are added to [B, T].
        """
        if self.style.late != kind:
            return x
        every = kind == "values"
        place = self.op("Unsqueeze", self.every, self.ints(0)) if every else self.position()
        steps = self.op("Div", place, self.ints(self.style.late_from))
        steps = self.op("Cast", steps, to=TensorProto.FLOAT)
        grown = self.op("Log", self.op("Add", steps, self.number(1.0)))
        factor = self.op("Add", self.op("Mul", grown, self.number(1.5)), self.number(1.0))
        factor = self.op("Unsqueeze", factor, self.ints(*axes))
        if kind != "bias":
            return self.op("Mul", x, factor)
        far = self.op("Mul", self.op("Sub", factor, self.number(1.0)), self.number(0.01))
        key = self.op("Cast", self.every, to=TensorProto.FLOAT)
        return self.op("Add", x, self.op("Mul", far, key))

    def hidden_keys(self) -> None:
        """Bool [1, 1, T, K], true = visible."""
        one = self.constant(np.array(1, np.int64))
        zero = self.constant(np.array(0, np.int64))
        every = self.op("Range", zero, self.scalar(self.total), one)
        new = self.op("Range", self.scalar(self.behind), self.scalar(self.total), one)
        column = self.op("Unsqueeze", new, self.ints(1))
        self.every = every
        visible = self.op("LessOrEqual", every, column)
        if self.style.late == "chunks":
            chunk = self.ints(self.style.late_from)
            same = self.op("Equal", self.op("Div", every, chunk), self.op("Div", column, chunk))
            visible = self.op("And", visible, same)
        if self.style.window:
            oldest = self.op("Sub", column, self.ints(self.style.window))
            near = self.op("Greater", every, oldest)
            if self.style.late == "window":
                early = self.op("Less", column, self.ints(self.style.late_from))
                near = self.op("Or", early, near)
            visible = self.op("And", visible, near)
        given = self.op("Cast", "attention_mask", to=TensorProto.BOOL)
        given = self.op("Unsqueeze", given, self.ints(1, 2))
        self.visible = self.op("And", visible, given)
        lowest = -np.inf if self.style.mask == "infinite" else np.finfo(np.float32).min
        self.lowest = self.number(float(lowest))
        self.additive = self.op("Where", self.visible, self.number(0.0), self.lowest)
        if self.style.mask == "new tokens":
            self.additive = self.mask_of_new_tokens(given)

    def mask_of_new_tokens(self, given: str) -> str:
        """A triangle as wide as the new tokens, stretched over all: right without a past alone."""
        square = self.op("Concat", self.new, self.new, axis=0)
        full = self.op("Expand", self.lowest, square)
        new = self.op("Range", self.constant(np.array(0, np.int64)), self.scalar(self.new),
                      self.constant(np.array(1, np.int64)))  # fmt: skip
        rows = self.op("Reshape", self.op("Add", new, self.ints(1)), self.ints(-1, 1))
        triangle = self.op("Where", self.op("Less", new, rows), self.number(0.0), full)
        wide = self.op("Concat", self.ints(1, 1), self.new, self.total, axis=0)
        stretched = self.op("Expand", self.op("Unsqueeze", triangle, self.ints(0, 1)), wide)
        hidden = self.op("Where", given, self.number(0.0), self.lowest)
        return self.op("Tile", self.op("Add", hidden, stretched),
                       self.ints(1, self.style.heads, 1, 1))  # fmt: skip

    def norm(self, x: str, name: str) -> str:
        if self.style.contrib:
            scale = self.weight(f"{name}.norm", (self.style.hidden,), mean=1.0)
            return self.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=1e-5)
        square = self.op("Mul", x, x) if self.style.norm == "power" else (
            self.op("Pow", x, self.number(2.0))
        )  # fmt: skip
        mean = self.op("ReduceMean", square, axes=[-1], keepdims=1)
        plus = self.op("Add", mean, self.number(1e-5))
        match self.style.norm:
            case "power":
                scaled = self.op("Mul", x, self.op("Pow", plus, self.number(-0.5)))
            case "quotient":
                scaled = self.op("Div", x, self.op("Sqrt", plus))
            case "reciprocal":
                scaled = self.op("Mul", self.op("Reciprocal", self.op("Sqrt", plus)), x)
            case _:
                root = self.op("Sqrt", plus)
                scaled = self.op("Mul", x, self.op("Div", self.number(1.0), root))
        return self.op("Mul", scaled, self.weight(f"{name}.norm", (self.style.hidden,), mean=1.0))

    def project(self, x: str, name: str, inside: int, outside: int, *, bias: bool = False) -> str:
        offset = self.weight(f"{name}.bias", (outside,)) if bias else ""
        match self.style.projection:
            case "conv":
                matrix = self.weight(f"{name}.weight", (outside, inside, 1, 1))
                first = self.op("Transpose", self.op("Unsqueeze", x, self.ints(1)),
                                perm=[0, 3, 1, 2])  # fmt: skip
                made = self.op("Conv", first, matrix, *([offset] if bias else []))
                return self.op("Squeeze", self.op("Transpose", made, perm=[0, 2, 3, 1]),
                               self.ints(1))  # fmt: skip
            case "gemm":
                matrix = self.weight(f"{name}.weight", (outside, inside))
                rows = self.op("Reshape", x, self.ints(-1, inside))
                made = self.op("Gemm", rows, matrix, *([offset] if bias else []), transB=1)
                shape = self.op("Concat", self.ints(1), self.new, self.ints(outside), axis=0)
                return self.op("Reshape", made, shape)
            case "transposed":
                matrix = self.weight(f"{name}.weight", (outside, inside))
                made = self.op("MatMul", x, self.op("Transpose", matrix, perm=[1, 0]))
            case _:
                made = self.op("MatMul", x, self.weight(f"{name}.weight", (inside, outside)))
        return self.op("Add", offset, made) if bias else made

    def heads(self, x: str, count: int) -> str:
        shape = self.ints(0, -1, count, self.style.head_dim)
        return self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def rotate(self, x: str) -> str:
        style = self.style
        if style.rotary == "none":
            return x
        rotary = style.rotary_dim or style.head_dim
        half = rotary // 2
        bounds = (0, half, 1), (half, rotary, 1)
        if style.rotary == "neighbours":
            bounds = (0, rotary, 2), (1, rotary, 2)
        left, right = (
            self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(3), self.ints(step))
            for start, stop, step in bounds
        )
        one = self.op("Sub", self.op("Mul", left, self.cos), self.op("Mul", right, self.sin))
        two = self.op("Add", self.op("Mul", right, self.cos), self.op("Mul", left, self.sin))
        if style.rotary == "neighbours":
            pair = [self.op("Unsqueeze", each, self.ints(-1)) for each in (one, two)]
            turned = self.op("Reshape", self.op("Concat", *pair, axis=-1), self.ints(0, 0, 0, -1))
        else:
            turned = self.op("Concat", one, two, axis=-1)
        if rotary == style.head_dim:
            return turned
        rest = self.op("Slice", x, self.ints(rotary), self.ints(style.head_dim), self.ints(3))
        return self.op("Concat", turned, rest, axis=-1)

    def cached(self, layer: int, kind: str, new: str) -> str:
        style = self.style
        if not style.past:
            return new
        turned = kind == "key" and style.turned_keys
        held: list[int | str] = [style.head_dim, "P"] if turned else ["P", style.head_dim]
        total: list[int | str] = [style.head_dim, "K"] if turned else ["K", style.head_dim]
        self.input(f"past_{layer}_{kind}", TensorProto.FLOAT, ["B", style.kv_heads, *held])
        self.output(f"present_{layer}_{kind}", ["B", style.kv_heads, *total])
        if turned:
            new = self.op("Transpose", new, perm=[0, 1, 3, 2])
        joined = self.op("Concat", f"past_{layer}_{kind}", new, axis=3 if turned else 2)
        self.nodes.append(helper.make_node("Identity", [joined], [f"present_{layer}_{kind}"]))
        return self.op("Transpose", joined, perm=[0, 1, 3, 2]) if turned else joined

    def repeated(self, x: str) -> str:
        style = self.style
        groups = style.heads // style.kv_heads
        if groups == 1:
            return x
        wide = self.op("Unsqueeze", x, self.ints(2))
        if style.repeat == "broadcast":
            return wide
        ones = self.ints(1, 1, groups, 1, 1)
        shape = self.ints(0, style.heads, -1, style.head_dim)
        return self.op("Reshape", self.op("Expand", wide, ones), shape)

    def layer(self, layer: int, stream: str) -> str:
        style = self.style
        wide, narrow = style.heads * style.head_dim, style.kv_heads * style.head_dim
        stream = self.later("stream", stream, 2)
        x = self.norm(stream, f"{layer}.attention")
        if style.fused:
            packed = self.project(x, f"{layer}.qkv", style.hidden, wide + 2 * narrow,
                                  bias=style.bias)  # fmt: skip
            parts = [f"{layer}.q", f"{layer}.k", f"{layer}.v"]
            self.nodes.append(helper.make_node(
                "Split", [packed, self.ints(wide, narrow, narrow)], parts, axis=2
            ))  # fmt: skip
            query, key, value = parts
        else:
            added = style.bias and not (style.contrib == "multi" and wide == narrow)
            query, key, value = (
                self.project(x, f"{layer}.{part}", style.hidden, width, bias=added)
                for part, width in (("q", wide), ("k", narrow), ("v", narrow))
            )
        if style.contrib:
            given = [packed] if style.fused else [query, key, value]
            write = self.multi if style.contrib == "multi" else self.grouped
            return self.behind_attention(layer, stream, write(layer, given))
        query = self.later("query", self.rotate(self.heads(query, style.heads)), 1, 3)
        key = self.later("key", self.rotate(self.heads(key, style.kv_heads)), 1, 3)
        key = self.repeated(self.cached(layer, "key", key))
        value = self.later("value", self.heads(value, style.kv_heads), 1, 3)
        value = self.later("values", self.cached(layer, "value", value), 1, 3)
        value = self.repeated(value)
        context = self.attend(query, key, value)
        context = self.op("Transpose", context, perm=[0, 2, 1, 3])
        flat = self.op("Reshape", context, self.ints(0, -1, wide))
        return self.behind_attention(layer, stream, flat)

    def grouped(self, layer: int, given: list[str]) -> str:
        """GroupQueryAttention over projections, with its rotary embedding inside."""
        style = self.style
        for kind in ("key", "value"):
            shape: list[int | str] = ["B", style.kv_heads]
            self.input(f"past_{layer}_{kind}", TensorProto.FLOAT, [*shape, "P", style.head_dim])
            self.output(f"present_{layer}_{kind}", [*shape, "K", style.head_dim])
        counted = self.op("ReduceSum", "attention_mask", self.ints(1), keepdims=0)
        seen = self.op("Cast", self.op("Sub", counted, self.ints(1)), to=TensorProto.INT32)
        total = self.op("Cast", self.scalar(self.total), to=TensorProto.INT32)
        rotary = style.rotary_dim or style.head_dim
        angle = np.arange(512)[:, None] / 10000.0 ** (np.arange(0, rotary, 2) / rotary)
        waves = [self.constant(wave.astype(np.float32)) for wave in (np.cos(angle), np.sin(angle))]
        past = [f"past_{layer}_{kind}" for kind in ("key", "value")]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*given, *[""] * (3 - len(given)), *past, seen, total, *waves],
                [f"{layer}.context", f"present_{layer}_key", f"present_{layer}_value"],
                domain="com.microsoft",
                num_heads=style.heads,
                kv_num_heads=style.kv_heads,
                do_rotary=1,
                rotary_interleaved=int(style.rotary == "neighbours"),
                local_window_size=style.window or -1,
            )
        )
        return f"{layer}.context"

    def multi(self, layer: int, given: list[str]) -> str:
        """MultiHeadAttention behind rotary embeddings, over the whole cache or with a past."""
        style = self.style
        query, key, value = given
        rotary = style.rotary_dim or style.head_dim
        angle = np.arange(512)[:, None] / 10000.0 ** (np.arange(0, rotary, 2) / rotary)
        waves = [self.constant(wave.astype(np.float32)) for wave in (np.cos(angle), np.sin(angle))]
        query, key = (
            x if style.rotary == "none" else
            self.op("RotaryEmbedding", x, "position_ids", *waves, domain="com.microsoft",
                    interleaved=int(style.rotary == "neighbours"), num_heads=count)
            for x, count in ((query, style.heads), (key, style.kv_heads))
        )  # fmt: skip
        outputs = [f"{layer}.context"]
        if style.kv_heads == style.heads:
            width = style.heads * style.head_dim
            bias = self.weight(f"{layer}.qkv.bias", (3 * width,)) if style.bias else ""
            for kind in ("key", "value"):
                shape: list[int | str] = ["B", style.kv_heads]
                self.input(f"past_{layer}_{kind}", TensorProto.FLOAT, [*shape, "P", style.head_dim])
                self.output(f"present_{layer}_{kind}", [*shape, "K", style.head_dim])
                outputs.append(f"present_{layer}_{kind}")
            inputs = [query, key, value, bias, "", self.additive,
                      f"past_{layer}_key", f"past_{layer}_value"]  # fmt: skip
        else:
            every = []
            for kind, new in (("key", key), ("value", value)):
                held = self.repeated(self.cached(layer, kind, self.heads(new, style.kv_heads)))
                turned = self.op("Transpose", held, perm=[0, 2, 1, 3])
                every.append(self.op("Reshape", turned, self.ints(0, 0, -1)))
            inputs = [query, *every, "", "", self.additive]
        self.nodes.append(
            helper.make_node("MultiHeadAttention", inputs, outputs, domain="com.microsoft",
                             num_heads=style.heads)
        )  # fmt: skip
        return outputs[0]

    def behind_attention(self, layer: int, stream: str, flat: str) -> str:
        """The output projection, the residual sum and the MLP."""
        style = self.style
        wide = style.heads * style.head_dim
        stream = self.op("Add", stream, self.project(flat, f"{layer}.o", wide, style.hidden))
        x = self.norm(stream, f"{layer}.mlp")
        gate = self.project(x, f"{layer}.gate", style.hidden, style.intermediate)
        up = self.project(x, f"{layer}.up", style.hidden, style.intermediate)
        active = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        down = self.project(active, f"{layer}.down", style.intermediate, style.hidden)
        return self.op("Add", down, stream)

    def attend(self, query: str, key: str, value: str) -> str:
        """[B, H, T, D] of the context."""
        style = self.style
        groups = style.heads // style.kv_heads
        grouped = style.repeat == "broadcast" and groups > 1
        if grouped:
            shape = self.ints(0, style.kv_heads, groups, -1, style.head_dim)
            query = self.op("Reshape", query, shape)
        perm = [0, 1, 2, 4, 3] if grouped else [0, 1, 3, 2]
        key = self.op("Transpose", key, perm=perm)
        root = 1 / style.score_scale if style.score_scale else math.sqrt(style.head_dim)
        if style.scale in ("query", "both"):
            factor = root if style.scale == "query" else math.sqrt(root)
            query = self.op("Mul", query, self.number(1 / factor))
        if style.scale in ("key", "both"):
            factor = root if style.scale == "key" else math.sqrt(root)
            key = self.op("Mul", self.number(1 / factor), key)
        scores = self.op("MatMul", query, key)
        if style.scale == "multiply":
            scores = self.op("Mul", scores, self.number(1 / root))
        elif style.scale == "divide":
            scores = self.op("Div", scores, self.number(root))
        scores = self.later("bias", self.later("scores", scores, 1, 3), 1, 3)
        if style.mask == "where":
            masked = self.op("Where", self.visible, scores, self.lowest)
        else:
            masked = self.op("Add", self.additive, scores)
        probs = self.op("Softmax", masked, axis=-1)
        context = self.op("MatMul", self.later("probs", probs, 1, 3), value)
        if grouped:
            context = self.op("Reshape", context, self.ints(0, style.heads, -1, style.head_dim))
        return context
