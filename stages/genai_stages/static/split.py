"""Cut a static graph at layer boundaries.

A part holds the layers [first, last), with the embedding in front or the head behind them where
asked. What passes from one part to the next is a single tensor, `hidden_states_{l}` [1, AR, hidden]
entering layer l; masks and rotary tables go to the parts whose layers read them. Nothing is
computed differently, so a chain of parts gives the whole graph's numbers bit for bit.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from genai_core.errors import InvalidSpec, UnsupportedOperator
from genai_core.facts import ModelFacts, TensorSource
from genai_stages.graph.core_graph import IR_VERSION
from genai_stages.graph.graph_builder import GROUP, ROLE
from genai_stages.graph.provenance import source_of
from genai_stages.static.static_graph import StaticGraph, static_name
from genai_stages.static.static_shapes import static_shape


@dataclasses.dataclass(frozen=True)
class ModelPart:
    """Which part of the model is wanted.

    Attributes:
        first: First layer.
        last: Behind the last layer.
        embedding: Whether it starts from `input_ids`; else from `hidden_states_{first}`.
        lm_head: Whether it ends with `logits`; else with `hidden_states_{last}`.
    """

    first: int
    last: int
    embedding: bool
    lm_head: bool

    def check(self, layers: int) -> None:
        """Refuse a part that does not exist.

        Raises:
            InvalidSpec: Its ends do not fit the number of layers, or it is empty.
        """
        fits = 0 <= self.first <= self.last <= layers
        starts = self.first == 0 or not self.embedding
        ends = self.last == layers or not self.lm_head
        if not (fits and starts and ends):
            raise InvalidSpec(
                f"layers {self.first} to {self.last} are no part of a model with {layers} layers",
                where="splits",
                remedy="plan the splits again",
            )
        if self.first == self.last and not (self.embedding or self.lm_head):
            raise InvalidSpec(
                f"a part without layers, embedding and head at layer {self.first}",
                where="splits.count",
                remedy=f"use at most {layers} parts, and one more each for embedding and lm_head",
            )


def boundary_name(layer: int) -> str:
    """The tensor that enters a layer, between two parts."""
    return f"hidden_states_{layer}"


def cut(static: StaticGraph, facts: ModelFacts, part: ModelPart, *, name: str) -> StaticGraph:
    """Take one part out of a static graph.

    Args:
        static: The whole graph; left unchanged.
        facts: The model's facts.
        part: What to take.
        name: Name of the new graph.

    Raises:
        InvalidSpec: There is no such part.
        UnsupportedOperator: More than the boundary tensor passes between two layers.
    """
    part.check(facts.layers)
    return _Cut(static, facts, part).run(name)


class _Cut:
    def __init__(self, static: StaticGraph, facts: ModelFacts, part: ModelPart) -> None:
        self.static = static
        self.facts = facts
        self.part = part
        graph = static.model.graph
        self.values = {value.name: value for node in graph for value in node.outputs}
        self.inputs = {value.name: value for value in graph.inputs}
        self.map: dict[ir.Value, ir.Value] = {}
        self.initializers: list[ir.Value] = []
        self.used_inputs: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self.provenance: dict[str, TensorSource] = {}

    def run(self, name: str) -> StaticGraph:
        part, graph = self.part, self.static.model.graph
        start = None
        if not part.embedding:
            start = self._boundary(part.first)
            self._enter(start)
        end = graph.outputs[0] if part.lm_head else self._boundary(part.last)
        caches = [
            self.values[f"past_{kind}_{attention.layer}_out"]
            for attention in self.facts.attention
            if part.first <= attention.layer < part.last
            for kind in ("key", "value")
        ]
        for node in self._needed([end, *caches], start):
            self._copy(node)
        main = self.map[end] if part.lm_head else self._leave(end)
        inputs = [self.used_inputs[value.name or ""] for value in self._ordered_inputs()]
        self._check_inputs(inputs)
        model = ir.Model(
            ir.Graph(
                inputs,
                [main, *(self.map[cache] for cache in caches)],
                nodes=self.nodes,
                initializers=self.initializers,
                opset_imports=dict(graph.opset_imports),
                name=name,
            ),
            ir_version=IR_VERSION,
            producer_name="genai-operator",
        )
        names = {value.name for value in self.map.values()}
        for key, source in self.static.provenance.items():
            if key in names:
                self.provenance[key] = source
        return StaticGraph(model, self.provenance)

    def _boundary(self, layer: int) -> ir.Value:
        return self.values[static_name(self.facts.boundaries[layer])]

    def _needed(self, ends: list[ir.Value], start: ir.Value | None) -> list[ir.Node]:
        wanted: set[ir.Node] = set()
        pending = list(ends)
        while pending:
            value = pending.pop()
            producer = value.producer()
            if value is start or producer is None or producer in wanted:
                continue
            wanted.add(producer)
            pending.extend(used for used in producer.inputs if used is not None)
        return [node for node in self.static.model.graph if node in wanted]

    def _enter(self, value: ir.Value) -> None:
        """Start from the boundary tensor; inside it goes by its own name and form."""
        shape = static_shape(value)
        outer = self._outer(value, self.part.first)
        self.used_inputs[outer.name or ""] = outer
        self.map[value] = ir.Value(name=value.name, shape=value.shape, type=value.type)
        self._reshape(outer, self.map[value], shape, f"{outer.name}.rows")

    def _leave(self, value: ir.Value) -> ir.Value:
        """End with the boundary tensor."""
        outer = self._outer(value, self.part.last)
        self._reshape(self.map[value], outer, static_shape(outer), f"{outer.name}.out")
        return outer

    def _outer(self, value: ir.Value, layer: int) -> ir.Value:
        name = boundary_name(layer)
        shape = static_shape(value)
        whole = (1, *shape[-2:])
        # Embeddings lie on the grid of their table, on both sides of the cut.
        stands_for = _table(value) or value
        self.provenance[name] = source_of(stands_for.name or "", self.static.provenance)
        return ir.Value(name=name, shape=ir.Shape(list(whole)), type=value.type)

    def _reshape(
        self, source: ir.Value, target: ir.Value, shape: tuple[int, ...], scope: str
    ) -> None:
        array = np.array(shape, np.int64)
        constant = ir.Value(
            name=f"{scope}.shape",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.INT64),
        )
        constant.const_value = ir.Tensor(array, name=constant.name)
        self.initializers.append(constant)
        node = ir.Node(
            "", "Reshape", [source, constant], outputs=[target], name=f"Reshape:{target.name}"
        )
        node.metadata_props[GROUP] = "boundary"
        node.metadata_props[ROLE] = "rows"
        self.nodes.append(node)

    def _copy(self, node: ir.Node) -> None:
        outputs = [ir.Value(name=out.name, shape=out.shape, type=out.type) for out in node.outputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self._mapped(value) for value in node.inputs],
            attributes=list(node.attributes.values()),
            outputs=outputs,
            name=node.name,
        )
        copy.metadata_props.update(node.metadata_props)
        self.nodes.append(copy)
        self.map.update(zip(node.outputs, outputs, strict=True))

    def _mapped(self, value: ir.Value) -> ir.Value:
        if value not in self.map:
            copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
            copy.const_value = value.const_value
            self.map[value] = copy
            if value.is_graph_input():
                self.used_inputs[value.name or ""] = copy
            else:
                self.initializers.append(copy)
        return self.map[value]

    def _ordered_inputs(self) -> list[ir.Value]:
        """The boundary first, then the whole graph's order."""
        own = [value for name, value in self.used_inputs.items() if name not in self.inputs]
        return own + [value for name, value in self.inputs.items() if name in self.used_inputs]

    def _check_inputs(self, inputs: list[ir.Value]) -> None:
        layers = range(self.part.first, self.part.last)
        for value in inputs:
            name = value.name or ""
            foreign = name.startswith(("past_key_", "past_value_")) and (
                int(name.split("_")[2]) not in layers
            )
            if foreign or (name == "input_ids" and not self.part.embedding):
                raise UnsupportedOperator(
                    f"layers {self.part.first} to {self.part.last} also read {name!r}: more than "
                    "one tensor passes between two layers",
                    where="splits",
                    remedy="build the model with one split",
                )


def _table(value: ir.Value) -> ir.Value | None:
    """The embedding table that a tensor's rows are taken from as they are."""
    producer = value.producer()
    if producer is None or producer.op_type != "Gather":
        return None
    table = producer.inputs[0]
    return table if table is not None and table.is_initializer() else None
