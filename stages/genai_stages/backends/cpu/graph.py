"""Core graph -> one dynamic-T model for ONNX Runtime's CPU provider.

One graph serves prefill, decoding and verification from one copy of the weights. Attention is
GroupQueryAttention on key/value buffers that the runtime owns; linears are integer (weights static,
activations static uint8 or, for int4, quantized by the kernel), everything else float.

    inputs   input_ids int64 [1, T]; seqlens_k int32 [1] = tokens after this pass - 1;
             total_sequence_length int32 [1] = tokens after this pass;
             cos_cache, sin_cache float32 [S, rotary_dim / 2] (`cos_cache_<name>` for a further
             table): inputs, so that the model serves any context length;
             past_key_values.{l}.key / .value float32 [1, KV, S, D'] with S slots
    outputs  logits float32 [1, T, V]; present.{l}.key / .value, the same buffers
An EAGLE head has further inputs and outputs float32 [1, T, width], its core graph's. A model whose
hidden states one reads gives them out as hidden_states.{n}: n layers on, or `last`, what the output
layer reads.
D' is head_dim, or the next multiple of 8, which is all that the kernel takes: zeros behind a head
change neither scores nor context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_core.names import Precision
from genai_stages.backends.cpu.activations import ActivationGrid
from genai_stages.backends.cpu.fragment import LinearWeights, StoredTensor
from genai_stages.graph.expand_attention import AttentionSpec
from genai_stages.graph.linear_sites import LinearSite, is_op, linear_site

MODEL_FILE = "model.onnx"
MODEL_DATA_FILE = "model.data"
PRECISION_KEY = "genai.precision"
_MICROSOFT = "com.microsoft"
_OPSET = 23
_IR_VERSION = 10
_HEAD_MULTIPLE = 8
_ROTARY_HEAD_MULTIPLE = 16
_ROTARY_HALF_MULTIPLE = 8
_ACCURACY_INT8 = 4
"""MatMulNBits: activations as int8 in blocks; the other levels are 3.5 to 44 times slower."""

_DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}


def build_model(
    core: ir.Model,
    facts: ModelFacts,
    *,
    precision: Precision,
    tensors: Sequence[StoredTensor],
    linears: Mapping[str, LinearWeights],
    plain: Mapping[str, str],
    grids: Mapping[str, ActivationGrid],
    batch: int = 1,
    hidden_states: Sequence[int] = (),
) -> onnx.ModelProto:
    """Build the model that refers to `model.data`.

    Args:
        core: The core graph.
        facts: Its facts.
        precision: Recorded in the model's metadata.
        tensors: What lies in `model.data`, offsets in that file.
        linears: Core-graph weight -> its stored form.
        plain: Core-graph weight that is no Linear's -> stored tensor.
        grids: Input tensor of an int8 linear -> its grid.
        batch: Sequences of one length side by side; seqlens_k then has as many entries.
        hidden_states: Given out: layers passed, or -1 for what the output layer reads.

    Raises:
        BadModel: There are not so many layers, or no linear makes the logits.
    """
    return _Builder(
        facts,
        precision,
        tensors=tensors,
        linears=linears,
        plain=plain,
        grids=grids,
        batch=batch,
    ).run(core, hidden_states)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with bytes that follow from its content."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def precision_of(path: Path) -> Precision | None:
    """The precision that a model of ours states; None for any other ONNX file."""
    model = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - no weights inside
    for prop in model.metadata_props:
        if prop.key == PRECISION_KEY:
            return Precision(prop.value)
    return None


def hidden_state_name(layers: int) -> str:
    """The output of a hidden state; see `CompileCpuConfig.hidden_states`."""
    return f"hidden_states.{'last' if layers < 0 else layers}"


def before_logits(core: ir.Model) -> str:
    """The tensor that the output layer reads.

    Raises:
        BadModel: No linear makes the logits.
    """
    value: ir.Value | None = core.graph.outputs[0]
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0]
        if is_op(node, "Linear"):
            return str(node.inputs[0].name)  # type: ignore[union-attr]
    raise BadModel("no linear makes its logits", where="model.onnx")


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    return int(value.shape[-1])  # type: ignore[arg-type]


def padded_head(head_dim: int) -> int:
    """Width of a head in the cache."""
    return -(-head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE


def rotates_inside(spec: AttentionSpec) -> bool:
    """Whether GroupQueryAttention's own rotary embedding can express this one."""
    return (
        bool(spec.rope)
        and spec.head_dim % _ROTARY_HEAD_MULTIPLE == 0
        and spec.rotary_dim % (2 * _ROTARY_HALF_MULTIPLE) == 0
    )


