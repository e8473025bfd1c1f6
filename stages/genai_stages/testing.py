"""Small random models in the core form, for tests of the stages after ingest.

`random_core_model` writes the same files as the ingest operation, with every tensor named as
optimum would name it, so that a test needs neither an exporter nor a fixture.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.facts import AttentionFacts, ModelFacts, Role, RopeTable
from genai_stages.graph.core_graph import (
    DOMAIN,
    CoreWriter,
    FloatArray,
    layer_group,
    mapped,
    read_core,
    write_proto,
)
from genai_stages.graph.expand_attention import expand
from genai_stages.ingest.output.keep_source import SOURCE_FILE, SOURCE_FOLDER


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes and features of a random model.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Width of a head; even.
        intermediate: Width of the gated MLP.
        vocab: Rows of the embedding.
        rotary_dim: Rotated channels of a head, None = all, 0 = no rotary embedding.
        interleaved: Whether channel pairs (2i, 2i+1) are rotated instead of (i, i + rotary_dim/2).
        theta: Base of the rotary table.
        local_theta: Base of a second table `local` for layers with a window; None = one table.
        windows: One window for each layer, repeated as needed; 0 = full causal attention.
        softcap: Soft cap of attention scores, 0 = none.
        final_softcap: Soft cap of the logits, 0 = none.
        qk_norm: RMSNorm of every query and key head.
        qkv_bias: Biases on query, key and value.
        post_norms: Gemma's norms behind attention and MLP.
        embedding_scale: Whether embeddings are multiplied with sqrt(hidden).
        tied: Whether lm_head shares the embedding's bytes.
        seed: Of the weights.
        forecasts: Rows of the embedding behind the vocabulary.
    """

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 96
    vocab: int = 512
    rotary_dim: int | None = None
    interleaved: bool = False
    theta: float = 10000.0
    local_theta: float | None = None
    windows: tuple[int, ...] = (0,)
    softcap: float = 0.0
    final_softcap: float = 0.0
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norms: bool = False
    embedding_scale: bool = False
    tied: bool = False
    seed: int = 0
    forecasts: int = 0


