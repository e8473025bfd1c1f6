"""Drop nodes that change nothing: multiplications by one, guards against NaN, empty limits.

Exporters guard a softmax against rows without any visible key (`Where(IsNaN(p), 0, p)`), limit
scores to the float range and scale by factors that are one. Each is an identity on the numbers a
model meets, and stands in the way of the recognizers.
"""

from __future__ import annotations

import numpy as np

from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode, clip_limits

_LOWEST = -1e37
_SMALL = 1 << 16


def remove_noise(graph: FoldedGraph, *, small: int = _SMALL) -> None:
    """Remove identities in place; their outputs become other names of their inputs.

    Args:
        graph: Changed in place.
        small: Elements; larger constants are not looked at.
    """
    alias: dict[str, str] = {}
    producers = graph.producers()
    kept: list[StaticNode] = []
    for node in graph.nodes:
        node.inputs = [alias.get(name, name) for name in node.inputs]
        same = _identity_of(graph, node, producers, small)
        if same is None or graph.shapes[same] != graph.shapes[node.outputs[0]]:
            kept.append(node)
            continue
        alias[node.outputs[0]] = same
    graph.nodes = kept
    graph.outputs = {name: alias.get(held, held) for name, held in graph.outputs.items()}
    remove_dead(graph)


def remove_dead(graph: FoldedGraph) -> None:
    """Remove nodes that no output needs."""
    wanted = set(graph.outputs.values())
    kept = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    graph.nodes = kept[::-1]


def _identity_of(
    graph: FoldedGraph, node: StaticNode, producers: dict[str, StaticNode], small: int
) -> str | None:
    """The input that the node's only output always equals, or None."""
    if node.domain:
        return None
    open_inputs = [name for name in node.inputs if name and name not in graph.constants]
    match node.op_type:
        case "Where":
            guard = producers.get(node.inputs[0])
            if guard is not None and guard.op_type == "IsNaN" and len(open_inputs) == 2:
                return guard.inputs[0] if node.inputs[2] == guard.inputs[0] else None
            condition = graph.constants.get(node.inputs[0])
            if condition is not None and condition.size <= small:
                values = condition.array()
                chosen = node.inputs[1 if values.all() else 2]
                if (values.all() or not values.any()) and chosen not in graph.constants:
                    return chosen
        case "Mul":
            return _neutral(graph, node, 1.0, commutes=True, small=small)
        case "Div":
            return _neutral(graph, node, 1.0, commutes=False, small=small)
        case "Sub":
            return _neutral(graph, node, 0.0, commutes=False, small=small)
        case "Max" | "Min" if len(open_inputs) == 1:
            sign = 1 if node.op_type == "Max" else -1
            others = [graph.constants[name] for name in node.inputs if name in graph.constants]
            if all(other.size == 1 and sign * other.array().max() <= _LOWEST for other in others):
                return open_inputs[0]
        case "Clip":
            try:
                low, high = clip_limits(graph, node)
            except LookupError:
                return None
            if (low is None or low.array().max() <= _LOWEST) and (
                high is None or high.array().min() >= -_LOWEST
            ):
                return node.inputs[0]
    return None


def _neutral(
    graph: FoldedGraph, node: StaticNode, value: float, *, commutes: bool, small: int
) -> str | None:
    left, right = node.inputs
    if right in graph.constants:
        constant, other = graph.constants[right], left
    elif commutes and left in graph.constants:
        constant, other = graph.constants[left], right
    else:
        return None
    if constant.size <= small and np.all(constant.array() == value):
        return other
    return None
