"""Where the linears of a core graph are, and which encodings their tensors have.

The core graph has tensors that the source does not (a fused projection cut into row ranges, the
context in its flat form); provenance and attention roles lead from each to the source tensor whose
encoding holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from genai_core.errors import BadEncodings
from genai_core.facts import ModelFacts, Role
from genai_stages.aimet.model import Encoding
from genai_stages.graph.core_graph import DOMAIN

_SAME_VALUES: tuple[tuple[Role, ...], ...] = (("context_flat", "context"),)
"""Roles that are reshapes of each other: an encoding of one is that of the others."""


@dataclass(frozen=True)
class LinearSite:
    """One `genai.Linear`."""

    output: str
    source: str
    weight: str
    bias: str | None
    inputs: int
    outputs: int


def is_op(node: ir.Node, op_type: str) -> bool:
    """Whether a node is one of our two operators."""
    return node.domain == DOMAIN and node.op_type == op_type


def linear_site(node: ir.Node) -> LinearSite:
    """Read a `genai.Linear`."""
    source, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert source is not None
    assert weight is not None
    assert weight.shape is not None
    outputs, inputs = (int(size) for size in weight.shape.numpy())
    return LinearSite(
        output=_name(node.outputs[0]),
        source=_name(source),
        weight=_name(weight),
        bias=None if bias is None else _name(bias),
        inputs=inputs,
        outputs=outputs,
    )


def linear_sites(model: ir.Model) -> list[LinearSite]:
    """All of a core graph, in its order."""
    return [linear_site(node) for node in model.graph if is_op(node, "Linear")]


class SourceEncodings:
    """Encodings by the core graph's names.

    Args:
        encodings: By the source's names; None where the model has none.
        facts: Provenance and roles.
    """

    def __init__(self, encodings: Mapping[str, Encoding] | None, facts: ModelFacts) -> None:
        self._encodings = encodings or {}
        self._provenance = facts.provenance
        self._twins: dict[str, list[str]] = {}
        for attention in facts.attention:
            for group in _SAME_VALUES:
                names = [attention.roles[role] for role in group if role in attention.roles]
                for name in names:
                    self._twins[name] = names

    def source(self, tensor: str) -> str:
        """The source's name of a tensor."""
        return self._provenance[tensor].source if tensor in self._provenance else tensor

    def activation(self, tensor: str) -> Encoding | None:
        """The encoding of an activation; None where there is none or it stays float."""
        source = self.source(tensor)
        for name in (source, tensor, *self._twins.get(source, ()), *self._twins.get(tensor, ())):
            encoding = self._encodings.get(name)
            if encoding is not None:
                if encoding.dtype == "int" and not encoding.per_tensor:
                    raise BadEncodings(
                        "an activation needs one scale for the whole tensor",
                        where=name,
                        remedy="quantize activations per tensor",
                    )
                return encoding if encoding.dtype == "int" else None
        return None

    def weight(self, tensor: str, *, inputs: int, outputs: int) -> Encoding | None:
        """The encoding of a weight [outputs, inputs], cut to its rows.

        Raises:
            BadEncodings: Channels or blocks do not fit the weight.
        """
        origin = self._provenance.get(tensor)
        encoding = self._encodings.get(origin.source if origin else tensor)
        if encoding is None or encoding.dtype == "float":
            return None
        encoding = encoding.blocked(inputs)
        if origin is not None and origin.rows is not None:
            encoding = encoding.rows(*origin.rows)
        if origin is not None and origin.index is not None:
            encoding = encoding.picked(origin.index)
        if encoding.channels not in (None, outputs):
            raise BadEncodings(
                f"has {encoding.channels} channels for a weight with {outputs} outputs",
                where=encoding.name,
                remedy="export model and encodings from the same simulation",
            )
        return encoding


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
