"""A whole source model of one style, with its config.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from genai_stages.testing_sources.attention_writer import AttentionWriter
from genai_stages.testing_sources.source_style import Style


def write_source(folder: Path, style: Style | None = None, /, **changes: object) -> Style:
    """Write `model.onnx` and `config.json` of a style into a folder; returns the style."""
    style = dataclasses.replace(style or Style(), **changes)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    model = _SourceWriter(style).run()
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


class _SourceWriter(AttentionWriter):
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
