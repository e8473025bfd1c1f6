"""Put encodings on the source's own tensors.

Each weight that has an entry is rounded to its grid, and each activation that has one is rounded,
limited and scaled back right behind the node that makes it, with float32 between: what AIMET's
simulation does, on the graph that it was done on. Nothing is translated by way of the core graph,
so what that graph lacks or mistakes shows in the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from genai_core.errors import BadEncodings
from genai_stages.aimet.arithmetic import fake_quantize, storage_dtype
from genai_stages.aimet.model import Encoding, EncodingSet
from genai_stages.graph.tensor_file import TensorFile
from genai_stages.ingest.output.keep_source import CORE
from genai_stages.ingest.output.source_part import constant_names, element_types, reads
from genai_stages.quantize.encoding_lookup import EncodingLookup

_FLOATS = (0, int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.DOUBLE))
"""0 = not inferred: an entry of the encodings names a float tensor."""
_CONTRIB = "com.microsoft"
_FINE = 24
"""Bits above which a grid is finer than float32."""
_REMEDY = "export model and encodings from the same simulation"


class SourceSimulation:
    """Simulates encodings in parts of one source.

    Args:
        whole: The kept graph.
        core: Folder of the core graph, which holds the weights.
        weights: The core's weights by name.
        encodings: Of the source.
        lookup: Finds the entries of the core's weights.
    """

    def __init__(
        self,
        whole: onnx.ModelProto,
        core: Path,
        weights: Mapping[str, ir.TensorProtocol],
        encodings: EncodingSet,
        lookup: EncodingLookup,
    ) -> None:
        self.core = core
        self.weights = weights
        self.encodings = encodings
        self.lookup = lookup
        self.constants = constant_names(whole)
        named = {name for name in encodings if encodings[name].dtype == "int"}
        self.types = element_types(whole, named)
        self.named = {name for name in named if self.types.get(name, 0) in _FLOATS}

    def put_on_grids(self, part: onnx.ModelProto, start: str | None, data: TensorFile) -> None:
        """Change a part of the source in place.

        Args:
            part: The part.
            start: The tensor that it starts from, which is on its grid already.
            data: Gets the rounded weights.
        """
        for tensor in part.graph.initializer:
            self.weight(tensor, data)
        self.activations(part, start)

    def weight(self, tensor: onnx.TensorProto, data: TensorFile) -> None:
        """Round a weight; one of the core's in its own form, [out, in]."""
        if tensor.name.startswith(CORE):
            name = tensor.name.removeprefix(CORE)
            held = self.weights[name]
            dims = held.shape.numpy()
            encoding = self.lookup.weight(name, inputs=dims[-1] if len(dims) else 1)
            if encoding is None:
                return
            made = data.add_rounded(name, held, encoding, channel_axis=0).const_value
            assert isinstance(made, ir.ExternalTensor)
            del tensor.external_data[:]
            fields = {"location": made.location, "offset": made.offset, "length": made.length}
            for key, value in fields.items():
                tensor.external_data.add(key=key, value=str(value))
            return
        if tensor.name not in self.named or tensor.data_type not in _FLOATS:
            return
        array = numpy_helper.to_array(tensor, str(self.core)).astype(np.float32)
        encoding = self.encodings[tensor.name]
        axis = _channel_axis(encoding, array.shape)
        rounded = fake_quantize(array, encoding, channel_axis=axis) if array.ndim else array
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))

    def activations(self, part: onnx.ModelProto, start: str | None) -> None:
        """Put what nodes make, and float inputs, on their grids."""
        graph = part.graph
        inputs = {value.name for value in graph.input} - {start or ""}
        names = (self.named - self.constants) & (
            inputs | {name for node in graph.node for name in node.output}
        )
        nodes: list[onnx.NodeProto] = []
        renamed = {name: f"{name}:grid" for name in names & inputs}
        constants: dict[str, onnx.TensorProto] = {}
        for name, target in renamed.items():
            nodes += self.grid(name, target, constants)
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name in renamed:
                    node.input[index] = renamed[name]
            behind: list[onnx.NodeProto] = []
            for index, name in enumerate(node.output):
                if name in names:
                    node.output[index] = f"{name}:float"
                    behind += self.grid(f"{name}:float", name, constants)
            nodes += [node, *behind]
        captured = {
            name for node in graph.node for name in reads(node) if name not in node.input
        } & renamed.keys()
        if captured:
            raise BadEncodings(
                "an input that a branch reads cannot be simulated",
                where=f"{self.encodings.where}: {min(captured)}",
            )
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.extend(constants.values())
        if _CONTRIB not in {one.domain for one in part.opset_import}:
            part.opset_import.append(helper.make_opsetid(_CONTRIB, 1))

    def grid(
        self, source: str, target: str, constants: dict[str, onnx.TensorProto]
    ) -> list[onnx.NodeProto]:
        """Onto the grid and back; at unusual bits by ordinary arithmetic."""
        name = target.removesuffix(":grid")
        encoding = self.encodings[name]
        if not encoding.per_tensor:
            raise BadEncodings(
                f"{encoding.scale.size} scales for an activation, which has one",
                where=f"{self.encodings.where}: {name}",
                remedy=_REMEDY,
            )
        if encoding.bits >= _FINE:
            return [helper.make_node("Identity", [source], [target])]
        low = np.float32(encoding.offset)
        if encoding.bits in (8, 16) and low == np.rint(low) and -(2**encoding.bits) < low <= 0:
            return _pair(source, target, encoding, constants)
        numbers = {
            "scale": np.float32(encoding.scale),
            "low": low,
            "high": np.float32(low + 2.0**encoding.bits - 1),
        }
        for key, value in numbers.items():
            constants[f"{name}:{key}"] = numpy_helper.from_array(
                np.asarray(value, np.float32), f"{name}:{key}"
            )
        whole = bool(low == np.rint(low))
        shift = [] if whole else [f"{name}:low"]
        steps = [("Div", [f"{name}:scale"]), *[("Sub", [one]) for one in shift], ("Round", []),
                 *[("Add", [one]) for one in shift], ("Clip", [f"{name}:low", f"{name}:high"]),
                 ("Mul", [f"{name}:scale"])]  # fmt: skip
        nodes: list[onnx.NodeProto] = []
        last = source
        for index, (kind, more) in enumerate(steps):
            output = target if index == len(steps) - 1 else f"{target}:{index}"
            nodes.append(helper.make_node(kind, [last, *more], [output]))
            last = output
        return nodes


def _pair(
    source: str, target: str, encoding: Encoding, constants: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """ONNX Runtime's own QuantizeLinear and back: 16 bits whatever the opset."""
    grid, scale, zero = f"{target}:integers", f"{target}:scale", f"{target}:zero"
    dtype = storage_dtype(encoding, signed=False)
    for name, value in (
        (scale, np.asarray(encoding.scale, np.float32)),
        (zero, np.asarray(encoding.zero_point(signed=False)).astype(dtype)),
    ):
        constants[name] = numpy_helper.from_array(value, name)
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [grid], domain=_CONTRIB),
        helper.make_node("DequantizeLinear", [grid, scale, zero], [target], domain=_CONTRIB),
    ]


def _channel_axis(encoding: Encoding, shape: tuple[int, ...]) -> int:
    """The axis of output channels of a weight that the core does not hold."""
    count = encoding.channels
    if count is None or not shape or shape[0] == count:
        return 0
    return len(shape) - 1