def rope_table(theta: float, rotary_dim: int) -> RopeTable:
    """The plain table of a base: inv_freq[i] = theta ** (-2 i / rotary_dim), as float32."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    inv_freq = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    return RopeTable(rotary_dim=rotary_dim, inv_freq=inv_freq.tolist(), theta=theta)


def random_core_model(path: Path, shape: Shape | None = None, /, **changes: object) -> ModelFacts:
    """Write a random core graph with its weights and facts into `path`.

    Args:
        path: An empty or missing folder.
        shape: Base of the sizes, defaults to `Shape()`.
        **changes: Fields of `Shape` to replace.
    """
    shape = dataclasses.replace(shape or Shape(), **changes)  # type: ignore[arg-type]
    path.mkdir(parents=True, exist_ok=True)
    with CoreWriter(path) as writer:
        return _Builder(writer, shape).build()


class _Builder:
    def __init__(self, writer: CoreWriter, shape: Shape) -> None:
        self.writer = writer
        self.shape = shape
        self.random = np.random.default_rng(shape.seed)
        self.group = "embed"
        self.rotary_dim = shape.head_dim if shape.rotary_dim is None else shape.rotary_dim

    def build(self) -> ModelFacts:
        shape, writer = self.shape, self.writer
        writer.input("input_ids", [1, "T"], ir.DataType.INT64)
        table = writer.weight(
            "model.embed_tokens.weight",
            self._matrix(shape.vocab + shape.forecasts, shape.hidden),
            group="embed",
        )
        stream = writer.node(
            "Gather",
            [table, "input_ids"],
            ["/model/embed_tokens/Gather_output_0"],
            shapes=[(1, "T", shape.hidden)],
            attributes={"axis": 0},
        )
        if shape.embedding_scale:
            stream = self._scaled(stream, "/model/Mul_output_0", math.sqrt(shape.hidden))
        boundaries = [stream]
        attention: list[AttentionFacts] = []
        for layer in range(shape.layers):
            self.group = layer_group(layer)
            stream = self._layer(layer, stream, attention)
            boundaries.append(stream)
        self.group = "head"
        stream = self._norm(stream, "/model/norm/Mul_1_output_0", "model.norm.weight")
        logits = "/lm_head/MatMul_output_0" if shape.final_softcap else "logits"
        head = (
            writer.alias("lm_head.weight", table)
            if shape.tied
            else self._weight("lm_head.weight", shape.vocab, shape.hidden)
        )
        stream = writer.linear(stream, head, logits, width=shape.vocab)
        if shape.final_softcap:
            stream = self._scaled(stream, "/Div_output_0", 1.0 / shape.final_softcap)
            stream = self._unary("Tanh", stream, "/Tanh_output_0", shape.vocab)
            self._scaled(stream, "logits", shape.final_softcap)
        return writer.finish(["logits"], self._facts(boundaries, attention))

    def _facts(self, boundaries: list[str], attention: list[AttentionFacts]) -> ModelFacts:
        shape = self.shape
        rope: dict[str, RopeTable] = {}
        if self.rotary_dim:
            rope["default"] = rope_table(shape.theta, self.rotary_dim)
            if shape.local_theta is not None:
                rope["local"] = rope_table(shape.local_theta, self.rotary_dim)
        return ModelFacts(
            architecture="llama",
            layers=shape.layers,
            hidden_size=shape.hidden,
            vocab_size=shape.vocab,
            parameters=0,
            rope=rope,
            attention=attention,
            boundaries=boundaries,
            groups={},
            tied_embedding=shape.tied,
            max_positions=4096,
        )

    def _layer(self, layer: int, stream: str, attention: list[AttentionFacts]) -> str:
        shape, writer = self.shape, self.writer
        name, weight = f"/model/layers.{layer}", f"model.layers.{layer}"
        window = shape.windows[layer % len(shape.windows)]
        rope = "local" if window and shape.local_theta is not None else "default"
        normed = self._norm(stream, f"{name}/input_layernorm/Mul_1_output_0",
                            f"{weight}.input_layernorm.weight")  # fmt: skip
        widths = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
        projections = []
        for letter, count in widths.items():
            width = count * shape.head_dim
            module = f"{weight}.self_attn.{letter}_proj"
            matrix = self._weight(f"{module}.weight", width, shape.hidden)
            bias = None
            if shape.qkv_bias:
                bias = self._vector(f"{module}.bias", width)
            output = f"{name}/self_attn/{letter}_proj/MatMul_output_0"
            projections.append(writer.linear(normed, matrix, output, bias=bias, width=width))
        inputs: list[str | None] = list(projections)
        if shape.qk_norm:
            inputs += [
                self._vector(f"{weight}.self_attn.{letter}_norm.weight", shape.head_dim, mean=1.0)
                for letter in "qk"
            ]
        context = writer.node(
            "Attention",
            inputs,
            [f"{name}/self_attn/Reshape_7_output_0"],
            shapes=[(1, "T", shape.heads * shape.head_dim)],
            domain=DOMAIN,
            attributes={
                "layer": layer,
                "num_heads": shape.heads,
                "kv_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "scale": 1.0 / math.sqrt(shape.head_dim),
                "softcap": float(shape.softcap),
                "window": window,
                "rope": rope if self.rotary_dim else "",
                "rotary_dim": self.rotary_dim,
                "interleaved": int(shape.interleaved),
                "qk_norm_epsilon": 1e-6,
            },
        )
        attention.append(
            AttentionFacts(
                layer=layer,
                num_heads=shape.heads,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                window=window,
                rope=rope if self.rotary_dim else "",
                roles=self._roles(layer, projections, context),
            )
        )
        out = self._linear(context, f"{name}/self_attn/o_proj/MatMul_output_0",
                           f"{weight}.self_attn.o_proj.weight", shape.hidden)  # fmt: skip
        if shape.post_norms:
            out = self._norm(out, f"{name}/post_attention_layernorm/Mul_1_output_0",
                             f"{weight}.post_attention_layernorm.weight")  # fmt: skip
        stream = self._add(stream, out, f"{name}/Add_output_0")
        before = "pre_feedforward_layernorm" if shape.post_norms else "post_attention_layernorm"
        normed = self._norm(stream, f"{name}/{before}/Mul_1_output_0", f"{weight}.{before}.weight")
        width = shape.intermediate
        gate = self._linear(normed, f"{name}/mlp/gate_proj/MatMul_output_0",
                            f"{weight}.mlp.gate_proj.weight", width)  # fmt: skip
        up = self._linear(normed, f"{name}/mlp/up_proj/MatMul_output_0",
                          f"{weight}.mlp.up_proj.weight", width)  # fmt: skip
        sigmoid = self._unary("Sigmoid", gate, f"{name}/mlp/act_fn/Sigmoid_output_0", width)
        active = self._binary("Mul", gate, sigmoid, f"{name}/mlp/act_fn/Mul_output_0", width)
        product = self._binary("Mul", active, up, f"{name}/mlp/Mul_output_0", width)
        down = self._linear(product, f"{name}/mlp/down_proj/MatMul_output_0",
                            f"{weight}.mlp.down_proj.weight", shape.hidden)  # fmt: skip
        if shape.post_norms:
            down = self._norm(down, f"{name}/post_feedforward_layernorm/Mul_1_output_0",
                              f"{weight}.post_feedforward_layernorm.weight")  # fmt: skip
        return self._add(stream, down, f"{name}/Add_1_output_0")

    def _roles(self, layer: int, projections: list[str], context: str) -> dict[Role, str]:
        absent = set()
        if not self.shape.qk_norm:
            absent |= {"query_normed", "key_normed"}
        if not self.rotary_dim:
            absent |= {"query_rotated", "key_rotated"}
        if not self.shape.softcap:
            absent.add("capped")
        known = dict(zip(("query", "key", "value"), projections, strict=True))
        known |= {
            "past_key": f"past_key_values.{layer}.key",
            "past_value": f"past_key_values.{layer}.value",
            "key_new": f"present.{layer}.key",
            "value_new": f"present.{layer}.value",
            "context_flat": context,
        }
        roles: dict[Role, str] = {}
        for role in get_args(Role):
            if role not in absent:
                roles[role] = known.get(role, f"/model/layers.{layer}/self_attn/{role}")
        return roles

    def _matrix(self, rows: int, columns: int) -> FloatArray:
        scale = 1.0 / math.sqrt(columns)
        return (self.random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def _weight(self, name: str, rows: int, columns: int) -> str:
        return self.writer.weight(name, self._matrix(rows, columns), group=self.group)

    def _vector(self, name: str, size: int, *, mean: float = 0.0) -> str:
        values = mean + 0.1 * self.random.standard_normal(size)
        return self.writer.weight(name, values, group=self.group)

    def _linear(self, source: str, output: str, weight: str, width: int) -> str:
        columns = self.shape.heads * self.shape.head_dim if "o_proj" in weight else (
            self.shape.intermediate if "down_proj" in weight else self.shape.hidden
        )  # fmt: skip
        matrix = self._weight(weight, width, columns)
        return self.writer.linear(source, matrix, output, width=width)

    def _norm(self, source: str, output: str, weight: str) -> str:
        scale = self._vector(weight, self.shape.hidden, mean=1.0)
        return self.writer.node(
            "RMSNormalization",
            [source, scale],
            [output],
            shapes=[(1, "T", self.shape.hidden)],
            attributes={"axis": -1, "epsilon": 1e-6},
        )

    def _add(self, left: str, right: str, output: str) -> str:
        return self._binary("Add", left, right, output, self.shape.hidden)

    def _binary(self, op_type: str, left: str, right: str, output: str, width: int) -> str:
        return self.writer.node(op_type, [left, right], [output], shapes=[(1, "T", width)])

    def _unary(self, op_type: str, source: str, output: str, width: int) -> str:
        return self.writer.node(op_type, [source], [output], shapes=[(1, "T", width)])

    def _scaled(self, source: str, output: str, factor: float) -> str:
        constant = self.writer.constant(f"{output}.factor", np.array(factor, np.float32))
        return self.writer.node("Mul", [source, constant], [output], shapes=[None])


def keep_expanded(core: Path) -> None:
    """Give a core graph that no source was read for one to be held against: its own expansion."""
    model, facts = read_core(core)
    (core / SOURCE_FOLDER).mkdir()
    write_proto(expand(model, facts), core / SOURCE_FILE)


def assemble_step1(fixture: Path, example: Path, out: Path, *, encodings: str = "") -> Path:
    """Put a static source model together from its graph and the example's weights.

    Args:
        fixture: `tests/fixtures/step1/left-pad` or `right-pad`.
        example: `examples/tiny-llama/model`, whose weights it shares.
        out: An empty or missing folder.
        encodings: "w8a16" or "w4a16" to add `model.encodings`.

    Returns:
        `out`, laid out as a source model.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "config.json"):
        shutil.copyfile(fixture / name, out / name)
    for path in example.glob("*token*"):
        shutil.copyfile(path, out / path.name)
    if encodings:
        packed = (fixture / f"{encodings}.encodings.gz").read_bytes()
        (out / "model.encodings").write_bytes(gzip.decompress(packed))
    sources = json.loads((fixture / "weights.json").read_text(encoding="utf-8"))
    known = ir.load(example / "model.onnx").graph.initializers
    with (out / "model.data").open("wb") as file:
        for name, value in ir.load(out / "model.onnx").graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            held = known[sources[name]["tensor"]].const_value
            assert held is not None
            array = mapped(held)
            file.seek(tensor.offset or 0)
            turned = array.T if sources[name]["transposed"] else array
            file.write(np.ascontiguousarray(turned).tobytes())
    return out


def core_logits(
    folder: Path, tokens: Sequence[int] | NDArray[np.integer], *, chunks: Sequence[int] = ()
) -> FloatArray:
    """Logits [N, V] of a core graph through its expansion.

    Args:
        folder: Of the core graph.
        tokens: N token ids, from an empty cache.
        chunks: Tokens of each pass; what is left goes into a last one.
    """
    model, facts = read_core(folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    session = ort.InferenceSession(
        ir.to_proto(expand(model, facts)).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()[1:]
    }
    logits, start = [], 0
    left = len(tokens) - sum(chunks)
    for count in [*chunks, left] if left else chunks:
        piece = np.array(tokens[start : start + count], np.int64)[None]
        first, *presents = session.run(None, {"input_ids": piece, **past})
        past = dict(zip(past, presents, strict=True))
        logits.append(first[0])
        start += count
    return np.concatenate(logits)
