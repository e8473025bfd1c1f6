"""Recognize RMSNorm and LayerNorm from the reduction outwards.

Exporters write them as six to nine elementary nodes, with casts and in several orders. Anchor is
the mean of squares; from there each step must be the only reader of the one before it, so that a
fused node hides nothing that somebody else needs. The fused node takes the last tensor's name and
keeps the nodes it stands for, in case one of them must be computed as it was.

RMSNorm:   x * rsqrt(mean(x^2) + e) [* w], or (w * x) * rsqrt(mean(x^2) + e)
LayerNorm: with x replaced by x - mean(x), and a bias
"""

from __future__ import annotations

import dataclasses

import numpy as np

from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode, axes_of
from genai_stages.ingest.folding.remove_noise import remove_dead
from genai_stages.ingest.source.source_model import Constant


@dataclasses.dataclass
class _Chain:
    source: str
    epsilon: float
    nodes: list[StaticNode]
    output: str
    weight: str | None = None
    """Where it stands before the root: of the product that the output is made of."""


def fuse_norms(graph: FoldedGraph) -> None:
    """Replace the chains in place by RMSNormalization and LayerNormalization nodes."""
    _Fusion(graph).run()


class _Fusion:
    def __init__(self, graph: FoldedGraph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self.consumers = graph.consumers()
        self.held = set(graph.outputs.values())

    def run(self) -> None:
        fused: dict[int, StaticNode] = {}
        for node in self.graph.nodes:
            if node.op_type not in ("ReduceMean", "ReduceSumSquare"):
                continue
            chain = self.chain(node)
            if chain is not None:
                made = self.made(node, chain)
                fused[id(chain.nodes[-1])] = made
        nodes = [fused.get(id(node), node) for node in self.graph.nodes]
        self.graph.nodes = nodes
        if fused:
            remove_dead(self.graph)

    def only(self, name: str, *ops: str) -> StaticNode | None:
        """The single reader of a tensor, if it is one of these operators."""
        readers = self.consumers.get(name, [])
        if len(readers) == 1 and readers[0].op_type in ops and name not in self.held:
            return readers[0]
        return None

    def number(self, name: str) -> float | None:
        constant = self.graph.constants.get(name)
        if constant is None or constant.size != 1:
            return None
        return float(constant.array().reshape(-1)[0])

    def square_of(self, name: str) -> tuple[str, StaticNode] | None:
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Pow" and self.number(node.inputs[1]) == 2.0:
            return node.inputs[0], node
        if node.op_type == "Mul" and node.inputs[0] == node.inputs[1]:
            return node.inputs[0], node
        return None

    def chain(self, mean: StaticNode) -> _Chain | None:
        if mean.op_type != "ReduceMean" or not int(mean.attributes.get("keepdims", 1)):
            return None
        square = self.square_of(mean.inputs[0])
        if square is None:
            return None
        source, squaring = square
        nodes = [squaring, mean]
        plus = self.only(mean.outputs[0], "Add")
        if plus is None:
            return None
        other = plus.inputs[1] if plus.inputs[0] == mean.outputs[0] else plus.inputs[0]
        epsilon = self.number(other)
        if epsilon is None:
            return None
        nodes.append(plus)
        scaled = self.reciprocal_root(plus, nodes, source)
        if scaled is None:
            return None
        return _Chain(source, epsilon, nodes, scaled, self.weight_before(nodes, source))

    def weight_before(self, nodes: list[StaticNode], source: str) -> str | None:
        """The weight that `source` was multiplied by before the root, if it was."""
        for name in nodes[-1].inputs:
            weighted = self.weighted(name, source)
            if weighted is not None:
                nodes.insert(-1, weighted[0])
                return weighted[1]
        return None

    def weighted(self, name: str, source: str) -> tuple[StaticNode, str] | None:
        """The product of `source` and a constant vector that a tensor is, and the vector."""
        node = self.producers.get(name)
        if node is None or node.op_type != "Mul" or source not in node.inputs:
            return None
        other = node.inputs[1] if node.inputs[0] == source else node.inputs[0]
        constant = self.graph.constants.get(other)
        if constant is None or constant.size < 2:  # a factor is no weight
            return None
        return node, other

    def reciprocal_root(self, plus: StaticNode, nodes: list[StaticNode], source: str) -> str | None:
        """Follow 1/sqrt to the product with `source`; returns that product."""
        root = self.only(plus.outputs[0], "Sqrt", "Pow")
        if root is None:
            return None
        nodes.append(root)
        inverse = root
        if root.op_type == "Pow":
            exponent = self.number(root.inputs[1])
            if exponent == 0.5:
                pass
            elif exponent != -0.5:
                return None
        if root.op_type == "Sqrt" or self.number(root.inputs[1]) == 0.5:
            step = self.only(root.outputs[0], "Reciprocal", "Div")
            if step is None:
                return None
            nodes.append(step)
            if step.op_type == "Div" and step.inputs[0] == source:
                return step.outputs[0]
            if step.op_type == "Div" and self.number(step.inputs[0]) != 1.0:
                return None
            inverse = step
        product = self.only(inverse.outputs[0], "Mul")
        if product is None:
            return None
        if source not in product.inputs and not any(
            self.weighted(name, source) for name in product.inputs
        ):
            return None
        nodes.append(product)
        return product.outputs[0]

    def made(self, mean: StaticNode, chain: _Chain) -> StaticNode:
        rank = len(self.graph.shapes[chain.source])
        constants = [self.graph.constants.get(name) for name in mean.inputs]
        axes = [axis % rank for axis in axes_of(mean, constants)]
        width = int(np.prod([self.graph.shapes[chain.source][axis] for axis in axes]))
        inputs, output, nodes = [chain.source], chain.output, list(chain.nodes)
        kind = "RMSNormalization"
        centred = self.producers.get(chain.source)
        if centred is not None and centred.op_type == "Sub":
            average = self.producers.get(centred.inputs[1])
            if (
                average is not None
                and average.op_type == "ReduceMean"
                and average.inputs[0] == centred.inputs[0]
            ):
                kind = "LayerNormalization"
                inputs = [centred.inputs[0]]
                nodes = [average, centred, *nodes]
        factor = None if chain.weight is not None else self.vector(output, "Mul", width)
        if chain.weight is not None:
            inputs.append(chain.weight)
        elif factor is None:
            name = f"{output}.ones"
            self.graph.constants[name] = Constant.of(name, np.ones(width, np.float32))
            inputs.append(name)
        else:
            inputs.append(factor[1])
            nodes.append(factor[0])
            output = factor[0].outputs[0]
        weighted = factor is not None or chain.weight is not None
        if kind == "LayerNormalization" and weighted:
            bias = self.vector(output, "Add", width)
            if bias is not None:
                inputs.append(bias[1])
                nodes.append(bias[0])
                output = bias[0].outputs[0]
        chain.nodes[:] = nodes
        return StaticNode(
            kind,
            "",
            inputs,
            [output],
            {"axis": axes[0] if len(axes) == 1 else -99, "epsilon": chain.epsilon},
            nodes[-1].name,
            replaced=nodes,
        )

    def vector(self, name: str, op_type: str, width: int) -> tuple[StaticNode, str] | None:
        """The node that applies a weight of this width to a tensor, and the weight's name."""
        node = self.only(name, op_type)
        if node is None:
            return None
        other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
        constant = self.graph.constants.get(other)
        if constant is None or constant.size != width or width == 1:
            return None
        return node, other
