"""Multi-head attention -> single-head attention.

The Hexagon compiler tiles one head's MatMuls well and a batch of them badly: a layer of 3 B size
compiles five times faster head by head, and the vendor's own builder ships it so. Each head gets a
linear of its own over its rows of the weights, its own norm, rotation, scores and context; contexts
are concatenated before the output projection. Inputs and outputs, the cache among them, stay as
they were.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from genai_core.facts import ModelFacts
from genai_stages.static.head_regions import Regions
from genai_stages.static.split_heads import split_heads
from genai_stages.static.start_points import attention_starts
from genai_stages.static.static_graph import StaticGraph, static_name


def mha_to_sha(
    static: StaticGraph, facts: ModelFacts, *, starts: Iterable[ir.Node] = ()
) -> StaticGraph:
    """Split the heads of every attention, and from further starts.

    Args:
        static: A static graph or a part of one; left unchanged.
        facts: The model's facts.
        starts: Further MatMuls of this graph.
    """
    names = {static_name(name) for name in facts.boundaries}
    values = [value for node in static.model.graph for value in node.outputs]
    regions = Regions()
    regions.grow(
        [*attention_starts(static), *starts],
        frozenset(value for value in values if value.name in names),
    )
    return split_heads(static, regions) if regions.nodes else static
