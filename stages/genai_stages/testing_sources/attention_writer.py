"""Attention, operator by operator or as one of ONNX Runtime's own."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from genai_stages.testing_sources.position_writer import PositionWriter


class AttentionWriter(PositionWriter):
    """Writes attentions and their caches."""

    def cached(self, layer: int, kind: str, new: str) -> str:
        """Keys or values, the cache before the new ones."""
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
        """Key heads for every query head."""
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
