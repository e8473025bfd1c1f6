"""`genai.Attention` -> standard operators over a cache of fixed length (multi-head form).

All heads are computed by one MatMul each for scores and context; grouped queries need no copies of
keys, since [KV, G, AR, D] x [KV, 1, D, CL] broadcasts over the G query heads of a kv head:

    query [AR, H*D] -> [KV, G, AR, D], norm, rotation
    key   [AR, KV*D] -> [KV, 1, AR, D], norm, rotation -> [KV, 1, D, AR]  = past_key_{l}_out
    value [AR, KV*D] -> [KV, 1, AR, D]                                    = past_value_{l}_out
    keys, values = past in front, new behind;  scores, scale, soft cap, mask, Softmax, context

Roles of nodes (`genai.role`): heads, norm, rope, cache, scores, scaled, capped, masked, probs,
context, flat. Tensors take the names that the source gives them, where it has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from genai_core.facts import Role, TensorSource
from genai_stages.graph.expand_attention import AttentionSpec
from genai_stages.graph.graph_builder import GraphBuilder, mark_token_axes


class StaticAttention:
    """Writes one attention.

    Args:
        build: The graph under construction.
        spec: The attention's attributes.
        roles: Role -> name of the source's tensor.
        ar: New tokens of a pass.
    """

    def __init__(
        self,
        build: GraphBuilder,
        spec: AttentionSpec,
        *,
        roles: Mapping[Role, str],
        ar: int,
    ) -> None:
        self.build = build
        self.spec = spec
        self.roles = roles
        self.ar = ar
        self.own = f"layers.{spec.layer}.attention"

    def query(self, rows: ir.Value, norm: ir.Value | None, cos_sin: Sequence[ir.Value]) -> ir.Value:
        """[AR, H*D] -> [KV, G, AR, D], normed and rotated."""
        spec = self.spec
        groups = spec.num_heads // spec.kv_heads
        query = self._heads(rows, groups, "query")
        query = self._normed(query, norm, "query_normed")
        return self._rotated(query, cos_sin, "query_rotated")

    def key(self, rows: ir.Value, norm: ir.Value | None, cos_sin: Sequence[ir.Value]) -> ir.Value:
        """[AR, KV*D] -> [KV, 1, D, AR], normed and rotated: the graph's output."""
        key = self._heads(rows, 1, "key")
        key = self._normed(key, norm, "key_normed")
        key = self._rotated(key, cos_sin, "key_rotated")
        return self._new(key, "key", perm=(0, 1, 3, 2), tokens=3)

    def value(self, rows: ir.Value) -> ir.Value:
        """[AR, KV*D] -> [KV, 1, AR, D]: the graph's output."""
        spec = self.spec
        shape = (self.ar, spec.kv_heads, 1, spec.head_dim)
        split = self.build.reshape(rows, shape, name=f"{self.own}.value_split", role="heads")
        return self._new(split, "value", perm=(1, 2, 0, 3), tokens=2)

    def all(self, kind: str, past: ir.Value | None, new: ir.Value) -> ir.Value:
        """Past in front, new tokens behind."""
        if past is None:
            return new
        role: Role = "key_all" if kind == "key" else "value_all"
        axis = 3 if kind == "key" else 2
        return self.build.op("Concat", past, new, name=self._named(role), role="cache", axis=axis)

    def attend(
        self, query: ir.Value, keys: ir.Value, values: ir.Value, *, mask: ir.Value
    ) -> ir.Value:
        """Scores to context, [KV, G, AR, D]."""
        build, spec = self.build, self.spec
        scores = build.op("MatMul", query, keys, name=self._named("scores"), role="scores")
        if spec.scale != 1.0:
            factor = build.number(spec.scale)
            scores = build.op("Mul", scores, factor, name=self._named("scaled"), role="scaled")
        if spec.softcap:
            cap = build.number(spec.softcap)
            low = build.op("Div", scores, cap, name=self._unique("uncapped"), role="capped")
            low = build.op("Tanh", low, name=self._unique("bounded"), role="capped")
            scores = build.op("Mul", low, cap, name=self._named("capped"), role="capped")
        scores = build.op("Add", scores, mask, name=self._named("masked"), role="masked")
        probs = build.op("Softmax", scores, name=self._named("probs"), role="probs", axis=-1)
        return build.op("MatMul", probs, values, name=self._named("context"), role="context")

    def flat(self, context: ir.Value, name: str) -> ir.Value:
        """[KV, G, AR, D] -> [AR, H*D]; `name` is the core graph's."""
        build, spec = self.build, self.spec
        turned = build.move(
            "Transpose",
            context,
            name=f"{self.own}.context_turned",
            role="flat",
            perm=(2, 0, 1, 3),
        )
        mark_token_axes(turned, [0])
        shape = build.ints(self.ar, spec.num_heads * spec.head_dim)
        return build.op("Reshape", turned, shape, name=name, role="flat")

    def _named(self, role: Role) -> str:
        return self.build.claim(self.roles.get(role), f"{self.own}.{role}")

    def _unique(self, name: str) -> str:
        return self.build.unique(f"{self.own}.{name}")

    def _heads(self, rows: ir.Value, groups: int, kind: str) -> ir.Value:
        spec = self.spec
        shape = (self.ar, spec.kv_heads, groups, spec.head_dim)
        split = self.build.reshape(rows, shape, name=f"{self.own}.{kind}_split", role="heads")
        name = f"{self.own}.{kind}_heads"
        turned = self.build.move("Transpose", split, name=name, role="heads", perm=(1, 2, 0, 3))
        mark_token_axes(turned, [2])
        return turned

    def _new(self, value: ir.Value, kind: str, *, perm: Sequence[int], tokens: int) -> ir.Value:
        """The new slice of the cache; it bears the encoding of the source's cache output."""
        build = self.build
        name = f"past_{kind}_{self.spec.layer}_out"
        role: Role = "key_new" if kind == "key" else "value_new"
        if role in self.roles and self.roles[role] != name:
            build.provenance[name] = TensorSource(source=self.roles[role])
        new = build.op("Transpose", value, name=name, role="cache", perm=perm)
        mark_token_axes(new, [tokens])
        return new

    def _normed(self, value: ir.Value, norm: ir.Value | None, role: Role) -> ir.Value:
        if norm is None:
            return value
        return self.build.op(
            "RMSNormalization",
            value,
            norm,
            name=self._named(role),
            role="norm",
            axis=-1,
            epsilon=self.spec.qk_norm_epsilon,
        )

    def _rotated(self, value: ir.Value, cos_sin: Sequence[ir.Value], role: Role) -> ir.Value:
        """Rotate pairs of channels: (a, b) -> (a cos - b sin, b cos + a sin)."""
        if not cos_sin:
            return value
        build, spec = self.build, self.spec
        cos, sin = cos_sin
        kind = "query" if role == "query_rotated" else "key"
        rotary, half = spec.rotary_dim, spec.rotary_dim // 2

        def op(op_type: str, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
            return build.op(op_type, left, right, name=self._unique(f"{kind}_{name}"), role="rope")

        if spec.interleaved:
            first = self._slice(value, 0, rotary, 2, f"{kind}_first")
            second = self._slice(value, 1, rotary, 2, f"{kind}_second")
        else:
            first = self._slice(value, 0, half, 1, f"{kind}_first")
            second = self._slice(value, half, rotary, 1, f"{kind}_second")
        parts = [
            op("Sub", op("Mul", first, cos, "first_cos"), op("Mul", second, sin, "second_sin"),
               "first_rotated"),
            op("Add", op("Mul", second, cos, "second_cos"), op("Mul", first, sin, "first_sin"),
               "second_rotated"),
        ]  # fmt: skip
        if role in self.roles:
            for part in parts:
                assert part.name is not None
                build.provenance[part.name] = TensorSource(source=self.roles[role])
        if spec.interleaved:
            parts = [self._interleaved(parts, kind)]
        if rotary < spec.head_dim:
            parts.append(self._slice(value, rotary, spec.head_dim, 1, f"{kind}_rest"))
        if len(parts) == 1:
            return parts[0]
        return build.op("Concat", *parts, name=self._named(role), role="rope", axis=-1)

    def _interleaved(self, parts: Sequence[ir.Value], kind: str) -> ir.Value:
        """Two halves [.., AR, half] -> channels in pairs [.., AR, 2 * half]."""
        build, spec = self.build, self.spec
        groups = spec.num_heads // spec.kv_heads if kind == "query" else 1
        shape = (spec.kv_heads, groups, self.ar)
        wide = [
            build.reshape(part, (*shape, spec.rotary_dim // 2, 1), name=f"{part.name}_wide",
                          role="rope")
            for part in parts
        ]  # fmt: skip
        pairs = build.move(
            "Concat", wide[0], wide[1], name=f"{self.own}.{kind}_pairs", role="rope", axis=-1
        )
        name = f"{self.own}.{kind}_interleaved"
        return build.reshape(pairs, (*shape, spec.rotary_dim), name=name, role="rope")

    def _slice(self, value: ir.Value, start: int, stop: int, step: int, name: str) -> ir.Value:
        """Channels start, start + step ... of the last of four axes."""
        numbers = [self.build.ints(number) for number in (start, stop, 3, step)]
        return self.build.move("Slice", value, *numbers, name=f"{self.own}.{name}", role="rope")
