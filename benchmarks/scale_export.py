"""The graph of a Llama as optimum exports it, with random weights of any size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scale_encodings import asymmetric, encoding


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Dimensions of the model, those of a common 0.5 B one."""

    layers: int = 24
    hidden: int = 896
    heads: int = 14
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 4864
    vocab: int = 32000
    theta: float = 10000.0


class Export:
    """One ONNX file under construction, its weights streamed to `model.data`."""

    def __init__(self, folder: Path, sizes: Sizes, *, bits: int, seed: int) -> None:
        self.sizes = sizes
        self.bits = bits
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.params: list[dict[str, Any]] = []
        self.embedding: dict[str, Any] = {}
        self.numbers = 0
        self.data: BinaryIO = (folder / "model.data").open("wb")

    def op(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, which names it."""
        self.nodes.append(
            helper.make_node(op_type, list(inputs), [output], name=output, **attributes)
        )
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """A Constant node."""
        tensor = numpy_helper.from_array(np.array(value, dtype), name)
        return self.op("Constant", [], name, value=tensor)

    def store(self, name: str, array: np.ndarray) -> str:
        """Append a weight to the file."""
        position = self.data.tell()
        self.data.write(b"\0" * (-position % 4096))
        offset = self.data.tell()
        self.data.write(np.ascontiguousarray(array, "<f4").data)
        tensor = TensorProto(
            name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        tensor.dims.extend(array.shape)
        for key, value in (
            ("location", "model.data"),
            ("offset", offset),
            ("length", array.size * 4),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        """Weights [in, out] that keep the size of their input."""
        made = self.random.standard_normal((rows, columns), dtype=np.float32)
        made *= np.float32(1 / math.sqrt(rows))
        return made

    def linear(self, source: str, module: str, columns: int, rows: int) -> str:
        """A projection with random weights and their encodings per output channel."""
        self.numbers += 1
        name = f"onnx::MatMul_{self.numbers + 1000}"
        array = self.matrix(rows, columns)
        scale = np.abs(array).max(axis=0) / (2 ** (self.bits - 1) - 1)
        self.params.append(
            encoding(name, scale.tolist(), -(2 ** (self.bits - 1)), bits=self.bits, symmetric=True)
        )
        self.store(name, array)
        output = "logits" if module == "/lm_head" else f"{module}/MatMul_output_0"
        return self.op("MatMul", [source, name], output)

    def norm(self, source: str, module: str) -> str:
        """RMSNorm in the pieces that exporters leave."""
        weight = f"{module[1:].replace('/', '.')}.weight"
        array = 1 + 0.1 * self.random.standard_normal(self.sizes.hidden, dtype=np.float32)
        self.params.append(asymmetric(weight, 0.0, float(array.max())))
        self.store(weight, array)
        two = self.constant(f"{module}/Constant_output_0", 2.0, np.float32)
        last = self.constant(f"{module}/Constant_1_output_0", [-1])
        epsilon = self.constant(f"{module}/Constant_2_output_0", 1e-5, np.float32)
        one = self.constant(f"{module}/Constant_3_output_0", 1.0, np.float32)
        power = self.op("Pow", [source, two], f"{module}/Pow_output_0")
        mean = self.op("ReduceMean", [power, last], f"{module}/ReduceMean_output_0", keepdims=1)
        root = self.op("Add", [mean, epsilon], f"{module}/Add_output_0")
        root = self.op("Sqrt", [root], f"{module}/Sqrt_output_0")
        inverse = self.op("Div", [one, root], f"{module}/Div_output_0")
        scaled = self.op("Mul", [source, inverse], f"{module}/Mul_output_0")
        return self.op("Mul", [weight, scaled], f"{module}/Mul_1_output_0")

    def dim(self, value: str, axis: int, name: str) -> str:
        """One dimension as a vector of one."""
        shape = self.op("Shape", [value], f"{name}/Shape_output_0")
        index = self.constant(f"{name}/axis", [axis])
        return self.op("Gather", [shape, index], f"{name}/Gather_output_0", axis=0)

    def scalar(self, vector: str, name: str) -> str:
        """The number in a vector of one."""
        axis = self.constant(f"{name}/Squeeze_axis", [0])
        return self.op("Squeeze", [vector, axis], f"{name}/Squeeze_output_0")

    def mask(self) -> str:
        """Boolean [1, 1, T, P + T]: not behind the query, and not masked by the caller."""
        past = self.dim("past_key_values.0.key", 2, "/model/past")
        tokens = self.dim("input_ids", 1, "/model/tokens")
        total = self.op("Add", [past, tokens], "/model/Add_output_0")
        begin, stop = self.scalar(past, "/model/begin"), self.scalar(total, "/model/stop")
        zero = self.constant("/model/Constant_output_0", 0)
        one = self.constant("/model/Constant_1_output_0", 1)
        new = self.op("Range", [begin, stop, one], "/model/Range_output_0")
        everything = self.op("Range", [zero, stop, one], "/model/Range_1_output_0")
        axes = self.constant("/model/Constant_2_output_0", [0, 1, 3])
        queries = self.op("Unsqueeze", [new, axes], "/model/Unsqueeze_output_0")
        axes = self.constant("/model/Constant_3_output_0", [0, 1, 2])
        keys = self.op("Unsqueeze", [everything, axes], "/model/Unsqueeze_1_output_0")
        causal = self.op("LessOrEqual", [keys, queries], "/model/LessOrEqual_output_0")
        given = self.op("Cast", ["attention_mask"], "/model/Cast_output_0", to=TensorProto.BOOL)
        axes = self.constant("/model/Constant_4_output_0", [1, 2])
        given = self.op("Unsqueeze", [given, axes], "/model/Unsqueeze_2_output_0")
        return self.op("And", [causal, given], "/model/And_output_0")

    def rotary(self) -> tuple[str, str]:
        """Cos and sin [1, 1, T, head_dim]."""
        sizes, name = self.sizes, "/model/rotary_emb"
        exponents = np.arange(0, sizes.head_dim, 2, dtype=np.float32) / sizes.head_dim
        inverse = (1.0 / sizes.theta**exponents).astype(np.float32)
        frequencies = numpy_helper.from_array(inverse[None, :, None], "onnx::Expand_119")
        self.initializers.append(frequencies)
        axis = self.constant(f"{name}/Constant_output_0", [1])
        position = self.op("Unsqueeze", ["position_ids", axis], f"{name}/Unsqueeze_output_0")
        position = self.op("Cast", [position], f"{name}/Cast_output_0", to=TensorProto.FLOAT)
        angle = self.op("MatMul", [frequencies.name, position], f"{name}/MatMul_output_0")
        angle = self.op("Transpose", [angle], f"{name}/Transpose_output_0", perm=[0, 2, 1])
        angle = self.op("Concat", [angle, angle], f"{name}/Concat_1_output_0", axis=-1)
        tables = []
        for kind in ("Cos", "Sin"):
            table = self.op(kind, [angle], f"{name}/{kind}_output_0")
            tables.append(self.op("Unsqueeze", [table, axis], f"{name}/{kind}_Unsqueeze_output_0"))
        return tables[0], tables[1]

    def heads(self, source: str, name: str, count: int) -> str:
        """[1, T, heads * D] -> [1, heads, T, D]."""
        shape = self.constant(f"{name}/shape", [0, -1, count, self.sizes.head_dim])
        split = self.op("Reshape", [source, shape], f"{name}/Reshape_output_0")
        return self.op("Transpose", [split], f"{name}/Transpose_output_0", perm=[0, 2, 1, 3])

    def rotated(self, value: str, name: str, *, tables: tuple[str, str], number: int) -> str:
        """X cos + rotate_half(x) sin, with the names that optimum gives query (0) and key (1)."""
        half = self.sizes.head_dim // 2
        suffix = "_1" if number else ""
        steps = [self.constant(f"{name}/rotate{number}_{at}", [at]) for at in (0, half, 2**62, 3)]
        output = f"{name}/Mul_2_output_0" if number else f"{name}/Mul_output_0"
        straight = self.op("Mul", [value, tables[0]], output)
        first = self.op("Slice", [value, steps[0], steps[1], steps[3]],
                        f"{name}/Slice_{2 * number}_output_0")  # fmt: skip
        second = self.op("Slice", [value, steps[1], steps[2], steps[3]],
                         f"{name}/Slice_{2 * number + 1}_output_0")  # fmt: skip
        turned = self.op("Neg", [second], f"{name}/Neg{suffix}_output_0")
        turned = self.op("Concat", [turned, first], f"{name}/Concat_{3 + number}_output_0", axis=-1)
        crossed = self.op("Mul", [turned, tables[1]], f"{name}/Mul_{2 * number + 1}_output_0")
        return self.op("Add", [straight, crossed], f"{name}/Add{suffix}_output_0")

    def repeated(self, value: str, name: str) -> str:
        """[1, KV, K, D] -> [1, H, K, D]."""
        sizes = self.sizes
        axis = self.constant(f"{name}/axis2", [2])
        wide = self.op("Unsqueeze", [value, axis], f"{name}/Unsqueeze_output_0")
        groups = self.constant(f"{name}/groups", [1, 1, sizes.heads // sizes.kv_heads, 1, 1])
        wide = self.op("Expand", [wide, groups], f"{name}/Expand_output_0")
        shape = self.constant(f"{name}/merged", [0, sizes.heads, -1, sizes.head_dim])
        return self.op("Reshape", [wide, shape], f"{name}/Reshape_output_0")

    def attention(self, source: str, layer: int, mask: str, *, tables: tuple[str, str]) -> str:
        """Grouped-query attention with its projections."""
        sizes, name = self.sizes, f"/model/layers.{layer}/self_attn"
        kv_width = sizes.kv_heads * sizes.head_dim
        width = sizes.heads * sizes.head_dim
        query = self.linear(source, f"{name}/q_proj", width, sizes.hidden)
        key = self.linear(source, f"{name}/k_proj", kv_width, sizes.hidden)
        value = self.linear(source, f"{name}/v_proj", kv_width, sizes.hidden)
        query = self.heads(query, f"{name}/q", sizes.heads)
        key = self.heads(key, f"{name}/k", sizes.kv_heads)
        value = self.heads(value, f"{name}/v", sizes.kv_heads)
        query = self.rotated(query, name, tables=tables, number=0)
        key = self.rotated(key, name, tables=tables, number=1)
        past = f"past_key_values.{layer}"
        key = self.op("Concat", [f"{past}.key", key], f"present.{layer}.key", axis=2)
        value = self.op("Concat", [f"{past}.value", value], f"present.{layer}.value", axis=2)
        key = self.repeated(key, f"{name}/key")
        value = self.repeated(value, f"{name}/value")
        key = self.op("Transpose", [key], f"{name}/Transpose_3_output_0", perm=[0, 1, 3, 2])
        root = sizes.head_dim**-0.25
        scale = [self.constant(f"{name}/Constant_{i}_output_0", root, np.float32) for i in (61, 62)]
        query = self.op("Mul", [query, scale[0]], f"{name}/Mul_8_output_0")
        key = self.op("Mul", [key, scale[1]], f"{name}/Mul_9_output_0")
        scores = self.op("MatMul", [query, key], f"{name}/MatMul_output_0")
        seen = self.constant(f"{name}/Constant_63_output_0", 0.0, np.float32)
        hidden = self.constant(f"{name}/Constant_64_output_0", -np.inf, np.float32)
        added = self.op("Where", [mask, seen, hidden], f"{name}/Where_2_output_0")
        masked = self.op("Add", [scores, added], f"{name}/Add_2_output_0")
        probs = self.op("Softmax", [masked], f"{name}/Softmax_output_0", axis=-1)
        context = self.op("MatMul", [probs, value], f"{name}/MatMul_1_output_0")
        context = self.op("Transpose", [context], f"{name}/Transpose_4_output_0", perm=[0, 2, 1, 3])
        shape = self.constant(f"{name}/flat", [0, -1, width])
        context = self.op("Reshape", [context, shape], f"{name}/Reshape_7_output_0")
        return self.linear(context, f"{name}/o_proj", sizes.hidden, width)

    def mlp(self, source: str, layer: int) -> str:
        """Gated MLP with SiLU."""
        sizes, name = self.sizes, f"/model/layers.{layer}/mlp"
        gate = self.linear(source, f"{name}/gate_proj", sizes.intermediate, sizes.hidden)
        sigmoid = self.op("Sigmoid", [gate], f"{name}/act_fn/Sigmoid_output_0")
        active = self.op("Mul", [gate, sigmoid], f"{name}/act_fn/Mul_output_0")
        up = self.linear(source, f"{name}/up_proj", sizes.intermediate, sizes.hidden)
        product = self.op("Mul", [active, up], f"{name}/mlp_output_0")
        return self.linear(product, f"{name}/down_proj", sizes.hidden, sizes.intermediate)

    def model(self) -> onnx.ModelProto:
        """The whole graph; every weight is on disk when it returns."""
        sizes = self.sizes
        table = self.random.standard_normal((sizes.vocab, sizes.hidden), dtype=np.float32)
        table *= np.float32(0.5)
        self.embedding = asymmetric("model.embed_tokens.weight", table.min(), table.max())
        self.store("model.embed_tokens.weight", table)
        del table
        stream = self.op("Gather", ["model.embed_tokens.weight", "input_ids"],
                         "/model/embed_tokens/Gather_output_0")  # fmt: skip
        mask, tables = self.mask(), self.rotary()
        for layer in range(sizes.layers):
            name = f"/model/layers.{layer}"
            normed = self.norm(stream, f"{name}/input_layernorm")
            out = self.attention(normed, layer, mask, tables=tables)
            stream = self.op("Add", [stream, out], f"{name}/Add_output_0")
            normed = self.norm(stream, f"{name}/post_attention_layernorm")
            stream = self.op("Add", [stream, self.mlp(normed, layer)], f"{name}/Add_1_output_0")
        self.linear(self.norm(stream, "/model/norm"), "/lm_head", sizes.vocab, sizes.hidden)
        self.data.close()
        batch, tokens, past = "batch_size", "sequence_length", "past_sequence_length"
        total = f"{past} + {tokens}"
        inputs = [("input_ids", (batch, tokens)), ("attention_mask", (batch, total)),
                  ("position_ids", (batch, tokens))]  # fmt: skip
        values = [helper.make_tensor_value_info(n, TensorProto.INT64, s) for n, s in inputs]
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, tokens, sizes.vocab))
        ]
        for layer in range(sizes.layers):
            for kind in ("key", "value"):
                for prefix, length, where in (("past_key_values", past, values),
                                              ("present", total, outputs)):  # fmt: skip
                    shape = (batch, sizes.kv_heads, length, sizes.head_dim)
                    name = f"{prefix}.{layer}.{kind}"
                    where.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        graph = helper.make_graph(self.nodes, "main_graph", values, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
