"""Compute a part of a static graph in ONNX Runtime, every tensor in it.

The recognizers decide by numbers: they feed a region with random values and compare what comes out
with what a hypothesis says. Regions hold no projections, so they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from genai_core.errors import BadModel
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode, node_proto
from genai_stages.ingest.source.source_model import Array

_IR_VERSION = 10


def region_of(
    producers: Mapping[str, StaticNode], outputs: Iterable[str], stops: Callable[[str], bool]
) -> tuple[list[StaticNode], list[str]]:
    """The nodes behind some tensors, back to the tensors where `stops` says so.

    Returns:
        Nodes in no particular order, and the border: tensors that are needed and not computed.
    """
    nodes: dict[int, StaticNode] = {}
    border: dict[str, None] = {}
    queue = list(outputs)
    while queue:
        name = queue.pop()
        node = producers.get(name)
        if not name or name in border or (node is not None and id(node) in nodes):
            continue
        if node is None or stops(name):
            border[name] = None
            continue
        nodes[id(node)] = node
        queue.extend(node.inputs)
    return list(nodes.values()), list(border)


def run_region(
    graph: FoldedGraph, nodes: Iterable[StaticNode], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Run nodes on given values.

    Args:
        graph: Whose nodes they are; known tensors are taken from it.
        nodes: In execution order.
        feeds: All other tensors that they need.

    Returns:
        All tensors they compute, and the feeds.
    """
    plain: list[StaticNode] = []
    for node in nodes:
        plain.extend(node.replaced or [node])
    made = dict.fromkeys(name for node in plain for name in node.outputs if name)
    used = dict.fromkeys(name for node in plain for name in node.inputs if name)
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(graph.constants[name].array()), name)
        for name in used
        if name in graph.constants and name not in feeds
    ]
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
        if name in used
    ]
    protos = [node_proto(node) for node in plain]
    for one in protos:
        # A node that was written out lent its name to several.
        one.ClearField("name")
    proto = helper.make_graph(
        protos,
        "region",
        inputs,
        [onnx.ValueInfoProto(name=name) for name in made],
        initializers,
    )
    imports = [helper.make_opsetid("", graph.opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(proto, opset_imports=imports, ir_version=_IR_VERSION)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = list(made)
        results = session.run(names, {name: feeds[name] for name in feeds if name in used})
    except Exception as error:
        raise BadModel(
            f"this part of the graph does not run ({str(error).splitlines()[0]})",
            where=plain[-1].where(),
            remedy="export the model again with standard operators",
        ) from error
    return {**feeds, **dict(zip(names, results, strict=True))}
