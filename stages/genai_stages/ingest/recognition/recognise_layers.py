"""Walk a static graph and say what each tensor is in the core graph's terms.

Every tensor between the token ids and the logits becomes `Data`: channels of a canonical tensor in
some layout. Movements (reshape, transpose, slice, 1x1 convolution's channels-first form) change the
layout only, so they vanish. Projections become Linear, norms stay norms, element-wise operators
stay themselves. What this cannot express (rotary products, concatenation with the past, scores)
stays unknown, which is no error inside an attention: there `recognise_attention` is asked at the
product of probabilities and values. Unknown logits are one, and the first cause is named.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from genai_core.errors import BadModel, UnsupportedOperator
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode, axes_of, clip_limits
from genai_stages.ingest.recognition.drafts import Data, DraftNode, DraftWeight
from genai_stages.ingest.recognition.layouts import LayoutError, TensorLayout, token_major
from genai_stages.ingest.source.source_model import Constant

UNARY = {
    "Sigmoid", "Tanh", "Relu", "Erf", "Gelu", "Exp", "Sqrt", "Softplus", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Elu", "Abs", "Mish", "Softsign", "Celu", "Selu", "Reciprocal",
}  # fmt: skip
BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"}
MOVEMENTS = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Expand",
    "Gather", "Tile",
}  # fmt: skip


class Recogniser(Protocol):
    """What is asked where an attention ends."""

    def __call__(self, node: StaticNode, values: dict[str, Data]) -> Data:
        """The context of the attention whose last product is `node`."""
        ...


class _Unknown(Exception):
    """This node's output is not tokens x channels."""


