"""A container's model, rewritten to run several slots in one pass of packed rows.

All tokens of a pass lie behind one another, [1, N], the rows in any order. Linears and norms see
them together. Attention is unrolled: a Split by the rows' lengths, one GroupQueryAttention for each
slot on that slot's own buffers, a Concat. Nothing is padded, and no row sees another.

    inputs   input_ids int64 [1, N]; `packed.` stands before the names of the further ones:
             positions int64 [1, N], where rotation is a node of its own
             wide int64 [M]: which tokens attention is given, row after row. A lone token stands
               twice (see below), so M >= N
             kept int64 [N]: which of those M are the N tokens
             lengths int64 [R]: how many of the M are each row's
             wanted int64 [W]: which of the N yield logits
             seqlens_k.{r}, total.{r} int32 [1]: tokens of row r after the pass, less 1 and as is
             positions.{r} int64 [1, T], bias.{r} float32 [1, 1, T, tokens after the pass]: with
               `trees` only, both as GroupQueryAttention takes them
             prefix.{l}.query, .key, .value float32 [1, P, width], or .joined where attention takes
               all in one tensor: with `prefix`, what stands behind the N tokens when `wide` gathers
               them; trained keys and values that no linear makes
             past_key_values.{l}.key.{r} / .value.{r}, rotary tables: as the container's model
               has them
             image_rows int64 [K, 2]: 0 and which of the N, image_values float32 [K, H]: with
               `pictures`, what stands there instead of the table's rows
             further float inputs [1, N, width], as the container's model has them
    outputs  logits float32 [1, W, V]; further ones of the container's model [1, N, width];
             packed.hidden float32 [1, W, H], what the output layer
             reads; present.{l}.key.{r} / .value.{r}: the same buffers as past

Why a lone token stands twice: MLAS multiplies one row by a matrix that is no constant (scores, and
their product with the values) in another order than two rows and more. The sums differ in their
last bits, and 8-bit activations turn that into whole steps some tokens later. From two rows on the
results are the same for any number. So a slot's numbers never depend on how its tokens were cut
into passes. The copy's output is dropped; its place in the cache is written over by the next pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from genai_core.errors import BadModel
from genai_runtime.cpu.onnx_edits import (
    ATTENTION,
    attribute,
    drop_unused,
    in_order,
    make,
    producers,
    readers,
    replace_all,
)

IMAGE_ROWS, IMAGE_VALUES = "packed.image_rows", "packed.image_values"
_PRODUCTS = ("MatMul", "MatMulNBits")
_QKV = range(3)
_KINDS = ("query", "key", "value")
_PAST_KEY, _PAST_VALUE, _SEQLENS, _TOTAL = 3, 4, 5, 6
_COS, _SIN, _POSITIONS, _BIAS = 7, 8, 9, 10


def packed(
    model: onnx.ModelProto,
    rows: int,
    *,
    trees: bool = False,
    prefix: bool = False,
    pictures: bool = False,
) -> onnx.ModelProto:
    """The model of `rows` slots; weights stay where they are.

    Args:
        model: A container's, as `stages/genai_stages/backends/cpu/cpu_model.py` says.
        rows: Slots of a pass.
        trees: With inputs for positions and masks of each row.
        prefix: With inputs for a trained prefix; with trees alone.
        pictures: With inputs for embeddings in tokens' places.

    Raises:
        BadModel: It has no attention, its logits come from no linear, or, with pictures, it looks
            tokens up in no table.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    _want_places(graph)
    _give_positions(graph)
    size = _take_embeddings(graph) if pictures else 0
    if not any(node.op_type == ATTENTION for node in graph.node):
        raise BadModel("has no GroupQueryAttention", where="model.onnx")
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != ATTENTION:
            nodes.append(node)
            continue
        nodes += _unrolled(node, rows, trees=trees, prefix=prefix)
    replace_all(graph.node, in_order(nodes))
    _declare(graph, rows, trees=trees, embedding_size=size)
    drop_unused(graph)
    used = readers(graph.node)
    replace_all(graph.input, [value for value in graph.input if used[value.name]])
    return made


