"""Core graph -> the static graph of one AR x CL, in standard operators.

    inputs   `input_ids` int32 [1, AR]; `attention_mask` float [1, 1, AR, CL] (0 visible, -100
             hidden) and `attention_mask_w<W>` for each window W in use;
             `position_ids_cos|sin` float [1, 1, AR, rotary_dim / 2], `.._<table>` for others than
             the default table; per layer `past_key_{l}_in` [KV, 1, D, CL-AR],
             `past_value_{l}_in` [KV, 1, CL-AR, D] (none when CL = AR); where linears take
             adapters, A [in, R] and B [R, out] of each and one alpha [1], by the names of
             `AdapterInputs`
    outputs  `logits` float [1, AR, V]; per layer `past_key_{l}_out` [KV, 1, D, AR],
             `past_value_{l}_out` [KV, 1, AR, D]

The stream of tokens runs as rows [AR, C], not [1, AR, C]: linears are Gemm with transB, which takes
a weight [out, in] as it lies (so any rows of it are a view of the same file), has a slot for an
int32 bias, and becomes the vendor's FullyConnected without a Reshape around it. Operators that mind
the number of axes get the core graph's form back through a Reshape.

Names of tensors do not depend on AR or CL: one file of encodings serves every graph, and all share
their weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import onnx_ir as ir

from genai_core.errors import UnsupportedOperator
from genai_core.facts import AdapterInputs, ModelFacts, TensorSource
from genai_core.graphs import check_graph, graph_name
from genai_stages.graph.core_graph import DOMAIN, layer_group
from genai_stages.graph.expand_attention import AttentionSpec
from genai_stages.graph.graph_builder import GraphBuilder, mark_token_axes
from genai_stages.graph.provenance import source_of
from genai_stages.static.static_attention import StaticAttention
from genai_stages.static.static_shapes import (
    TOKENS,
    Shape,
    count_of_tokens,
    set_static_shapes,
    token_shapes,
)

# fmt: off
ELEMENTWISE = frozenset((
    "Abs", "Add", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu", "Where",
))
# fmt: on
"""Operators that give rows for rows."""

NORMS = frozenset(("RMSNormalization", "LayerNormalization"))


_INTERFACE = re.compile(
    r"input_ids|attention_mask(_w\d+)?|position_ids_(cos|sin)(_.*)?|hidden_states_\d+"
    r"|past_(key|value)_\d+_(in|out)"
)
"""Names that inputs and outputs of static graphs and of their parts bear."""


@dataclasses.dataclass(frozen=True)
class StaticGraph:
    """A static graph and what its tensors stand for."""

    model: ir.Model
    provenance: Mapping[str, TensorSource]


def emit_static(
    core: ir.Model,
    facts: ModelFacts,
    *,
    ar: int,
    cl: int,
    adapters: AdapterInputs | None = None,
) -> StaticGraph:
    """Write the static graph of one AR and CL.

    Args:
        core: A core graph; left unchanged.
        facts: Its facts.
        ar: New tokens of a pass.
        cl: Past and new tokens together.
        adapters: Inputs with which linears take adapters.

    Raises:
        InvalidSpec: AR > CL.
        UnsupportedOperator: A tensor's shape is not static even so.
    """
    check_graph(ar, cl)
    return _Emission(core, facts, ar=ar, cl=cl, adapters=adapters).run()


def is_adapter_input(name: str) -> bool:
    """Whether an input of a static graph is none of the model's own."""
    return _INTERFACE.fullmatch(name) is None


def static_name(core: str) -> str:
    """The static graph's name of a core tensor: its own, unless inputs or outputs are called so."""
    return f"{core}.source" if _INTERFACE.fullmatch(core) else core


def mask_name(window: int) -> str:
    """The input with the mask of a window, 0 = full causal attention."""
    return f"attention_mask_w{window}" if window else "attention_mask"


