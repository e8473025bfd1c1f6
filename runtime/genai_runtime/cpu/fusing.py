"""Queries, keys and values from one product instead of three.

The three linears of an attention read the same tensor, so their weights, scales and biases can lie
side by side: one product, whose columns are the same numbers as before (each column has its own
scale), and one node less to start twice. Where nothing stands between the products and attention
(no norm, no rotation outside), attention takes the joined tensor as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from genai_runtime.cpu.onnx_edits import (
    ATTENTION,
    attribute,
    constant,
    drop_unused,
    in_order,
    make,
    producers,
    readers,
    replace_all,
)

FUSED_DATA_FILE = "fused.data"

_BETWEEN = ("Reshape", "RMSNormalization", "RotaryEmbedding", "Pad", "Add")
_INLINE = 1024
"""Bytes up to which a tensor lies in the model's own file."""


@dataclass(frozen=True)
class _Trio:
    """The products of one attention: query, key, value."""

    attention: onnx.NodeProto
    products: list[onnx.NodeProto]
    biases: list[onnx.NodeProto]
    """Their Adds, where attention reads those directly; else none."""
    direct: bool
    """Attention reads the products (or their Adds) themselves."""


def fused(model: onnx.ModelProto, folder: Path, out: Path) -> onnx.ModelProto:
    """The model with fused products, wherever an attention allows it; the rest is untouched.

    Args:
        model: A container's.
        folder: Holds its data.
        out: Gets `fused.data` with the joined weights.

    Raises:
        OSError: The data cannot be read, or `out` cannot be written.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    with (out / FUSED_DATA_FILE).open("wb") as sink:
        for trio in list(_trios(graph)):
            _fuse(graph, trio, _Writer(graph, folder, sink))
    replace_all(graph.node, in_order(graph.node))
    drop_unused(graph)
    return made


def _trios(graph: onnx.GraphProto) -> Iterator[_Trio]:
    made, used = producers(graph.node), readers(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    for attention in graph.node:
        if attention.op_type != ATTENTION or not all(attention.input[:3]):
            continue
        products, biases, direct = [], [], True
        for name in attention.input[:3]:
            node = made.get(name)
            steps = 0
            while node is not None and node.op_type in _BETWEEN:
                if node.op_type == "Add":
                    if node.input[1] not in constants:
                        break
                    biases.append(node)
                steps += node.op_type != "Add"
                node = made.get(node.input[0])
            if node is None or node.op_type not in ("MatMul", "MatMulNBits"):
                break
            direct &= steps == 0
            products.append(node)
        if (
            len(products) == 3
            and _alike(products, graph, made)
            and all(used[node.output[0]] == 1 for node in products)
        ):
            whole = direct and len(biases) in (0, 3)
            yield _Trio(attention, products, biases if whole else [], whole)


def _alike(
    products: list[onnx.NodeProto], graph: onnx.GraphProto, made: dict[str, onnx.NodeProto]
) -> bool:
    """Whether products differ in their weights and their number of outputs alone."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    forms = set()
    for node in products:
        form: list[object] = [node.op_type, node.input[0], len(node.input)]
        form += [attribute(node, key, -1) for key in ("K", "bits", "block_size", "accuracy_level")]
        weights = list(node.input[1:])
        if node.op_type == "MatMul" and node.input[1] in made:
            scaled = made[node.input[1]]
            if scaled.op_type != "DequantizeLinear":
                return False
            form += ["DequantizeLinear", len(scaled.input), attribute(scaled, "axis", 1)]
            weights = list(scaled.input)
        if any(name not in constants or not constants[name].dims for name in weights):
            return False
        form += [(constants[n].data_type, len(constants[n].dims)) for n in weights]
        form.append(constants[weights[0]].dims[0] if node.op_type == "MatMul" else 0)
        forms.add(tuple(form))
    return len(forms) == 1


