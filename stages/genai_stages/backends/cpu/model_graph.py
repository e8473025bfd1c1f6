"""Nodes, inputs, outputs and initializers of a container's CPU model, as they come together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from genai_stages.backends.cpu.fragment import StoredTensor

__all__ = ["MICROSOFT", "MODEL_DATA_FILE", "ModelGraph"]

MODEL_DATA_FILE = "model.data"
MICROSOFT = "com.microsoft"
_OPSET = 23
_IR_VERSION = 10
_DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}


class ModelGraph:
    """A graph in the making.

    Args:
        tensors: What lies in `model.data`.
        plain: Core-graph weight that is no Linear's -> stored tensor.
        batch: Sequences of one length side by side.
    """

    def __init__(
        self, tensors: Sequence[StoredTensor], plain: Mapping[str, str], *, batch: int
    ) -> None:
        self.batch = batch
        self.stored = {tensor.name: tensor for tensor in tensors}
        self.plain = plain
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []
        self.made: set[str] = set()

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """An input of the model; declared once, however often it is read."""
        if name not in self.inputs:
            self.inputs[name] = helper.make_tensor_value_info(name, dtype, shape)
        return name

    def output(self, name: str, width: int) -> None:
        """A tensor of all tokens as an output."""
        shape: list[int | str] = [self.batch, "T", width]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        *,
        domain: str = "",
        **attributes: float | str | Sequence[int],
    ) -> str:
        """A node with one output; returns the output."""
        node = helper.make_node(
            op_type, inputs, [output], name=f"{op_type}:{output}", domain=domain
        )
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in sorted(attributes.items())
        )
        self.nodes.append(node)
        return output

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        """A tensor that lies in the model itself."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """Integers as an initializer, int64."""
        return self.constant(
            "ints_" + "_".join(map(str, values)), np.asarray(values, dtype=np.int64)
        )

    def data(self, name: str) -> str:
        """A tensor of model.data as an initializer."""
        if name not in self.initializers:
            stored = self.stored[name]
            tensor = TensorProto(
                name=name,
                data_type=_DTYPES[stored.dtype],
                dims=stored.shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (
                ("location", MODEL_DATA_FILE),
                ("offset", str(stored.offset)),
                ("length", str(stored.length)),
            ):
                tensor.external_data.add(key=key, value=value)
            self.initializers[name] = tensor
        return name

    def named(self, value: ir.Value | None) -> str:
        """A tensor of the core graph in this one; constants are taken along."""
        if value is None:
            return ""
        name = str(value.name)
        if value.const_value is None:
            return name
        if isinstance(value.const_value, ir.ExternalTensor):
            return self.data(self.plain[name])
        return self.constant(name, value.const_value.numpy())

    def copy(self, node: ir.Node) -> None:
        """An ordinary operator, as it is; a float16 embedding is widened behind its Gather."""
        inputs = [self.named(value) for value in node.inputs]
        outputs = [str(value.name) for value in node.outputs]
        stored = self.stored.get(inputs[0]) if node.op_type == "Gather" else None
        half = stored is not None and stored.dtype == "float16"
        made = [f"{outputs[0]}.float16"] if half else outputs
        copied = helper.make_node(
            node.op_type, inputs, made, name=f"{node.op_type}:{made[0]}", domain=node.domain
        )
        copied.attribute.extend(
            ir.serde.serialize_attribute(node.attributes[key]) for key in sorted(node.attributes)
        )
        self.nodes.append(copied)
        if half:
            self.op("Cast", made, outputs[0], to=TensorProto.FLOAT)

    def model(self) -> onnx.ModelProto:
        """The whole."""
        graph = helper.make_graph(
            self.nodes,
            "cpu",
            list(self.inputs.values()),
            self.outputs,
            list(self.initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=_IR_VERSION,
            producer_name="genai-operator",
        )
