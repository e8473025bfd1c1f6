"""Shapes of every tensor of a graph, with a check that all of them are static.

Of a core graph the shapes are computed for a number of tokens that no model has as a dimension:
what depends on the tokens is then told apart from what does not, whatever the AR.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from genai_core.errors import UnsupportedOperator

TOKENS = 7919
"""Stands for the number of tokens: a prime that is no dimension of a model."""

Shape = tuple[int, ...]


def token_shapes(core: ir.Model) -> dict[str, Shape]:
    """Shapes of a core graph's tensors, with `TOKENS` in place of T.

    A tensor whose shape cannot be told is missing.
    """
    proto = ir.to_proto(core)
    values = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = TOKENS
    shapes = _inferred(proto)
    shapes |= {
        name: tuple(value.shape.numpy())
        for name, value in core.graph.initializers.items()
        if value.shape is not None
    }
    return shapes


def count_of_tokens(dim: int) -> bool:
    """Whether a dimension of `token_shapes` grows with the tokens."""
    return dim > 0 and dim % TOKENS == 0


def set_static_shapes(model: ir.Model) -> None:
    """Infer and set the shape and type of every tensor of a static graph.

    Raises:
        UnsupportedOperator: One is not static.
    """
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    typed = {value.name: value.type.tensor_type for value in proto.graph.value_info}
    typed |= {value.name: value.type.tensor_type for value in proto.graph.output}
    for node in model.graph:
        for output in node.outputs:
            if not output.name:
                continue
            found = typed.get(output.name)
            shape = None if found is None else _static(found)
            if found is None or shape is None:
                raise UnsupportedOperator(
                    f"the shape of {output.name!r} is not static",
                    where=f"{node.op_type} node {node.name!r}",
                    remedy="export the model without shapes that depend on values",
                )
            output.shape = ir.Shape(list(shape))
            output.type = ir.TensorType(ir.DataType(found.elem_type))


def static_shape(value: ir.Value) -> Shape:
    """The shape of a tensor of a static graph."""
    assert value.shape is not None, value.name
    return tuple(value.shape.numpy())


def _inferred(proto: onnx.ModelProto) -> dict[str, Shape]:
    # Nodes of our own domain keep the shapes that are written beside them.
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes: dict[str, Shape] = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shape = _static(value.type.tensor_type)
        if shape is not None:
            shapes[value.name] = shape
    return shapes


def _static(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)
