"""Builds a static graph node by node: names, constants, marks and provenance in one place.

Every node is marked with the group of weights that it belongs to (`embed`, `layer_000`, `head`) and
with what it does there, so that later rewrites find an attention without guessing. Constants belong
to a group as well: each then lands in exactly one part when the graph is split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.facts import TensorSource
from genai_stages.graph.core_graph import IR_VERSION, OPSET, AttributeValue
from genai_stages.graph.provenance import source_of

GROUP = "genai.group"
"""Node metadata: the weights group, e.g. `layer_003`."""

ROLE = "genai.role"
"""Node metadata: what the node does, e.g. `scores`; see `static_attention`."""

TOKEN_AXES = "genai.token_axes"  # noqa: S105
"""Node metadata of MatMul and Transpose: which axes of the output count tokens, e.g. `0,2`.

With AR 1 such an axis looks like one of those that are always 1; rewrites must not take it for one,
or the graphs of different ARs would differ.
"""


def mark_token_axes(value: ir.Value, axes: Iterable[int]) -> None:
    """Note on the producer of a tensor which of the tensor's axes count tokens."""
    producer = value.producer()
    assert producer is not None
    producer.metadata_props[TOKEN_AXES] = ",".join(map(str, axes))


def token_axes(node: ir.Node) -> frozenset[int] | None:
    """The axes of a node's output that count tokens, None where that was not noted."""
    text = node.metadata_props.get(TOKEN_AXES)
    return None if text is None else frozenset(int(axis) for axis in text.split(",") if axis)


class GraphBuilder:
    """A graph under construction.

    Args:
        reserved: Names that only `op(..., name=...)` may take.
        provenance: Sources of the tensors that will keep their names.
    """

    def __init__(self, reserved: Iterable[str], provenance: Mapping[str, TensorSource]) -> None:
        self.group = ""
        self.nodes: list[ir.Node] = []
        self.provenance: dict[str, TensorSource] = dict(provenance)
        self._reserved = set(reserved)
        self._used: set[str] = set()
        self._initializers: dict[str, ir.Value] = {}

    def unique(self, wanted: str) -> str:
        """`wanted`, or with underscores behind it where that is taken."""
        while wanted in self._reserved or wanted in self._used:
            wanted += "_"
        return wanted

    def claim(self, source: str | None, otherwise: str) -> str:
        """A name for a tensor that stands for `source`: that name if it is free.

        Otherwise another one, whose provenance says what it stands for. None = no counterpart.
        """
        if source is not None and source not in self._reserved and source not in self._used:
            return source
        name = self.unique(otherwise)
        if source is not None:
            self.provenance[name] = TensorSource(source=source)
        return name

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        role: str,
        **attributes: AttributeValue,
    ) -> ir.Value:
        """Append a node with one output called `name`."""
        self._take(name)
        output = ir.Value(name=name)
        self.append(
            ir.Node(
                "",
                op_type,
                inputs,
                attributes=ir.convenience.convert_attributes(attributes),
                outputs=[output],
                name=f"{op_type}:{name}",
            ),
            role,
        )
        return output

    def move(
        self,
        op_type: str,
        value: ir.Value,
        *inputs: ir.Value,
        name: str,
        role: str,
        **attributes: AttributeValue,
    ) -> ir.Value:
        """Append a node that only moves the numbers of `value`, so that their source stays."""
        assert value.name is not None
        name = self.unique(name)
        self.provenance[name] = source_of(value.name, self.provenance)
        return self.op(op_type, value, *inputs, name=name, role=role, **attributes)

    def reshape(self, value: ir.Value, shape: Sequence[int], *, name: str, role: str) -> ir.Value:
        """Append a Reshape to a static shape."""
        return self.move("Reshape", value, self.ints(*shape), name=name, role=role)

    def append(self, node: ir.Node, role: str) -> None:
        """Append a ready node with its marks."""
        node.metadata_props[GROUP] = self.group
        node.metadata_props[ROLE] = role
        self.nodes.append(node)

    def input(self, name: str, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        """A graph input; the caller puts it into the graph."""
        self._take(name)
        return ir.Value(name=name, shape=ir.Shape(list(shape)), type=ir.TensorType(dtype))

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector, shared within the group."""
        text = "_".join(str(number).replace("-", "m") for number in numbers)
        return self._constant(f"{self.group}.ints_{text}", np.array(numbers, np.int64))

    def number(self, value: float) -> ir.Value:
        """A float32 scalar, shared within the group."""
        return self._constant(f"{self.group}.float_{value!r}", np.array(value, np.float32))

    def weight(self, value: ir.Value) -> ir.Value:
        """Take an initializer of another graph over; its bytes stay where they are."""
        assert value.name is not None
        if value.name not in self._initializers:
            self._take(value.name)
            copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
            copy.const_value = value.const_value
            self._initializers[value.name] = copy
        return self._initializers[value.name]

    def keep(self, nodes: Sequence[ir.Node]) -> None:
        """Keep these nodes alone, and the constants and weights that they read."""
        for node in set(self.nodes).difference(nodes):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.nodes = list(nodes)
        used = {value for node in self.nodes for value in node.inputs}
        self._initializers = {
            name: value for name, value in self._initializers.items() if value in used
        }

    def finish(
        self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
    ) -> ir.Model:
        """The model made of everything appended so far."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="genai-operator")

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        if name not in self._initializers:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
            value.const_value = ir.Tensor(array, name=name)
            self._take(name)
            self._initializers[name] = value
        return self._initializers[name]

    def _take(self, name: str) -> None:
        if name in self._used:
            raise ValueError(f"two tensors named {name}")
        self._used.add(name)