@dataclasses.dataclass
class Walk:
    """The state of one walk.

    Attributes:
        graph: What is walked.
        tokens: T.
        token_input: Name of the input of token ids.
        ends: Output of an attention's last product -> its recognizer.
        values: What each tensor is.
        causes: Tensor that is unknown -> the node and the reason at its root.
    """

    graph: FoldedGraph
    tokens: int
    token_input: str
    ends: dict[str, Recogniser]
    values: dict[str, Data] = dataclasses.field(default_factory=dict)
    causes: dict[str, tuple[StaticNode, str]] = dataclasses.field(default_factory=dict)
    cuts: dict[tuple[int, bytes], DraftNode] = dataclasses.field(default_factory=dict)

    def run(self) -> None:
        """Visit all nodes."""
        for node in self.graph.nodes:
            try:
                end = self.ends.get(node.outputs[0])
                if end is not None:
                    self.values[node.outputs[0]] = end(node, self.values)
                else:
                    self._visit(node)
            except (_Unknown, LayoutError) as error:
                roots = [self.causes[name] for name in node.inputs if name in self.causes]
                cause = roots[0] if roots else (node, str(error))
                for name in node.outputs:
                    self.causes[name] = cause

    def data(self, name: str) -> Data:
        """What a tensor is, or the reason why it is nothing."""
        if name not in self.values:
            raise _Unknown("an input of it is not tokens by channels")
        return self.values[name]

    def final(self, output: str) -> Data:
        """The logits.

        Raises:
            UnsupportedOperator: They depend on a node that has no place in the core graph.
        """
        held = self.graph.outputs[output]
        if held in self.values:
            return self.values[held]
        if held in self.causes:
            raise no_form(*self.causes[held])
        raise BadModel(
            f"output {output} does not depend on the tokens",
            where=output,
            remedy="export the model again",
        )

    def settle(self, data: Data) -> Data:
        """The same tensor over a draft of its own, holding exactly its channels."""
        draft, layout = data.draft, data.layout
        if data.is_whole:
            return data
        if layout.repeats:
            raise LayoutError("channels are repeated")
        rows = layout.channels()
        made = self.cut(draft, rows, data.name)
        atoms = tuple(
            tuple(atom._replace(stride=0) if atom.kind == "C" else atom for atom in axis)
            for axis in layout.axes
        )
        stride = len(rows)
        axes = []
        for axis in atoms:
            new = []
            for atom in axis:
                if atom.kind == "C":
                    stride //= atom.size
                    new.append(atom._replace(stride=stride))
                else:
                    new.append(atom)
            axes.append(tuple(new))
        return Data(made, TensorLayout(tuple(axes)), data.name)

    def cut(
        self, draft: DraftNode, rows: np.ndarray[Any, np.dtype[np.int64]], name: str
    ) -> DraftNode:
        """A draft of some channels, one for each selection."""
        key = (id(draft), rows.tobytes())
        if key not in self.cuts:
            self.cuts[key] = _cut(draft, rows, name)
        return self.cuts[key]

    def _visit(self, node: StaticNode) -> None:
        kind = node.op_type
        if node.domain not in ("", "com.microsoft"):
            raise _Unknown(f"operator {node.domain}.{kind} is not supported")
        if kind == "Gather" and node.inputs[1] == self.token_input:
            self._embed(node)
        elif kind in MOVEMENTS:
            self._move(node)
        elif kind in UNARY:
            data = self.settle(self.data(node.inputs[0]))
            attributes = dict(node.attributes)
            self._put(node, data, DraftNode(node.outputs[0], kind, (data.draft,), data.draft.width,
                                        attributes=attributes))  # fmt: skip
        elif kind in BINARY:
            self._binary(node)
        elif kind == "Clip":
            self._clip(node)
        elif kind in ("MatMul", "Gemm", "Conv"):
            self._linear(node)
        elif kind in ("RMSNormalization", "LayerNormalization"):
            self._norm(node)
        else:
            raise _Unknown(f"operator {kind} is not supported here")

    def _put(self, node: StaticNode, like: Data, draft: DraftNode) -> None:
        draft.made_by = node.where()
        self.values[node.outputs[0]] = Data(draft, like.layout, node.outputs[0])

    def _embed(self, node: StaticNode) -> None:
        table = self.graph.constants.get(node.inputs[0])
        if table is None or len(table.shape) != 2 or int(node.attributes.get("axis", 0)):
            raise _Unknown("token ids select something else than rows of a table")
        width = table.shape[1]
        draft = DraftNode(node.outputs[0], "Embedding", (), width, weights=(DraftWeight(table),))
        draft.made_by = node.where()
        layout = token_major(self.tokens, width)
        shape = self.graph.shapes[node.outputs[0]]
        if shape != layout.shape:
            layout = layout.reshaped(shape)
        self.values[node.outputs[0]] = Data(draft, layout, node.outputs[0])

    def _ints(self, node: StaticNode, position: int) -> list[int] | None:
        if position >= len(node.inputs) or not node.inputs[position]:
            return None
        constant = self.graph.constants.get(node.inputs[position])
        if constant is None:
            raise _Unknown("its sizes depend on the tokens")
        return [int(value) for value in constant.array().reshape(-1)]

    def _move(self, node: StaticNode) -> None:
        source = self.data(node.inputs[0])
        constants = [self.graph.constants.get(name) for name in node.inputs]
        layout = source.layout
        shapes = [self.graph.shapes[name] for name in node.outputs]
        is_cut = False
        match node.op_type:
            case "Reshape" | "Flatten":
                results = [layout.reshaped(shapes[0])]
            case "Transpose":
                rank = len(layout.axes)
                perm = node.attributes.get("perm") or tuple(reversed(range(rank)))
                results = [layout.transposed(perm)]
            case "Squeeze":
                results = [layout.squeezed(axes_of(node, constants))]
            case "Unsqueeze":
                results = [layout.unsqueezed(axes_of(node, constants))]
            case "Expand" | "Tile":
                results = [layout.expanded(shapes[0])]
            case "Slice":
                results, is_cut = [self._slice(node, layout)], True
            case "Split":
                results, is_cut = self._split(node, layout, shapes), True
            case _:
                axis = int(node.attributes.get("axis", 0)) % len(layout.axes)
                index = self._ints(node, 1)
                if index is None or len(index) != 1:
                    raise _Unknown("it gathers several entries")
                (position,) = index
                position %= layout.shape[axis]
                element = layout.sliced(axis, position, position + 1)
                results = [element.reshaped(shapes[0])]
                is_cut = True
        for name, result in zip(node.outputs, results, strict=True):
            label = name if is_cut and result != layout else source.name
            self.values[name] = Data(source.draft, result, label)

    def _slice(self, node: StaticNode, layout: TensorLayout) -> TensorLayout:
        if len(node.inputs) > 1:
            starts, stops = self._ints(node, 1), self._ints(node, 2)
            axes, steps = self._ints(node, 3), self._ints(node, 4)
        else:
            starts, stops = list(node.attributes["starts"]), list(node.attributes["ends"])
            axes, steps = node.attributes.get("axes"), None
        assert starts is not None
        assert stops is not None
        axes = list(axes) if axes is not None else list(range(len(starts)))
        steps = steps if steps is not None else [1] * len(starts)
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
            layout = layout.sliced(axis % len(layout.axes), start, stop, step=step)
        return layout

    @staticmethod
    def _split(
        node: StaticNode, layout: TensorLayout, shapes: list[tuple[int, ...]]
    ) -> list[TensorLayout]:
        axis = int(node.attributes.get("axis", 0)) % len(layout.axes)
        results, start = [], 0
        for shape in shapes:
            results.append(layout.sliced(axis, start, start + shape[axis]))
            start += shape[axis]
        return results

    def _scalar_or_vector(self, name: str, like: Data) -> DraftWeight:
        constant = self.graph.constants[name]
        if constant.size == 1:
            return DraftWeight(constant, vector=constant.array().reshape(()))
        values = like.layout.vector(constant.array(), like.draft.width)
        return DraftWeight(constant, vector=np.ascontiguousarray(values, np.float32))

    def _binary(self, node: StaticNode) -> None:
        left, right = node.inputs
        known = self.graph.constants
        if left in known or right in known:
            name, other = (right, left) if right in known else (left, right)
            data = self.data(other)
            if node.op_type == "Mul" and known[name].size == 1 and not _is_stream(data):
                raise _Unknown("a part of a head is scaled")
            data = self.settle(data)
            weight = self._scalar_or_vector(name, data)
            fused = self._with_bias(node, data.draft, weight)
            draft = fused or DraftNode(
                node.outputs[0], node.op_type, (data.draft,), data.draft.width, weights=(weight,),
                constant_first=left in known,
            )  # fmt: skip
            shape = self.graph.shapes[node.outputs[0]]
            layout = data.layout
            if layout.shape != shape:
                layout = layout.reshaped(shape)
            draft.made_by = node.where()
            self.values[node.outputs[0]] = Data(draft, layout, node.outputs[0])
            return
        first, second = self.settle(self.data(left)), self.settle(self.data(right))
        if first.layout.axes != second.layout.axes:
            raise _Unknown("its operands are arranged differently")
        draft = DraftNode(
            node.outputs[0], node.op_type, (first.draft, second.draft), first.draft.width
        )
        self._put(node, first, draft)

    @staticmethod
    def _with_bias(node: StaticNode, draft: DraftNode, weight: DraftWeight) -> DraftNode | None:
        """A projection and the addition of a vector behind it are one Linear."""
        if node.op_type != "Add" or draft.op_type != "Linear" or len(draft.weights) != 1:
            return None
        if weight.vector is None or weight.vector.ndim != 1:
            return None
        return dataclasses.replace(
            draft, name=node.outputs[0], weights=(draft.weights[0], weight), source=None
        )

    def _clip(self, node: StaticNode) -> None:
        data = self.settle(self.data(node.inputs[0]))
        try:
            limits = clip_limits(self.graph, node)
        except LookupError as error:
            raise _Unknown("its limits depend on the tokens") from error
        weights = tuple(
            None if limit is None else DraftWeight(limit, vector=limit.array().reshape(()))
            for limit in limits
        )
        draft = DraftNode(node.outputs[0], "Clip", (data.draft,), data.draft.width, weights=weights)
        self._put(node, data, draft)

    def _linear(self, node: StaticNode) -> None:
        known = self.graph.constants
        position = 0 if node.op_type == "MatMul" and node.inputs[0] in known else 1
        matrix = known.get(node.inputs[position])
        if matrix is None:
            raise _Unknown("it multiplies two tensors that depend on the tokens")
        data = self.settle(self.data(node.inputs[1 - position]))
        axis, turned = self._contracted(node, matrix, position)
        sizes = [size for size in matrix.shape if size != 1]
        channel_axis = data.layout.axes[axis]
        width_in = data.draft.width
        if sum(atom.size for atom in channel_axis if atom.kind == "C") != width_in and width_in > 1:
            raise _Unknown("it contracts something else than all channels")
        pair = matrix.shape[:2] if node.op_type == "Conv" else matrix.shape[-2:]
        if len(sizes) > 2 or int(np.prod(pair)) != matrix.size:
            raise _Unknown(f"a weight of shape {list(matrix.shape)}")
        width = pair[1] if turned else pair[0]
        weights: list[DraftWeight | None] = [
            DraftWeight(matrix, turned=turned, pair=(pair[0], pair[1]))
        ]
        if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2]:
            bias = known.get(node.inputs[2])
            if bias is None or bias.size not in (1, width):
                raise _Unknown("its bias is no constant vector")
            values = np.broadcast_to(bias.array().reshape(-1), (width,)).copy()
            weights.append(DraftWeight(bias, vector=values))
        axes = list(data.layout.axes)
        axes[axis] = token_major(1, width).axes[2]
        draft = DraftNode(node.outputs[0], "Linear", (data.draft,), width, weights=tuple(weights))
        draft.made_by = node.where()
        self.values[node.outputs[0]] = Data(draft, TensorLayout(tuple(axes)), node.outputs[0])

    def _contracted(self, node: StaticNode, matrix: Constant, position: int) -> tuple[int, bool]:
        """The data's axis that a projection contracts, and whether its weight is [in, out]."""
        attributes = node.attributes
        if node.op_type == "MatMul":
            if position == 0:
                return -2, False
            return -1, True
        if node.op_type == "Gemm":
            plain = (
                float(attributes.get("alpha", 1.0)) == 1.0
                and float(attributes.get("beta", 1.0)) == 1.0
                and not int(attributes.get("transA", 0))
            )
            if not plain:
                raise _Unknown("a Gemm with factors or a transposed input")
            return -1, not int(attributes.get("transB", 0))
        ones = [*matrix.shape[2:], int(attributes.get("group", 1))]
        ones += [int(size) for size in attributes.get("strides", ())]
        zeros = [int(size) for size in attributes.get("pads", ())]
        if any(size != 1 for size in ones) or any(zeros):
            raise _Unknown("a convolution that is no projection")
        return 1, False

    def _norm(self, node: StaticNode) -> None:
        data = self.data(node.inputs[0])
        axis = int(node.attributes.get("axis", -1))
        layout = data.layout
        if axis == -99:
            raise _Unknown("a norm over several axes")
        atoms = layout.axes[axis]
        trailing = layout.shape[axis % len(layout.axes) + 1 :]
        is_fused = bool(node.replaced)
        if not is_fused and any(size != 1 for size in trailing):
            raise _Unknown("a norm over several axes")
        if not data.is_whole and (not _is_stream(data) or not _contiguous(data)):
            raise _Unknown("a norm over a part of the channels")
        covered = sum(atom.size for atom in atoms if atom.kind == "C")
        if covered != len(layout.channels()):
            raise _Unknown("a norm over a part of the channels")
        data = self.settle(data)
        weights: list[DraftWeight | None] = []
        for name in node.inputs[1:]:
            if not name:
                continue
            constant = self.graph.constants.get(name)
            if constant is None or constant.size != data.draft.width:
                raise _Unknown("its weight is no constant vector")
            weights.append(DraftWeight(constant, vector=constant.array().reshape(-1)))
        epsilon = float(node.attributes.get("epsilon", 1e-5))
        attributes: dict[str, Any] = {"axis": -1, "epsilon": epsilon}
        self._put(
            node, data,
            DraftNode(node.outputs[0], node.op_type, (data.draft,), data.draft.width,
                      weights=tuple(weights), attributes=attributes),
        )  # fmt: skip


