"""Rewrite a graph so that its regions are computed head by head.

Every node of a region is written once for each head. Where a region begins, a head takes its part:
rows of a weight as a view of the same bytes, a Slice of anything else. Where it ends, the parts are
concatenated under the whole tensor's name, so everything outside stays as it was.

Tensors of head h are called `<whole>.head_<h>`, and provenance says of which tensor they are a
part: they inherit its encoding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from genai_stages.graph.graph_builder import GROUP, GraphBuilder, token_axes
from genai_stages.graph.provenance import head_of, source_of
from genai_stages.static.head_axes import (
    MOVES,
    Layout,
    labels_of,
    part_shape,
)
from genai_stages.static.head_regions import Regions
from genai_stages.static.static_graph import StaticGraph
from genai_stages.static.static_shapes import Shape, set_static_shapes, static_shape

Digits = tuple[tuple[str, int], ...]
"""Label -> which head, for the labels of one tensor."""


def split_heads(static: StaticGraph, regions: Regions) -> StaticGraph:
    """Write the graph with its regions head by head.

    Args:
        static: A static graph with shapes; left unchanged.
        regions: Which of its nodes to split.
    """
    return _Rewrite(static, regions).run()


class _Rewrite:
    def __init__(self, static: StaticGraph, regions: Regions) -> None:
        self.static = static
        self.regions = regions
        self.sizes = regions.sizes
        self.order = {label: index for index, label in enumerate(regions.sizes)}
        graph = static.model.graph
        names = [value.name or "" for node in graph for value in node.outputs]
        names += [value.name or "" for value in graph.inputs]
        names += list(graph.initializers)
        self.build = GraphBuilder(names, static.provenance)
        self.whole: dict[ir.Value, ir.Value] = {}
        self.parts: dict[tuple[ir.Value, Layout, Digits], ir.Value] = {}

    def run(self) -> StaticGraph:
        build, graph = self.build, self.static.model.graph
        inputs = []
        for value in graph.inputs:
            assert value.name is not None
            assert value.dtype is not None
            inputs.append(build.input(value.name, static_shape(value), value.dtype))
            self.whole[value] = inputs[-1]
        for node in graph:
            build.group = node.metadata_props.get(GROUP, "")
            if node in self.regions.nodes:
                self._split(node)
            else:
                self._copy(node)
        outputs = [self._whole(value) for value in graph.outputs]
        self._drop_unused(outputs)
        assert graph.name is not None
        model = build.finish(graph.name, inputs, outputs)
        set_static_shapes(model)
        names = {value.name for node in model.graph for value in node.outputs}
        names |= {value.name for value in inputs} | set(model.graph.initializers)
        kept = {name: source for name, source in build.provenance.items() if name in names}
        return StaticGraph(model, kept)

    def _copy(self, node: ir.Node) -> None:
        outputs = [ir.Value(name=value.name) for value in node.outputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self._whole(value) for value in node.inputs],
            attributes=list(node.attributes.values()),
            outputs=outputs,
            name=node.name,
        )
        copy.metadata_props.update(node.metadata_props)
        self.build.nodes.append(copy)
        self.whole.update(zip(node.outputs, outputs, strict=True))

    def _split(self, node: ir.Node) -> None:
        out = node.outputs[0]
        layout = self.regions.layouts[out]
        needed = self.regions.nodes[node]
        for digits in self._all_digits(layout):
            shape = part_shape(static_shape(out), layout, self.sizes)
            inputs = [
                None if value is None else self._part(value, found, digits)
                for value, found in zip(node.inputs, needed, strict=True)
            ]
            op_type, attributes = node.op_type, list(node.attributes.values())
            if op_type in MOVES or self._only_moves_units(node, layout):
                inputs = [self._before_reshapes(inputs[0]), self.build.ints(*shape)]
                op_type, attributes = "Reshape", []
            elif op_type == "Expand":
                inputs[1] = self.build.ints(*shape)
            outputs = []
            for value in node.outputs:
                assert value.name is not None
                if not value.name:
                    outputs.append(ir.Value(name=""))
                    continue
                made = ir.Value(name=self._named(value.name, digits))
                outputs.append(made)
                self.parts[value, layout, digits] = made
            made_node = ir.Node(
                "",
                op_type,
                inputs,
                attributes=attributes,
                outputs=outputs,
                name=f"{node.name}.head_{self._head(digits)}",
            )
            made_node.metadata_props.update(node.metadata_props)
            self.build.nodes.append(made_node)

    def _part(self, value: ir.Value, layout: Layout, digits: Digits) -> ir.Value:
        """One head's part of a tensor; of a tensor that is the same for all, the tensor."""
        labels = labels_of(layout)
        if not labels:
            return self._whole(value)
        chosen = dict(digits)
        own: Digits = tuple((label, chosen[label]) for label in sorted(labels, key=self._rank))
        key = (value, layout, own)
        if key not in self.parts:
            starts, shape = self._box(value, layout, dict(own))
            if value.is_initializer():
                view = self._view(value, starts, shape, digits=own)
                self.parts[key] = view or self._slice(value, starts, shape, digits=own)
            else:
                self.parts[key] = self._slice(value, starts, shape, digits=own)
        return self.parts[key]

    def _whole(self, value: ir.Value) -> ir.Value:
        """A tensor with all its heads, under its own name."""
        if value not in self.whole:
            if value.is_initializer():
                self.whole[value] = self.build.weight(value)
            else:
                assert value.name is not None
                self.whole[value] = self._joined(value, value.name)
        return self.whole[value]

    def _joined(self, value: ir.Value, name: str) -> ir.Value:
        layout = self.regions.layouts[value]
        axes = [axis for axis, labels in enumerate(layout) if labels]

        def join(depth: int, fixed: dict[str, int]) -> ir.Value:
            if depth == len(axes):
                own = tuple(sorted(fixed.items(), key=lambda item: self._rank(item[0])))
                return self.parts[value, layout, own]
            labels = layout[axes[depth]]
            pieces = [
                join(depth + 1, fixed | dict(zip(labels, numbers, strict=True)))
                for numbers in itertools.product(*(range(self.sizes[label]) for label in labels))
            ]
            if depth == 0:
                return self.build.op("Concat", *pieces, name=name, role="join", axis=axes[0])
            prefix = "_".join(str(number) for number in fixed.values())
            inner = self.build.unique(f"{name}.join_{prefix}")
            self.build.provenance[inner] = source_of(name, self.build.provenance)
            return self.build.op("Concat", *pieces, name=inner, role="join", axis=axes[depth])

        return join(0, {})

    def _slice(
        self, value: ir.Value, starts: Sequence[int], shape: Shape, *, digits: Digits
    ) -> ir.Value:
        whole = static_shape(value)
        axes = [axis for axis, dim in enumerate(shape) if dim != whole[axis]]
        build = self.build
        assert value.name is not None
        return build.op(
            "Slice",
            self._whole(value),
            build.ints(*(starts[axis] for axis in axes)),
            build.ints(*(starts[axis] + shape[axis] for axis in axes)),
            build.ints(*axes),
            name=self._named(value.name, digits),
            role="slice",
        )

    def _view(
        self, value: ir.Value, starts: Sequence[int], shape: Shape, *, digits: Digits
    ) -> ir.Value | None:
        """A head's part of a weight as a view of the file, None where it is not in one piece."""
        tensor = value.const_value
        whole = static_shape(value)
        assert value.name is not None
        cut = [axis for axis, dim in enumerate(shape) if dim != whole[axis]]
        if not isinstance(tensor, ir.ExternalTensor) or any(dim != 1 for dim in shape[: cut[-1]]):
            return None
        strides = [math.prod(whole[axis + 1 :]) for axis in range(len(whole))]
        first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
        name = self.build.unique(f"{value.name}.head_{self._head(digits)}")
        size = tensor.nbytes // math.prod(whole)
        part = ir.Value(name=name, shape=ir.Shape(list(shape)), type=value.type)
        part.const_value = ir.ExternalTensor(
            tensor.location,
            (tensor.offset or 0) + first * size,
            math.prod(shape) * size,
            tensor.dtype,
            shape=ir.Shape(list(shape)),
            name=name,
            base_dir=tensor.base_dir,
        )
        rows = (starts[0], starts[0] + shape[0]) if cut == [0] else None
        parent = source_of(value.name, self.build.provenance)
        self.build.provenance[name] = head_of(parent, self._head(digits), rows=rows)
        return self.build.weight(part)

    def _box(
        self, value: ir.Value, layout: Layout, digits: Mapping[str, int]
    ) -> tuple[list[int], Shape]:
        """Where a head's part begins on each axis, and its shape."""
        shape = part_shape(static_shape(value), layout, self.sizes)
        starts = []
        for labels, dim in zip(layout, shape, strict=True):
            index = 0
            for label in labels:
                index = index * self.sizes[label] + digits[label]
            starts.append(index * dim)
        return starts, shape

    def _named(self, whole: str, digits: Digits) -> str:
        head = self._head(digits)
        name = self.build.unique(f"{whole}.head_{head}")
        parent = source_of(whole, self.build.provenance)
        self.build.provenance[name] = head_of(parent, head)
        return name

    def _only_moves_units(self, node: ir.Node, layout: Layout) -> bool:
        """Whether a Transpose, for one head, only moves axes of length 1."""
        tokens = token_axes(node)
        if node.op_type != "Transpose" or tokens is None:
            return False
        shape = static_shape(node.outputs[0])
        part = part_shape(shape, layout, self.sizes)
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        if perm is None:
            return False
        kept = [source for axis, source in enumerate(perm) if axis in tokens or part[axis] != 1]
        return kept == sorted(kept)

    def _before_reshapes(self, value: ir.Value | None) -> ir.Value:
        """Skip Reshapes that another one follows."""
        assert value is not None
        producer = value.producer()
        while producer is not None and producer.op_type == "Reshape":
            before = producer.inputs[0]
            assert before is not None
            value, producer = before, before.producer()
        return value

    def _drop_unused(self, outputs: Sequence[ir.Value]) -> None:
        used = set(outputs)
        kept = []
        for node in reversed(self.build.nodes):
            if any(value in used for value in node.outputs):
                kept.append(node)
                used.update(value for value in node.inputs if value is not None)
        self.build.keep(kept[::-1])

    def _all_digits(self, layout: Layout) -> list[Digits]:
        labels = sorted(labels_of(layout), key=self._rank)
        numbers = itertools.product(*(range(self.sizes[label]) for label in labels))
        return [tuple(zip(labels, one, strict=True)) for one in numbers]

    def _head(self, digits: Digits) -> int:
        head = 0
        for label, digit in digits:
            head = head * self.sizes[label] + digit
        return head

    def _rank(self, label: str) -> int:
        return self.order[label]
