"""Nodes and weights of a source model, as they are written one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from genai_stages.testing_sources.source_style import Style

Array = npt.NDArray[np.generic]


class GraphWriter:
    """A graph in the making; subclasses write its parts."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.random = np.random.default_rng(style.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.count = 0

    def input(self, name: str, kind: int, shape: list[int | str]) -> None:
        """An input of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def output(self, name: str, shape: list[int | str]) -> None:
        """An output of the model, float32."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output; returns the output."""
        self.count += 1
        output = name or f"t{self.count}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, array: Array) -> str:
        """An array as an initializer."""
        self.count += 1
        self.weights.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def ints(self, *values: int) -> str:
        """Integers, int64."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def weight(self, name: str, shape: tuple[int, ...], *, mean: float = 0.0) -> str:
        """A random weight, stored as the style says."""
        spread = 0.2 if len(shape) == 1 else 1.5 / math.sqrt(shape[1])
        values = (mean + spread * self.random.standard_normal(shape)).astype(np.float32)
        if self.style.half and len(shape) > 1:
            self.weights.append(numpy_helper.from_array(values.astype(np.float16), name))
            return self.op("Cast", name, to=TensorProto.FLOAT)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def sizes(self) -> None:
        """The numbers of new tokens and of all, as [1] tensors."""
        shape = self.op("Shape", "input_ids")
        self.new = self.op("Slice", shape, self.ints(1), self.ints(2))
        shape = self.op("Shape", "attention_mask")
        self.total = self.op("Slice", shape, self.ints(1), self.ints(2))
        self.behind = self.op("Sub", self.total, self.new)

    def scalar(self, name: str) -> str:
        """A [1] tensor without its dimension."""
        return self.op("Squeeze", name, self.ints(0))

    def norm(self, x: str, name: str) -> str:
        """An RMS norm as the style spells it."""
        if self.style.contrib:
            scale = self.weight(f"{name}.norm", (self.style.hidden,), mean=1.0)
            return self.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=1e-5)
        square = self.op("Mul", x, x) if self.style.norm == "power" else (
            self.op("Pow", x, self.number(2.0))
        )  # fmt: skip
        mean = self.op("ReduceMean", square, axes=[-1], keepdims=1)
        plus = self.op("Add", mean, self.number(1e-5))
        match self.style.norm:
            case "power":
                scaled = self.op("Mul", x, self.op("Pow", plus, self.number(-0.5)))
            case "quotient":
                scaled = self.op("Div", x, self.op("Sqrt", plus))
            case "reciprocal":
                scaled = self.op("Mul", self.op("Reciprocal", self.op("Sqrt", plus)), x)
            case _:
                root = self.op("Sqrt", plus)
                scaled = self.op("Mul", x, self.op("Div", self.number(1.0), root))
        return self.op("Mul", scaled, self.weight(f"{name}.norm", (self.style.hidden,), mean=1.0))

    def project(self, x: str, name: str, inside: int, outside: int, *, bias: bool = False) -> str:
        """A projection as the style writes it."""
        offset = self.weight(f"{name}.bias", (outside,)) if bias else ""
        match self.style.projection:
            case "conv":
                matrix = self.weight(f"{name}.weight", (outside, inside, 1, 1))
                first = self.op("Transpose", self.op("Unsqueeze", x, self.ints(1)),
                                perm=[0, 3, 1, 2])  # fmt: skip
                made = self.op("Conv", first, matrix, *([offset] if bias else []))
                return self.op("Squeeze", self.op("Transpose", made, perm=[0, 2, 3, 1]),
                               self.ints(1))  # fmt: skip
            case "gemm":
                matrix = self.weight(f"{name}.weight", (outside, inside))
                rows = self.op("Reshape", x, self.ints(-1, inside))
                made = self.op("Gemm", rows, matrix, *([offset] if bias else []), transB=1)
                shape = self.op("Concat", self.ints(1), self.new, self.ints(outside), axis=0)
                return self.op("Reshape", made, shape)
            case "transposed":
                matrix = self.weight(f"{name}.weight", (outside, inside))
                made = self.op("MatMul", x, self.op("Transpose", matrix, perm=[1, 0]))
            case _:
                made = self.op("MatMul", x, self.weight(f"{name}.weight", (inside, outside)))
        return self.op("Add", offset, made) if bias else made

    def heads(self, x: str, count: int) -> str:
        """[B, T, H * D] as [B, H, T, D]."""
        shape = self.ints(0, -1, count, self.style.head_dim)
        return self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3])