def table_inputs(rope: str) -> tuple[str, str]:
    """Names of the graph inputs that carry a rotary table."""
    suffix = "" if rope == "default" else f"_{rope}"
    return f"cos_cache{suffix}", f"sin_cache{suffix}"


class _Builder:
    def __init__(
        self,
        facts: ModelFacts,
        precision: Precision,
        *,
        tensors: Sequence[StoredTensor],
        linears: Mapping[str, LinearWeights],
        plain: Mapping[str, str],
        grids: Mapping[str, ActivationGrid],
        batch: int,
    ) -> None:
        self.batch = batch
        self.facts = facts
        self.precision = precision
        self.stored = {tensor.name: tensor for tensor in tensors}
        self.linears = linears
        self.plain = plain
        self.grids = grids
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []
        self.quantized: dict[str, str] = {}
        self.made: set[str] = set()

    def run(self, core: ir.Model, hidden_states: Sequence[int]) -> onnx.ModelProto:
        self.input("input_ids", TensorProto.INT64, [self.batch, "T"])
        self.output("logits", self.facts.vocab_size)
        for value in core.graph.inputs[1:]:
            self.input(str(value.name), TensorProto.FLOAT, [self.batch, "T", _width(value)])
        for node in core.graph:
            if is_op(node, "Linear"):
                self.linear(linear_site(node))
            elif is_op(node, "Attention"):
                self.attention(node)
            else:
                self.copy(node)
        for value in core.graph.outputs[1:]:
            self.output(str(value.name), _width(value))
        for layers in hidden_states:
            self.hidden_state(core, layers)
        graph = helper.make_graph(
            self.nodes,
            "cpu",
            list(self.inputs.values()),
            self.outputs,
            list(self.initializers.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)],
            ir_version=_IR_VERSION,
            producer_name="genai-operator",
        )
        rope = {name: table.model_dump(mode="json") for name, table in self.facts.rope.items()}
        wide = any(linear.wide for linear in self.linears.values())
        values = {
            PRECISION_KEY: self.precision.value,
            "genai.exact_int8": str(int(wide)),
            "genai.rope": json.dumps(rope, sort_keys=True, separators=(",", ":")),
        }
        helper.set_model_props(model, values)
        return model

    def output(self, name: str, width: int) -> None:
        """A tensor of all tokens as an output."""
        shape: list[int | str] = [self.batch, "T", width]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def hidden_state(self, core: ir.Model, layers: int) -> None:
        """Give out what so many layers leave, or what the output layer reads."""
        if layers >= len(self.facts.boundaries):
            raise BadModel(
                f"the head reads what layer {layers} leaves, the model has "
                f"{len(self.facts.boundaries) - 1} layers",
                where="config.json: eagle_aux_hidden_state_layer_ids",
                remedy="take a head that was made for this model",
            )
        name = hidden_state_name(layers)
        tensor = before_logits(core) if layers < 0 else self.facts.boundaries[layers]
        self.op("Identity", [tensor], name)
        self.output(name, self.facts.hidden_size)

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        if name not in self.inputs:
            self.inputs[name] = helper.make_tensor_value_info(name, dtype, shape)
        return name

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        *,
        domain: str = "",
        **attributes: float | str | Sequence[int],
    ) -> str:
        node = helper.make_node(
            op_type, inputs, [output], name=f"{op_type}:{output}", domain=domain
        )
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in sorted(attributes.items())
        )
        self.nodes.append(node)
        return output

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
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

    def linear(self, site: LinearSite) -> None:
        form = self.linears[site.weight]
        product = f"{site.output}.product" if site.bias else site.output
        if form.form == "int8":
            self.int8(site, form, product)
        elif form.form == "int4":
            self.int4(site, form, product)
        else:
            self.op("MatMul", [site.source, self.data(form.weight)], product)
        if site.bias:
            self.op("Add", [product, self.data(self.plain[site.bias])], site.output)

    def int8(self, site: LinearSite, form: LinearWeights, output: str) -> None:
        weight = f"{form.weight}.real"
        if weight not in self.made:
            self.made.add(weight)
            assert form.scale is not None
            parts = [self.data(form.weight), self.data(form.scale)]
            if form.zero_point is not None:
                parts.append(self.data(form.zero_point))
            self.op("DequantizeLinear", parts, weight, axis=1)
        self.op("MatMul", [self.on_grid(site.source), weight], output)

    def on_grid(self, tensor: str) -> str:
        """The tensor through its uint8 grid; shared by all linears that read it."""
        if tensor not in self.quantized:
            grid = self.grids[tensor]
            parameters = [
                self.constant(f"{tensor}.scale", np.array(grid.scale, dtype=np.float32)),
                self.constant(f"{tensor}.zero_point", np.array(grid.zero_point, dtype=np.uint8)),
            ]
            integers = self.op("QuantizeLinear", [tensor, *parameters], f"{tensor}.uint8")
            self.quantized[tensor] = self.op(
                "DequantizeLinear", [integers, *parameters], f"{tensor}.real"
            )
        return self.quantized[tensor]

    def int4(self, site: LinearSite, form: LinearWeights, output: str) -> None:
        assert form.scale is not None
        assert form.block_size is not None
        parts = [site.source, self.data(form.weight), self.data(form.scale)]
        if form.zero_point is not None:
            parts.append(self.data(form.zero_point))
        self.op(
            "MatMulNBits",
            parts,
            output,
            domain=_MICROSOFT,
            K=form.inputs,
            N=form.outputs,
            bits=4,
            block_size=form.block_size,
            accuracy_level=_ACCURACY_INT8,
        )

    def attention(self, node: ir.Node) -> None:
        spec = AttentionSpec.of(node)
        given = [self.named(value) for value in node.inputs] + ["", ""]
        query, key, value, query_norm, key_norm = given[:5]
        name = str(node.outputs[0].name)
        query = self.head(query, spec, spec.num_heads, norm=query_norm)
        key = self.head(key, spec, spec.kv_heads, norm=key_norm)
        value = self.padded(value, spec, spec.kv_heads)
        width = padded_head(spec.head_dim)
        inputs, presents = [query, key, value], []
        for kind in ("key", "value"):
            shape: list[int | str] = [self.batch, spec.kv_heads, "S", width]
            inputs.append(
                self.input(f"past_key_values.{spec.layer}.{kind}", TensorProto.FLOAT, shape)
            )
            presents.append(f"present.{spec.layer}.{kind}")
            self.outputs.append(
                helper.make_tensor_value_info(presents[-1], TensorProto.FLOAT, shape)
            )
        inputs += [
            self.input("seqlens_k", TensorProto.INT32, [self.batch]),
            self.input("total_sequence_length", TensorProto.INT32, [1]),
        ]
        if rotates_inside(spec):
            inputs += self.tables(spec)
        context = name if width == spec.head_dim else f"{name}.padded"
        attributes: dict[str, int | float] = {
            "num_heads": spec.num_heads,
            "kv_num_heads": spec.kv_heads,
            "scale": float(spec.scale),
            "do_rotary": int(rotates_inside(spec)),
            "rotary_interleaved": int(spec.interleaved),
            "softcap": float(spec.softcap),
        }
        if spec.window:
            attributes["local_window_size"] = spec.window
        made = helper.make_node(
            "GroupQueryAttention",
            inputs,
            [context, *presents],
            name=f"GroupQueryAttention:{name}",
            domain=_MICROSOFT,
        )
        made.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
        self.nodes.append(made)
        if context != name:
            shaped = self.split_heads(context, spec.num_heads, width)
            ends = [self.ints(0), self.ints(spec.head_dim), self.ints(3)]
            cut = self.op("Slice", [shaped, *ends], f"{name}.cut")
            flat = self.ints(0, 0, spec.num_heads * spec.head_dim)
            self.op("Reshape", [cut, flat], name)

    def tables(self, spec: AttentionSpec) -> list[str]:
        half = spec.rotary_dim // 2
        return [
            self.input(name, TensorProto.FLOAT, ["S", half]) for name in table_inputs(spec.rope)
        ]

    def split_heads(self, tensor: str, heads: int, width: int) -> str:
        return self.op("Reshape", [tensor, self.ints(0, 0, heads, width)], f"{tensor}.heads")

    def head(self, tensor: str, spec: AttentionSpec, heads: int, *, norm: str) -> str:
        """Query or key on its way to the kernel: normed, rotated where it can't, padded."""
        if norm:
            shaped = self.split_heads(tensor, heads, spec.head_dim)
            normed = self.op(
                "RMSNormalization",
                [shaped, norm],
                f"{tensor}.normed",
                axis=-1,
                epsilon=float(spec.qk_norm_epsilon),
            )
            flat = self.ints(0, 0, heads * spec.head_dim)
            tensor = self.op("Reshape", [normed, flat], f"{tensor}.normed.flat")
        if spec.rope and not rotates_inside(spec):
            tensor = self.op(
                "RotaryEmbedding",
                [tensor, *self.tables(spec), self.positions()],
                f"{tensor}.rotated",
                num_heads=heads,
                interleaved=int(spec.interleaved),
                rotary_embedding_dim=0 if spec.rotary_dim == spec.head_dim else spec.rotary_dim,
            )
        return self.padded(tensor, spec, heads)

    def padded(self, tensor: str, spec: AttentionSpec, heads: int) -> str:
        width = padded_head(spec.head_dim)
        if width == spec.head_dim:
            return tensor
        shaped = self.split_heads(tensor, heads, spec.head_dim)
        zeros = self.ints(0, 0, 0, 0, 0, 0, 0, width - spec.head_dim)
        wide = self.op("Pad", [shaped, zeros], f"{tensor}.wide")
        return self.op("Reshape", [wide, self.ints(0, 0, heads * width)], f"{tensor}.padded")

    def positions(self) -> str:
        """Positions of the new tokens, int64 [batch, T]."""
        name = "positions"
        if name not in self.made:
            self.made.add(name)
            total = self.input("total_sequence_length", TensorProto.INT32, [1])
            wide = self.op("Cast", [total], "positions.total", to=TensorProto.INT64)
            tokens = self.op("Shape", ["input_ids"], "positions.tokens", start=1, end=2)
            past = self.op("Sub", [wide, tokens], "positions.past")
            scalars = [self.op("Squeeze", [value], f"{value}.scalar") for value in (past, wide)]
            step = self.constant("positions.step", np.array(1, dtype=np.int64))
            row = self.op("Range", [*scalars, step], "positions.row")
            if self.batch == 1:
                self.op("Unsqueeze", [row, self.ints(0)], name)
            else:
                shape = self.op("Shape", ["input_ids"], "positions.shape")
                self.op("Expand", [row, shape], name)
        return name
