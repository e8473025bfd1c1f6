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

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_core.names import Precision
from genai_stages.backends.cpu.activations import ActivationGrid
from genai_stages.backends.cpu.attention_nodes import add_attention
from genai_stages.backends.cpu.fragment import LinearWeights, StoredTensor
from genai_stages.backends.cpu.linear_nodes import LinearNodes
from genai_stages.backends.cpu.model_graph import ModelGraph
from genai_stages.graph.linear_sites import is_op, linear_site

MODEL_FILE = "model.onnx"
PRECISION_KEY = "genai.precision"


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
    graph = ModelGraph(tensors, plain, batch=batch)
    projections = LinearNodes(graph, linears, grids)
    graph.input("input_ids", TensorProto.INT64, [batch, "T"])
    graph.output("logits", facts.vocab_size)
    for value in core.graph.inputs[1:]:
        graph.input(str(value.name), TensorProto.FLOAT, [batch, "T", _width(value)])
    for node in core.graph:
        if is_op(node, "Linear"):
            projections.add(linear_site(node))
        elif is_op(node, "Attention"):
            add_attention(graph, node)
        else:
            graph.copy(node)
    for value in core.graph.outputs[1:]:
        graph.output(str(value.name), _width(value))
    for layers in hidden_states:
        _give_out(graph, core, facts, layers)
    model = graph.model()
    rope = {name: table.model_dump(mode="json") for name, table in facts.rope.items()}
    wide = any(linear.wide for linear in linears.values())
    values = {
        PRECISION_KEY: precision.value,
        "genai.exact_int8": str(int(wide)),
        "genai.rope": json.dumps(rope, sort_keys=True, separators=(",", ":")),
    }
    helper.set_model_props(model, values)
    return model


def _give_out(graph: ModelGraph, core: ir.Model, facts: ModelFacts, layers: int) -> None:
    """Give out the hidden state that so many layers leave, or that the output layer reads."""
    if layers >= len(facts.boundaries):
        raise BadModel(
            f"the head reads what layer {layers} leaves, the model has "
            f"{len(facts.boundaries) - 1} layers",
            where="config.json: eagle_aux_hidden_state_layer_ids",
            remedy="take a head that was made for this model",
        )
    name = hidden_state_name(layers)
    tensor = before_logits(core) if layers < 0 else facts.boundaries[layers]
    graph.op("Identity", [tensor], name)
    graph.output(name, facts.hidden_size)


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
