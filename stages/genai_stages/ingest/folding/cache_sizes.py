"""Sizes of cache inputs that the graph's own shapes leave open.

Some exporters name every dimension of a cache by a symbol, the width of a head too. What a cache is
joined with tells them: new keys and values have the same heads and the same width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir

from genai_core.errors import BadModel
from genai_stages.ingest.folding.specialise import Folding
from genai_stages.ingest.source.source_model import SourceModel

Dims = tuple[int | str, ...]
Shape = tuple[int, ...]
_KEEP_AXES = {"Identity", "Cast", "CastLike", "Slice"}
_GROUPED = {
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "MultiHeadAttention"),
    ("", "Attention"),
}
"""Operators that join a cache of shape [B, H, P, D]; their first inputs are query and key."""


@dataclasses.dataclass(frozen=True)
class _Join:
    """Where a cache is joined with what is new: the node, the cache's name and its axes there."""

    node: ir.Node
    name: str
    perm: list[int]

    @property
    def length_axis(self) -> int:
        """The cache input's axis of positions."""
        if self.node.op_type != "Concat":
            return 2
        return self.perm[self.node.attributes.get_int("axis", 0) % 4]


def are_open(dims: Dims) -> bool:
    """Whether more of a cache [B, H, P, D] or [B, H, D, P] is open than batch and length."""
    return len(dims) == 4 and (
        isinstance(dims[1], str) or sum(isinstance(dim, str) for dim in dims[2:]) != 1
    )


def untold(name: str, dims: Dims) -> BadModel:
    """A cache whose heads are neither stated nor told by the graph."""
    return BadModel(
        f"its shape {list(dims)} does not tell the number and width of heads",
        where=name,
        remedy="export it with dynamic axes for the batch and the length alone",
    )


def cache_sizes(
    source: SourceModel,
    caches: Mapping[str, Dims],
    length: int,
    fold: Callable[[Mapping[str, Shape]], Folding],
) -> dict[str, Dims]:
    """The shapes of caches as the graph's arithmetic tells them; the length's axis stays open.

    Args:
        source: The model.
        caches: Input -> its shape as stated, see `are_open`.
        length: Slots at which the graph is folded.
        fold: Folds the source at given static shapes of these caches.

    Raises:
        BadModel: Nothing tells the sizes of one.
        GenAIError: As `specialise`.
    """
    nodes = list(source.model.graph)
    place = {id(node): index for index, node in enumerate(nodes)}
    readers: dict[str, list[ir.Node]] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None:
                readers.setdefault(str(value.name), []).append(node)
    joins: dict[str, _Join] = {}
    for name, dims in caches.items():
        join = _join(name, readers)
        if join is None:
            raise untold(name, dims)
        joins[name] = join
    ordered = sorted(joins, key=lambda name: place[id(joins[name].node)])
    # Until what precedes them is folded, heads and widths count as one.
    shapes = {
        name: tuple(length if axis == join.length_axis else 1 for axis in range(4))
        for name, join in joins.items()
    }
    folding = fold(shapes)
    found: dict[str, Dims] = {}
    for name in ordered:
        join = joins[name]
        sizes = _joined_sizes(join, folding)
        if sizes is None:
            raise untold(name, caches[name])
        axes = dict(zip(join.perm, sizes, strict=True))
        axes[join.length_axis] = length
        folding.set_shape(name, tuple(axes[axis] for axis in range(4)))
        stated = caches[name]
        found[name] = tuple(
            "length" if axis == join.length_axis else axes[axis] if axis else stated[0]
            for axis in range(4)
        )
    return found


def _join(name: str, readers: Mapping[str, list[ir.Node]]) -> _Join | None:
    queue: list[tuple[str, list[int]]] = [(name, [0, 1, 2, 3])]
    seen = {name}
    while queue:
        current, perm = queue.pop()
        for node in readers.get(current, ()):
            if node.op_type == "Concat" or (node.domain, node.op_type) in _GROUPED:
                return _Join(node, current, perm)
            turned = perm
            if node.op_type == "Transpose":
                axes = node.attributes.get_ints("perm", (3, 2, 1, 0))
                turned = [perm[axis] for axis in axes]
            elif node.op_type not in _KEEP_AXES:
                continue
            following = str(node.outputs[0].name)
            if following not in seen:
                seen.add(following)
                queue.append((following, turned))
    return None


def _joined_sizes(join: _Join, folding: Folding) -> list[int] | None:
    """The sizes of what a cache is joined with, in the join's axes; None = it is not told."""
    node = join.node
    inputs = ["" if value is None else str(value.name) for value in node.inputs]
    if node.op_type == "Concat":
        others = [name for name in inputs if name != join.name]
        (shape,) = folding.shapes(others[:1]) or [()]
        return list(shape) if len(shape) == 4 else None
    query, key = [*inputs, ""][:2]
    heads = node.attributes.get_int("num_heads", node.attributes.get_int("q_num_heads", 0))
    kv_heads = node.attributes.get_int("kv_num_heads", heads)
    (shape,) = folding.shapes([key or query])
    if len(shape) == 4:
        return list(shape)
    parts = kv_heads if key else heads + 2 * kv_heads
    if not parts or len(shape) != 3 or shape[2] % parts:
        return None
    return [1, kv_heads, 1, shape[2] // parts]
