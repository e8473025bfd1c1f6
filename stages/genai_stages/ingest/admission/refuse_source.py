"""Names sources that cannot be built as what they are, before anything is taken apart.

Each of these would fail somewhere in recognition, with a message about the node at which it did.
What the user has to know is that the model is quantized already, has experts, or has no head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from genai_core.errors import BadModel, UnsupportedOperator
from genai_stages.ingest.admission.check_config import text_config
from genai_stages.ingest.admission.source_inputs import SourceInput, SourceInputs, read_inputs
from genai_stages.ingest.admission.weight_axes import computed_names
from genai_stages.ingest.source.source_model import SourceModel

_QUANTIZING = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
_WEIGHTS_ALONE = {"MatMulBnb4", "MatMulFpQ4"}
"""Integer weights that are not read as the floats they stand for, as those of MatMulNBits are."""
_EXPERTS = {"MoE", "QMoE"}
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_LEARNED_POSITIONS = {"EmbedLayerNormalization"}
_SINK_INPUT = 11
"""Of GroupQueryAttention: head_sink."""
_CACHE_RANK = 4
_STEPS = 8
"""Nodes that may stand between a gathered row and the sum of embeddings."""


def refuse_source(source: SourceModel, *, head: bool = False) -> None:
    """Refuse a source that is known not to build.

    Args:
        source: The source.
        head: It may read hidden states of another model.

    Raises:
        BadModel: It has no logits, a fixed batch, caches of another layout, or is no decoder-only
            language model.
        UnsupportedOperator: It is quantized already, has experts, learned positions or attention
            sinks.
    """
    config = text_config(source.config)
    _refuse_quantized(source)
    _refuse_experts(source, config)
    inputs = read_inputs(source, head=head)
    _refuse_batch(source, inputs)
    for cache in inputs.named("past"):
        _refuse_layout(source, cache, inputs.native)
    _refuse_headless(source, config)
    _refuse_positions(source, inputs)
    _refuse_sinks(source)


def logits_name(source: SourceModel) -> str:
    """The output of logits: named so, or the only one that is no cache.

    Raises:
        BadModel: There is none.
    """
    names = [str(value.name) for value in source.model.graph.outputs]
    if "logits" in names:
        return "logits"
    plain = [
        name for name in names if not any(word in name for word in ("present", "past", "cache"))
    ]
    if len(plain) != 1 or "hidden" in plain[0].lower():
        raise no_logits(source, plain or names)
    return plain[0]


def no_logits(source: SourceModel, names: list[str]) -> BadModel:
    """The error of a graph that ends before its head."""
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return BadModel(
        f"it has no output of logits, but {shown}: the graph was exported without its head",
        where=source.path.name,
        remedy="export the model with its head (lm_head)",
    )


def _where(source: SourceModel, node: ir.Node) -> str:
    return f"{source.path.name}: node {node.name or node.outputs[0].name} ({node.op_type})"


def _refuse_quantized(source: SourceModel) -> None:
    graph = source.model.graph
    computed = computed_names(graph)
    quantized = [
        node
        for node in graph
        if node.op_type in _WEIGHTS_ALONE
        or (
            node.op_type in _QUANTIZING
            and any(value is not None and value.name in computed for value in node.inputs)
        )
    ]
    if quantized:
        what = "weights" if quantized[0].op_type in _WEIGHTS_ALONE else "activations"
        raise UnsupportedOperator(
            f"the model is quantized already: {len(quantized)} nodes like this compute with "
            f"integer {what}",
            where=_where(source, quantized[0]),
            remedy="export it in floating point, with AIMET's encodings beside it",
        )


def _refuse_experts(source: SourceModel, config: Mapping[str, Any]) -> None:
    graph = source.model.graph
    stated = next((key for key in _EXPERT_COUNTS if _count(config.get(key)) > 1), None)
    ends = {value.name for value in graph.outputs}
    for node in graph:
        chooses = node.op_type == "TopK" and not any(value.name in ends for value in node.outputs)
        if node.op_type in _EXPERTS or (stated is not None and chooses):
            count = "" if stated is None else f" (config.json: {stated} {config[stated]})"
            raise UnsupportedOperator(
                f"the model is a mixture of experts{count}: which weights a token meets depends on "
                "the token",
                where=_where(source, node),
                remedy="use a dense model; experts are not built",
            )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _refuse_batch(source: SourceModel, inputs: SourceInputs) -> None:
    for source_input in inputs.inputs:
        # The static form may count heads first in its caches.
        counted = source_input.purpose == "tokens" or (
            source_input.purpose == "past" and inputs.native is None
        )
        if not counted or not source_input.dims:
            continue
        batch = source_input.dims[0]
        if isinstance(batch, int) and batch != 1:
            raise BadModel(
                f"its batch is fixed at {batch}",
                where=f"{source.path.name}: input {source_input.name}",
                remedy="export the model with a batch of 1, or with a dynamic batch axis",
            )


def _refuse_layout(
    source: SourceModel, source_input: SourceInput, native: tuple[int, int] | None
) -> None:
    """The length of a cache stands behind its heads, third or last."""
    if len(source_input.dims) != _CACHE_RANK:
        return
    lengths: set[int | str] = set() if native is None else {native[1], native[1] - native[0]}
    length = [
        axis
        for axis, dim in enumerate(source_input.dims)
        if axis and (isinstance(dim, str) if native is None else dim in lengths)
    ]
    if length == [1]:
        raise BadModel(
            f"the cache has the layout [batch, length, heads, width] ({_shown(source_input)})",
            where=f"{source.path.name}: input {source_input.name}",
            remedy="export it as [batch, heads, length, width]",
        )


def _shown(source_input: SourceInput) -> str:
    return "[" + ", ".join(str(dim) for dim in source_input.dims) + "]"


def _refuse_headless(source: SourceModel, config: Mapping[str, Any]) -> None:
    name = logits_name(source)
    if name == "logits":
        return
    shape = next(value.shape for value in source.model.graph.outputs if value.name == name)
    last = shape[-1] if shape is not None and len(shape) else None
    width, vocabulary = _count(config.get("hidden_size")), _count(config.get("vocab_size"))
    if isinstance(last, int) and last == width != vocabulary:
        raise no_logits(source, [name])


def _refuse_positions(source: SourceModel, inputs: SourceInputs) -> None:
    """A row of a learned table for each position, added to the embedding."""
    for node in source.model.graph:
        if node.op_type in _LEARNED_POSITIONS:
            raise _learned(source, node, "")
        if node.op_type != "Add":
            continue
        first, second = (_gathered(value) for value in node.inputs)
        if first is None or second is None:
            continue
        by_tokens = [inputs.tokens in _origins(index) for _, index in (first, second)]
        if sorted(by_tokens) == [False, True]:
            table = (second if by_tokens[0] else first)[0]
            raise _learned(source, node, f" (table {table})")


def _learned(source: SourceModel, node: ir.Node, table: str) -> UnsupportedOperator:
    return UnsupportedOperator(
        f"the model has learned positions{table}, added to the embedding of its tokens",
        where=_where(source, node),
        remedy="use a model whose attention has rotary positions, or none",
    )


def _gathered(value: ir.Value | None) -> tuple[str, ir.Value] | None:
    """The table of weights and the indices that a value was gathered by."""
    for _ in range(_STEPS):
        node = None if value is None else value.producer()
        if node is None:
            return None
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Gather" and first is not None and len(node.inputs) == 2:
            table = _initializer(first)
            index = node.inputs[1]
            if table is None or index is None:
                return None
            return table, index
        if node.op_type not in ("Cast", "CastLike", "Identity", "Reshape", "Unsqueeze", "Mul"):
            return None
        value = first
    return None


def _initializer(value: ir.Value) -> str | None:
    """Name of the float matrix behind a value."""
    for _ in range(_STEPS):
        if value.is_initializer():
            tensor = value.const_value
            if tensor is None or len(tensor.shape) != 2 or not tensor.dtype.is_floating_point():
                return None
            return value.name
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "Identity") or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


def _origins(value: ir.Value) -> set[str]:
    """Graph inputs whose values, not only their shapes, are in a tensor."""
    names: set[str] = set()
    queue, seen = [value], {id(value)}
    while queue:
        source = queue.pop()
        node = source.producer()
        if node is None:
            names.add(str(source.name))
            continue
        if node.op_type in ("Shape", "Size"):
            continue
        for read in node.inputs:
            if read is not None and id(read) not in seen:
                seen.add(id(read))
                queue.append(read)
    return names


def _refuse_sinks(source: SourceModel) -> None:
    """Scores that each head holds against a number of its own."""
    graph = source.model.graph
    moving = _depends_on_values(graph)
    for node in graph:
        inputs = node.inputs
        if node.op_type == "GroupQueryAttention":
            if len(inputs) > _SINK_INPUT and inputs[_SINK_INPUT] is not None:
                raise _sinks(source, node)
        elif node.op_type in ("Softmax", "LogSoftmax") and inputs and inputs[0] is not None:
            joined = _joined_scores(inputs[0])
            if joined is not None:
                fixed = [v for v in joined.inputs if v is not None and v.name not in moving]
                if fixed and len(fixed) < len(joined.inputs):
                    raise _sinks(source, node)


def _joined_scores(value: ir.Value) -> ir.Node | None:
    """The Concat that a softmax reads, through what moves its input below zero."""
    for _ in range(_STEPS):
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return None
        if node.op_type == "Concat":
            return node
        if node.op_type not in ("Sub", "Cast", "Identity", "Add"):
            return None
        value = node.inputs[0]
    return None


def _depends_on_values(graph: ir.Graph) -> set[str]:
    """Tensors that follow from what the inputs hold; their shapes alone do not count."""
    names = {str(value.name) for value in graph.inputs} - set(graph.initializers)
    for node in graph:
        if node.op_type in ("Shape", "Size"):
            continue
        # The second input of these is a shape.
        read = node.inputs[:1] if node.op_type in ("Expand", "Reshape", "Tile") else node.inputs
        if any(value is not None and value.name in names for value in read):
            names |= {str(value.name) for value in node.outputs}
    return names


def _sinks(source: SourceModel, node: ir.Node) -> UnsupportedOperator:
    return UnsupportedOperator(
        "the model has attention sinks: scores are held against a learned number of each head",
        where=_where(source, node),
        remedy="use a model without them: attention here is a plain softmax over the keys",
    )