def narrowed(model: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """A packed model, also one that ONNX Runtime has optimized, with fewer rows of the same slots.

    Every weight stays the tensor that it is, so models of several sizes share one data file.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for node in graph.node:
        if node.op_type == "Split" and "packed.lengths" in node.input:
            del node.output[rows:]
            for held in node.attribute:
                if held.name == "num_outputs":
                    held.i = rows
        elif node.op_type == "Concat" and node.name.startswith("Concat:") and _joins_rows(node):
            del node.input[rows:]
    gone = {f".{row}" for row in range(rows, _rows_of(graph))}
    replace_all(graph.output, [v for v in graph.output if not _of_row(v.name, gone)])
    drop_unused(graph)
    used = readers(graph.node)
    replace_all(graph.input, [v for v in graph.input if used[v.name]])
    for value in graph.input:
        if value.name == "packed.lengths":
            value.type.tensor_type.shape.dim[0].dim_value = rows
    return made


def without_trees(model: onnx.ModelProto) -> onnx.ModelProto:
    """A packed model with trees as the model of the same rows that takes chains alone."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    plain = {n.output[0]: n.input[0] for n in graph.node if _adds_prefix(n)}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in plain:
                node.input[place] = plain[name]
        if node.op_type == ATTENTION:
            inputs = list(node.input)[:_POSITIONS]
            while not inputs[-1]:
                inputs.pop()
            replace_all(node.input, inputs)
    drop_unused(graph)
    used = readers(graph.node)
    replace_all(graph.input, [value for value in graph.input if used[value.name]])
    return made


def prefix_input(layer: str, kind: str) -> str:
    """Name of a trained prefix for an attention's query, key, value or all of them, joined."""
    return f"packed.prefix.{layer}.{kind}"


def cache_inputs(layer_tensor: str, row: int) -> tuple[str, str]:
    """Names of past and present of a cache tensor such as `0.key`, in a packed model."""
    return f"past_key_values.{layer_tensor}.{row}", f"present.{layer_tensor}.{row}"


def _rows_of(graph: onnx.GraphProto) -> int:
    return sum(value.name.startswith("packed.total.") for value in graph.input)


def _of_row(name: str, endings: set[str]) -> bool:
    return name.startswith("present.") and any(name.endswith(end) for end in endings)


def _adds_prefix(node: onnx.NodeProto) -> bool:
    return node.op_type == "Concat" and node.input[-1].startswith("packed.prefix.")


def _joins_rows(node: onnx.NodeProto) -> bool:
    return all(name.endswith(f".row{row}") for row, name in enumerate(node.input))


def _want_places(graph: onnx.GraphProto) -> None:
    """Gather the wanted places before the output layer, and give out what it reads."""
    made = producers(graph.node)
    name = graph.output[0].name
    while name in made and made[name].op_type not in _PRODUCTS:
        name = made[name].input[0]
    if name not in made:
        raise BadModel("its logits come from no linear", where="model.onnx")
    product = made[name]
    source, chain = product.input[0], list[onnx.NodeProto]()
    while source in made and made[source].op_type in ("QuantizeLinear", "DequantizeLinear"):
        chain.insert(0, made[source])
        source = made[source].input[0]
    graph.node.append(make("Gather", [source, "packed.wanted"], ["packed.hidden"], axis=1))
    tensor = "packed.hidden"
    for node in chain:  # a grid may be shared with other linears, so it is applied anew
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.output[0] = tensor, f"{node.output[0]}.wanted"
        copy.name = f"{node.op_type}:{copy.output[0]}"
        graph.node.append(copy)
        tensor = copy.output[0]
    product.input[0] = tensor
    logits = graph.output[0]
    logits.type.tensor_type.shape.dim[1].dim_param = "W"
    size = _inner_size(product, graph)
    graph.output.append(
        helper.make_tensor_value_info("packed.hidden", TensorProto.FLOAT, [1, "W", size])
    )


def _inner_size(product: onnx.NodeProto, graph: onnx.GraphProto) -> int:
    """K of a product [.., K] x [K, N]."""
    if product.op_type == "MatMulNBits":
        return attribute(product, "K", 0)
    made, name = producers(graph.node), product.input[1]
    while name in made:
        name = made[name].input[0]
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    if name not in shapes:
        raise BadModel("its output layer has no constant weight", where="model.onnx")
    return int(shapes[name][0])


def _give_positions(graph: onnx.GraphProto) -> None:
    """Rotation outside attention takes its positions from an input."""
    for node in graph.node:
        if node.op_type == "RotaryEmbedding":
            node.input[3] = "packed.positions"


def _take_embeddings(graph: onnx.GraphProto) -> int:
    """Embeddings from an input instead of some of the table's rows; their width."""
    sizes = {tensor.name: int(tensor.dims[-1]) for tensor in graph.initializer if tensor.dims}
    for node in graph.node:
        if node.op_type != "Gather" or node.input[1] != "input_ids" or node.input[0] not in sizes:
            continue
        last = node
        behind = [other for other in graph.node if node.output[0] in other.input]
        if len(behind) == 1 and behind[0].op_type == "Cast":  # widens a float16 table
            (last,) = behind
        read = last.output[0]
        last.output[0] = f"{read}.text"
        graph.node.append(make("ScatterND", [last.output[0], IMAGE_ROWS, IMAGE_VALUES], [read]))
        return sizes[node.input[0]]
    raise BadModel("looks its tokens up in no table", where="model.onnx")


def _unrolled(
    node: onnx.NodeProto, rows: int, *, trees: bool, prefix: bool
) -> Iterator[onnx.NodeProto]:
    """One attention as one for each row."""
    context = node.output[0]
    layer = node.output[1].removeprefix("present.").removesuffix(".key")
    parts: list[list[str]] = [[""] * len(_QKV) for _ in range(rows)]
    for place in _QKV:
        tensor = node.input[place]
        if not tensor:  # query, key and value in one tensor
            continue
        if prefix:
            longer = f"{context}.prefixed{place}"
            kind = _KINDS[place] if node.input[1] else "joined"
            yield make("Concat", [tensor, prefix_input(layer, kind)], [longer], axis=1)
            tensor = longer
        wide = f"{context}.wide{place}"
        yield make("Gather", [tensor, "packed.wide"], [wide], axis=1)
        pieces = [f"{wide}.row{row}" for row in range(rows)]
        yield make("Split", [wide, "packed.lengths"], pieces, axis=1)
        for row, piece in enumerate(pieces):
            parts[row][place] = piece
    for row in range(rows):
        inputs = list(parts[row])
        inputs += [cache_inputs(f"{layer}.{kind}", row)[0] for kind in ("key", "value")]
        inputs += [f"packed.seqlens_k.{row}", f"packed.total.{row}", *node.input[_COS:]]
        if trees:
            inputs += [""] * (_POSITIONS - len(inputs))
            rotates = bool(inputs[_COS])
            inputs += [f"packed.positions.{row}" if rotates else "", f"packed.bias.{row}"]
        outputs = [f"{context}.row{row}"]
        outputs += [cache_inputs(f"{layer}.{kind}", row)[1] for kind in ("key", "value")]
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.name = f"{ATTENTION}:{outputs[0]}"
        replace_all(made.input, inputs)
        replace_all(made.output, outputs)
        yield made
    joined = f"{context}.joined"
    yield make("Concat", [f"{context}.row{row}" for row in range(rows)], [joined], axis=1)
    yield make("Gather", [joined, "packed.kept"], [context], axis=1)


def _declare(graph: onnx.GraphProto, rows: int, *, trees: bool, embedding_size: int) -> None:
    """Inputs and outputs of the packed model."""
    value = helper.make_tensor_value_info
    ints, small, floats = TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT
    inputs: list[onnx.ValueInfoProto] = [
        value("input_ids", ints, [1, "N"]),
        value("packed.positions", ints, [1, "N"]),
        value("packed.wide", ints, ["M"]),
        value("packed.kept", ints, ["N"]),
        value("packed.lengths", ints, [rows]),
        value("packed.wanted", ints, ["W"]),
    ]
    inputs += [value(n.input[-1], floats, [1, "P", "D"]) for n in graph.node if _adds_prefix(n)]
    if embedding_size:
        inputs.append(value(IMAGE_ROWS, ints, ["K", 2]))
        inputs.append(value(IMAGE_VALUES, floats, ["K", embedding_size]))
    states = [v for v in graph.output if v.name not in ("logits", "packed.hidden")]
    states = [v for v in states if not v.name.startswith("present.")]
    for state in states:
        state.type.tensor_type.shape.dim[1].dim_param = "N"
    outputs = [graph.output[0], graph.output[-1], *states]
    for row in range(rows):
        inputs += [
            value(f"packed.seqlens_k.{row}", small, [1]),
            value(f"packed.total.{row}", small, [1]),
        ]
        if trees:
            inputs.append(value(f"packed.positions.{row}", ints, [1, f"T{row}"]))
            inputs.append(value(f"packed.bias.{row}", floats, [1, 1, f"T{row}", f"L{row}"]))
    for given in graph.input:
        if given.name in ("input_ids", "seqlens_k", "total_sequence_length"):
            continue
        if not given.name.startswith("past_key_values."):
            inputs.append(given)
            continue
        shape = [dim.dim_value or dim.dim_param for dim in given.type.tensor_type.shape.dim]
        for row in range(rows):
            past, present = cache_inputs(given.name.removeprefix("past_key_values."), row)
            sized = [shape[0], shape[1], f"S{row}", shape[3]]
            inputs.append(value(past, floats, sized))
            outputs.append(value(present, floats, sized))
    replace_all(graph.input, inputs)
    replace_all(graph.output, outputs)