def no_form(node: StaticNode, reason: str) -> UnsupportedOperator:
    """The error for a node that the core graph has no place for."""
    return UnsupportedOperator(
        f"this part of the graph has no form here: {reason}",
        where=node.where(),
        remedy="export a decoder-only language model without it",
    )


def _cut(draft: DraftNode, rows: np.ndarray[Any, np.dtype[np.int64]], name: str) -> DraftNode:
    """A draft that holds some channels of another; of a projection, some of its rows."""
    if len(rows) == draft.width and bool(np.all(rows == np.arange(draft.width))):
        return draft
    source = (draft.name, rows)
    if draft.op_type == "Linear":
        weights = tuple(None if weight is None else weight.cut(rows) for weight in draft.weights)
        return DraftNode(name, "Linear", draft.inputs, len(rows), weights=weights, source=source,
                     made_by=draft.made_by)  # fmt: skip
    if not np.all(np.diff(rows) == 1):
        raise LayoutError("channels are taken in another order")
    attributes = {"start": int(rows[0]), "stop": int(rows[-1]) + 1}
    return DraftNode(name, "Slice", (draft,), len(rows), attributes=attributes, source=source,
                 made_by=draft.made_by)  # fmt: skip


def _is_stream(data: Data) -> bool:
    """Whether this is no strided or partial piece of heads."""
    return data.is_whole or (not data.layout.repeats and _contiguous(data))


def _contiguous(data: Data) -> bool:
    return bool(np.all(np.diff(data.layout.channels()) == 1))
