"""Which tensors are computed head by head: from a MatMul over several heads, outwards.

A start is the output of a MatMul with heads as batch axes. Its layout is carried backwards to
whatever yields the heads (rows of a linear, an input of the graph) and forwards to whatever mixes
them again (the output projection, an output of the graph), through every operator that can work on
one head at a time. Tensors between layers never take part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import onnx_ir as ir

from genai_stages.graph.graph_builder import token_axes
from genai_stages.static.head_axes import (
    Layout,
    input_layouts,
    labels_of,
    output_layout,
    plain,
)
from genai_stages.static.static_shapes import static_shape


@dataclasses.dataclass
class Regions:
    """The parts of a graph that are to be computed head by head.

    Attributes:
        sizes: Label -> how many heads; labels of one start follow each other, outermost first.
        layouts: Tensor -> where its heads are.
        nodes: Node -> what it needs of its inputs.
    """

    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    layouts: dict[ir.Value, Layout] = dataclasses.field(default_factory=dict)
    nodes: dict[ir.Node, tuple[Layout, ...]] = dataclasses.field(default_factory=dict)

    def grow(self, starts: Iterable[ir.Node], barriers: frozenset[ir.Value]) -> None:
        """Add the region of each start that does not lie in one already.

        Args:
            starts: MatMuls; without several heads they are passed over.
            barriers: Tensors that stay whole.
        """
        for number, node in enumerate(starts):
            axes = head_axes_of(node)
            if not axes or node in self.nodes:
                continue
            shape = static_shape(node.outputs[0])
            layout = list(plain(len(shape)))
            for axis in axes:
                label = f"{number}.{axis}"
                self.sizes[label] = shape[axis]
                layout[axis] = (label,)
            self._spread(node.outputs[0], tuple(layout), barriers)

    def _spread(self, start: ir.Value, layout: Layout, barriers: frozenset[ir.Value]) -> None:
        open_values: list[ir.Value] = []

        def reach(value: ir.Value, found: Layout) -> None:
            inside = value.producer() is not None and value not in self.layouts
            if inside and labels_of(found) and value not in barriers:
                self.layouts[value] = found
                open_values.append(value)

        reach(start, layout)
        while open_values:
            value = open_values.pop()
            here = self.layouts[value]
            producer = value.producer()
            assert producer is not None
            if producer not in self.nodes:
                needed = input_layouts(producer, here, self.sizes)
                if needed is None:
                    # Made whole and sliced: nothing else is gained by going on from here.
                    del self.layouts[value]
                    continue
                self.nodes[producer] = needed
                for output in producer.outputs:
                    reach(output, here)
                for used, found in zip(producer.inputs, needed, strict=True):
                    if used is not None:
                        reach(used, found)
            for consumer, index in value.uses():
                self._forward(consumer, index, here, barriers=barriers, reach=reach)

    def _forward(
        self,
        consumer: ir.Node,
        index: int,
        layout: Layout,
        *,
        barriers: frozenset[ir.Value],
        reach: Callable[[ir.Value, Layout], None],
    ) -> None:
        if consumer in self.nodes or any(output in self.layouts for output in consumer.outputs):
            return
        out = output_layout(consumer, index, layout, sizes=self.sizes)
        if out is None or any(output in barriers for output in consumer.outputs):
            return
        needed = input_layouts(consumer, out, self.sizes)
        assert needed is not None
        for used, found in zip(consumer.inputs, needed, strict=True):
            if used in barriers and labels_of(found):
                return
        for output in consumer.outputs:
            reach(output, out)


def head_axes_of(node: ir.Node) -> tuple[int, ...]:
    """The axes of a MatMul's output that count heads: batch axes that do not count tokens."""
    if node.op_type != "MatMul" or node.domain:
        return ()
    shape = static_shape(node.outputs[0])
    tokens = token_axes(node) or frozenset()
    return tuple(axis for axis, dim in enumerate(shape[:-2]) if dim > 1 and axis not in tokens)