def rotary_names(table: str) -> tuple[str, str]:
    """The inputs with cosines and sines of a rotary table."""
    suffix = "" if table == "default" else f"_{table}"
    return f"position_ids_cos{suffix}", f"position_ids_sin{suffix}"


class _Emission:
    def __init__(
        self,
        core: ir.Model,
        facts: ModelFacts,
        *,
        ar: int,
        cl: int,
        adapters: AdapterInputs | None,
    ) -> None:
        self.adapters = adapters
        self.branches = {one.linear: one for one in adapters.branches} if adapters else {}
        self.core = core
        self.facts = facts
        self.ar = ar
        self.cl = cl
        self.shapes = token_shapes(core)
        self.roles = {attention.layer: attention.roles for attention in facts.attention}
        names = [value.name for node in core.graph for value in node.outputs]
        names += [value.name for value in core.graph.inputs]
        names += core.graph.initializers
        self.build = GraphBuilder([name for name in names if name], facts.provenance)
        self.rows: dict[ir.Value, ir.Value] = {}
        self.whole: dict[ir.Value, ir.Value] = {}
        self.inputs: dict[str, ir.Value] = {}
        self.pasts: list[ir.Value] = []
        self.caches: list[ir.Value] = []

    def run(self) -> StaticGraph:
        build, graph = self.build, self.core.graph
        boundaries = {name: index for index, name in enumerate(self.facts.boundaries)}
        build.group = "embed"
        ids = build.input("input_ids", (1, self.ar), ir.DataType.INT32)
        self.whole[graph.inputs[0]] = ids
        for node in graph:
            self._node(node)
            passed = boundaries.get(node.outputs[0].name or "")
            if passed is not None:
                last = passed == len(boundaries) - 1
                build.group = "head" if last else layer_group(passed)
        logits = self._whole(graph.outputs[0])
        inputs = [ids, *(self.inputs[name] for name in sorted(self.inputs)), *self.pasts]
        name = graph_name(self.ar, self.cl)
        model = build.finish(name, inputs, [logits, *self.caches])
        set_static_shapes(model)
        present = {v.name for n in model.graph for v in n.outputs} | set(model.graph.initializers)
        present |= {value.name for value in inputs}
        kept = {key: source for key, source in build.provenance.items() if key in present}
        return StaticGraph(model, kept)

    def _node(self, node: ir.Node) -> None:
        if node.domain == DOMAIN and node.op_type == "Attention":
            self._attention(node)
        elif node.domain == DOMAIN and node.op_type == "Linear":
            self._linear(node)
        elif node.domain:
            raise UnsupportedOperator(
                f"no static form is known for operator {node.domain}.{node.op_type}",
                where=f"node {node.name!r}",
                remedy="export the model with standard ONNX operators",
            )
        elif node.op_type == "Gather" and node.inputs[1] is self.core.graph.inputs[0]:
            self._embedding(node)
        elif self._takes_rows(node):
            self._copy(node, self._row_operand, self.rows)
        else:
            self._copy(node, self._whole, self.whole)

    def _embedding(self, node: ir.Node) -> None:
        table, ids = node.inputs
        assert table is not None
        assert ids is not None
        flat = self.build.reshape(self.whole[ids], (self.ar,), name="input_ids.rows", role="ids")
        out = node.outputs[0]
        self.rows[out] = self.build.op(
            "Gather", self._whole(table), flat, name=self._name(out), role="embedding", axis=0
        )

    def _linear(self, node: ir.Node) -> None:
        """Rows of x times rows of W; any axes before the last are rows too."""
        source, *weights = [value for value in node.inputs if value is not None]
        out = node.outputs[0]
        operands = [self._whole(weight) for weight in weights]
        shape = self._static(source)
        if self._is_stream(source):
            rows = self._rows(source)
            self.rows[out] = self._gemm(rows, operands, self._name(out), of=out)
            return
        flat = (-1, shape[-1])
        rows = self.build.reshape(self._whole(source), flat, name=f"{out.name}.input", role="rows")
        product = self._gemm(rows, operands, self.build.unique(f"{out.name}.rows"), of=out)
        assert product.name is not None
        self.build.provenance[product.name] = source_of(out.name or "", self.build.provenance)
        self.whole[out] = self.build.op(
            "Reshape",
            product,
            self.build.ints(*self._static(out)),
            name=self._name(out),
            role="rows",
        )

    def _gemm(
        self, rows: ir.Value, operands: list[ir.Value], name: str, *, of: ir.Value
    ) -> ir.Value:
        """A linear, and beside it the branch of an adapter where it takes one."""
        build, branch = self.build, self.branches.get(of.name or "")
        if branch is None or self.adapters is None:
            return build.op("Gemm", rows, *operands, name=name, role="linear", transB=1)
        build.provenance[branch.plain] = source_of(branch.linear, build.provenance)
        plain = build.op("Gemm", rows, *operands, name=branch.plain, role="linear", transB=1)
        rank = self.adapters.rank
        a = self._input(branch.a, (branch.inputs, rank))
        b = self._input(branch.b, (rank, branch.outputs))
        alpha = self._input(self.adapters.alpha, (1,))
        down = build.op("MatMul", rows, a, name=branch.down, role="adapter")
        scaled = build.op("Mul", down, alpha, name=branch.scaled, role="adapter")
        up = build.op("MatMul", scaled, b, name=branch.up, role="adapter")
        return build.op("Add", plain, up, name=name, role="adapter")

    def _attention(self, node: ir.Node) -> None:
        spec = AttentionSpec.of(node)
        query, key, value, *norms = node.inputs
        norms += [None] * (2 - len(norms))
        assert query is not None
        assert key is not None
        assert value is not None
        query_norm, key_norm = [None if norm is None else self._whole(norm) for norm in norms]
        attention = StaticAttention(
            self.build, spec, roles=self.roles.get(spec.layer, {}), ar=self.ar
        )
        cos_sin = self._cos_sin(spec)
        heads = attention.query(self._rows(query), query_norm, cos_sin)
        new_key = attention.key(self._rows(key), key_norm, cos_sin)
        new_value = attention.value(self._rows(value))
        past_key, past_value = self._past(spec)
        keys = attention.all("key", past_key, new_key)
        values = attention.all("value", past_value, new_value)
        context = attention.attend(heads, keys, values, mask=self._mask(spec.window))
        out = node.outputs[0]
        self.rows[out] = attention.flat(context, self._name(out))
        self.caches += [new_key, new_value]

    def _cos_sin(self, spec: AttentionSpec) -> list[ir.Value]:
        if not spec.rope:
            return []
        shape = (1, 1, self.ar, spec.rotary_dim // 2)
        return [self._input(name, shape) for name in rotary_names(spec.rope)]

    def _mask(self, window: int) -> ir.Value:
        return self._input(mask_name(window), (1, 1, self.ar, self.cl))

    def _past(self, spec: AttentionSpec) -> list[ir.Value | None]:
        length = self.cl - self.ar
        if not length:
            return [None, None]
        roles = self.roles.get(spec.layer, {})
        made: list[ir.Value | None] = []
        for kind in ("key", "value"):
            name = f"past_{kind}_{spec.layer}_in"
            width = (spec.head_dim, length) if kind == "key" else (length, spec.head_dim)
            shape = (spec.kv_heads, 1, *width)
            past = self.build.input(name, shape, ir.DataType.FLOAT)
            source = roles.get("past_key" if kind == "key" else "past_value")
            if source is not None:
                self.build.provenance[name] = TensorSource(source=source)
            self.pasts.append(past)
            made.append(past)
        return made

    def _input(self, name: str, shape: Shape) -> ir.Value:
        if name not in self.inputs:
            self.inputs[name] = self.build.input(name, shape, ir.DataType.FLOAT)
        return self.inputs[name]

    def _copy(
        self,
        node: ir.Node,
        operand: Callable[[ir.Value], ir.Value],
        made: dict[ir.Value, ir.Value],
    ) -> None:
        """Append an ordinary node with operands of one form."""
        inputs = [None if value is None else operand(value) for value in node.inputs]
        outputs = []
        for value in node.outputs:
            name = self._name(value) if value.name else ""
            outputs.append(ir.Value(name=name))
        attributes = [
            ir.AttrInt64("axis", -1)
            if made is self.rows and attribute.name == "axis"
            else attribute
            for attribute in node.attributes.values()
        ]
        copy = ir.Node(
            "", node.op_type, inputs, attributes=attributes, outputs=outputs, name=node.name
        )
        self.build.append(copy, "batched" if node.op_type == "MatMul" else "copy")
        if node.op_type in ("MatMul", "Transpose"):
            mark_token_axes(outputs[0], self._token_axes(node.outputs[0]))
        made.update(zip(node.outputs, outputs, strict=True))

    def _takes_rows(self, node: ir.Node) -> bool:
        """Whether a node computes the same on rows as on [1, T, C]."""
        out = node.outputs[0]
        if not self._is_stream(out):
            return False
        if node.op_type in NORMS:
            axis = node.attributes.get("axis")
            last = axis is None or axis.as_int() in (-1, 2)
            return last and not any(value.name for value in node.outputs[1:])
        return node.op_type in ELEMENTWISE and all(
            value is None or self._is_stream(value) or len(self.shapes[value.name or ""]) <= 1
            for value in node.inputs
        )

    def _is_stream(self, value: ir.Value) -> bool:
        """Whether it is [1, T, C]."""
        shape = self.shapes.get(value.name or "", ())
        return len(shape) == 3 and shape[:2] == (1, TOKENS)

    def _row_operand(self, value: ir.Value) -> ir.Value:
        return self._rows(value) if self._is_stream(value) else self._whole(value)

    def _rows(self, value: ir.Value) -> ir.Value:
        """The form [AR, C] of a tensor [1, T, C]."""
        if value not in self.rows:
            shape = self._static(value)
            self.rows[value] = self.build.reshape(
                self.whole[value], shape[1:], name=f"{value.name}.rows", role="rows"
            )
        return self.rows[value]

    def _whole(self, value: ir.Value) -> ir.Value:
        """The core graph's own form; weights are taken along."""
        if value not in self.whole:
            if value.is_initializer():
                self.whole[value] = self.build.weight(value)
            elif value.is_graph_output():
                shape = self.build.ints(*self._static(value))
                name = value.name or "logits"
                self.whole[value] = self.build.op(
                    "Reshape", self.rows[value], shape, name=name, role="rows"
                )
            else:
                self.whole[value] = self.build.reshape(
                    self.rows[value], self._static(value), name=f"{value.name}.whole", role="rows"
                )
        return self.whole[value]

    def _name(self, value: ir.Value) -> str:
        """The core graph's name; the rows of an output leave it to the output itself."""
        name = value.name or ""
        if value.is_graph_output() and self._is_stream(value):
            rows = f"{name}.rows"
            self.build.provenance[rows] = source_of(name, self.build.provenance)
            return rows
        if static_name(name) != name:
            source = source_of(name, self.build.provenance)
            name = static_name(name)
            self.build.provenance[name] = source
        return name

    def _token_axes(self, value: ir.Value) -> list[int]:
        shape = self.shapes.get(value.name or "", ())
        return [axis for axis, dim in enumerate(shape) if count_of_tokens(dim)]

    def _static(self, value: ir.Value) -> Shape:
        shape = self.shapes.get(value.name or "")
        if shape is None:
            raise UnsupportedOperator(
                f"the shape of {value.name!r} cannot be told",
                where="model.onnx",
                remedy="export the model without shapes that depend on values",
            )
        return tuple(dim // TOKENS * self.ar if count_of_tokens(dim) else dim for dim in shape)