class _Writer:
    """Joins constants of the graph into new ones."""

    def __init__(self, graph: onnx.GraphProto, folder: Path, sink: BinaryIO) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.folder = folder
        self.sink = sink

    def read(self, name: str) -> NDArray[np.generic]:
        tensor = self.constants[name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            inline: NDArray[np.generic] = numpy_helper.to_array(tensor)
            return inline
        # Not by onnx's own reader: it refuses hard links, of which stores make use.
        mapped: NDArray[np.generic] = np.memmap(
            self.folder / place["location"],
            dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
            mode="r",
            offset=int(place.get("offset", 0)),
            shape=tuple(tensor.dims),
        )
        return mapped

    def width(self, node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> int:
        """N of a product [.., K] x [K, N]."""
        if node.op_type == "MatMulNBits":
            return attribute(node, "N", 0)
        name = node.input[1]
        return int(self.constants[made[name].input[0] if name in made else name].dims[1])

    def joined(self, names: list[str], name: str, axis: int) -> str:
        """The tensors behind one another along an axis, as an initializer of that name."""
        values = np.ascontiguousarray(np.concatenate([self.read(n) for n in names], axis=axis))
        if values.nbytes <= _INLINE:
            self.graph.initializer.append(constant(name, values))
            return name
        sink = self.sink
        offset = sink.tell()
        sink.write(values.tobytes())
        tensor = TensorProto(
            name=name,
            data_type=self.constants[names[0]].data_type,
            dims=values.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", FUSED_DATA_FILE),
            ("offset", str(offset)),
            ("length", str(values.nbytes)),
        ):
            tensor.external_data.add(key=key, value=value)
        self.graph.initializer.append(tensor)
        return name


def _fuse(graph: onnx.GraphProto, trio: _Trio, writer: _Writer) -> None:
    made = producers(graph.node)
    first = trio.products[0]
    output = f"{trio.attention.output[0]}.qkv"
    source = first.input[0]
    if first.op_type == "MatMulNBits":
        inputs = [source]
        for place in range(1, len(first.input)):
            names = [node.input[place] for node in trio.products]
            inputs.append(writer.joined(names, f"{output}.{place}", axis=0))
        product = onnx.NodeProto()
        product.CopyFrom(first)
        for held in product.attribute:
            if held.name == "N":
                held.i = sum(attribute(node, "N", 0) for node in trio.products)
        product.name = f"MatMulNBits:{output}"
        replace_all(product.input, inputs)
    elif first.input[1] in made:
        scaled = [made[node.input[1]] for node in trio.products]
        parts = [
            writer.joined([node.input[place] for node in scaled], f"{output}.{place}", axis=-1)
            for place in range(len(scaled[0].input))
        ]
        weight = f"{output}.real"
        graph.node.append(make("DequantizeLinear", parts, [weight], axis=1))
        product = make("MatMul", [source, weight], [output])
    else:
        names = [node.input[1] for node in trio.products]
        weight = writer.joined(names, f"{output}.1", axis=1)
        product = make("MatMul", [source, weight], [output])
    replace_all(product.output, [output])
    graph.node.append(product)
    if trio.direct:
        if trio.biases:
            bias = writer.joined([n.input[1] for n in trio.biases], f"{output}.bias", axis=0)
            graph.node.append(make("Add", [output, bias], [f"{output}.biased"]))
            output = f"{output}.biased"
        trio.attention.input[0] = output
        trio.attention.input[1] = trio.attention.input[2] = ""
        return
    widths = [writer.width(node, made) for node in trio.products]
    sizes = constant(f"{output}.widths", np.asarray(widths, dtype=np.int64))
    graph.initializer.append(sizes)
    outputs = [node.output[0] for node in trio.products]
    replace_all(graph.node, [n for n in graph.node if n.output[0] not in outputs])
    split = helper.make_node("Split", [output, sizes.name], outputs, name=f"Split:{output}")
    split.attribute.append(helper.make_attribute("axis", -1))
    graph.node.append(split)
