"""Mutated files, for tests that no file of a stranger ends in a traceback.

Everything is drawn from a `random.Random`, so that a seed and a number name a file for good.
"""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import onnx

_VALUES: tuple[Any, ...] = (
    0, -1, 1, 255, 65536, 2**31, 2**53, 2**63 - 1, 2**64, -(2**63), 10**30, -0.0, 1e308,
    1e-320, 0.5, True, None, "", "x", "../x", "/etc/passwd", "a\x00b", "\ud800", "A" * 3000,
    [], {}, [[]], [1],
    [0.1, 0.2], list(range(70)), [0.1] * 70, [[1, 2], [3]], {"a": 1}, "1e999",
    float("nan"), float("inf"),
)  # fmt: skip
_TRICKS = (
    b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf", b"NaN", b"-Infinity",
    b'{"a":1,"a":2}', b"0x10", b"1e" + b"9" * 400, b"\x00", b"\\ud800",
)  # fmt: skip
_OPERATORS = (
    "Loop", "If", "Scan", "Nope", "", "Constant", "Gather", "MatMul", "Softmax", "Reshape",
    "Expand", "TopK", "QuantizeLinear", "Slice", "Concat", "GroupQueryAttention",
)  # fmt: skip
_NUMBERS = (-1, 0, 1, 2, 10**9, 2**31, 2**62, -(2**63))


def changed_value(random: Random, value: Any) -> Any:
    """A copy of a JSON value with a few members replaced, removed, moved or nested."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 4))):
        places = _places(value)
        if not places:
            return random.choice(_VALUES)
        holder, key = random.choice(places)
        match random.randrange(7):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2:
                holder[key] = _nested(random.choice((5, 300)), lists=random.random() < 0.5)
            case 3:
                other, place = random.choice(places)
                holder[key] = _copied(other[place]) if place in _keys(other) else 1
            case 4 if isinstance(holder[key], int | float):
                holder[key] = holder[key] * random.choice((-1, 0, 2, 10**9))
            case 5 if isinstance(holder[key], str):
                holder[key] += random.choice(("\x00", "..", "\n", "9" * 40))
            case _:
                holder[key] = copy.deepcopy(random.choice(_VALUES))
    return value


def _copied(value: Any) -> Any:
    """A copy; 1 of what was nested twice already, deeper than Python copies."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return 1


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 5000:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(_keys(holder))[:200]
            found += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
    return found


def _nested(depth: int, *, lists: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def changed_json(random: Random, value: Any) -> bytes:
    """The bytes of a changed JSON value, now and then no JSON any more."""
    text = json.dumps(changed_value(random, value), ensure_ascii=random.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    chance = random.random()
    if chance < 0.05:
        at = random.randrange(len(data) + 1)
        return data[:at] + random.choice(_TRICKS) + data[at:]
    if chance < 0.1:
        return changed_bytes(random, data)
    return data[: random.randrange(len(data) + 1)] if chance < 0.12 else data


def changed_bytes(random: Random, data: bytes) -> bytes:
    """Bytes with some of them flipped, removed, repeated or put in."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if not made:
            return b"\x00"
        at = random.randrange(len(made))
        match random.randrange(5):
            case 0:
                made[at] ^= 1 << random.randrange(8)
            case 1:
                made[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del made[at : at + random.choice((1, 2, 16, 200))]
            case 3:
                made[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 8))))
            case _:
                made[at : at + 8] = random.choice((b"\xff" * 8, b"\x00" * 8, b"\x80" * 8))
    return bytes(made)


def changed_onnx(random: Random, data: bytes) -> bytes:
    """An ONNX file with bytes, or members of its graph, changed."""
    if random.random() < 0.35:
        return changed_bytes(random, data)
    model = onnx.ModelProto.FromString(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        _change_graph(random, model)
    try:
        return bytes(model.SerializeToString())
    except Exception:  # noqa: BLE001 - no file at all is none to test
        return data


def _change_graph(random: Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    node = random.choice(graph.node)
    tensor = random.choice(graph.initializer)
    match random.randrange(13):
        case 0 if tensor.dims:
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(_NUMBERS)
        case 1:
            tensor.data_type = random.choice((0, 1, 2, 3, 7, 8, 9, 10, 14, 16, 17, 21, 22, 24, 99))
        case 2:
            _make_external(random, tensor)
        case 3 if node.input:
            names = ("", "nope", random.choice(graph.node).output[0], node.output[0])
            node.input[random.randrange(len(node.input))] = random.choice(names)
        case 4:
            node.op_type = random.choice(_OPERATORS)
        case 5:
            node.output[0] = random.choice(("", random.choice(graph.node).output[0]))
        case 6:
            graph.node.remove(node)
        case 7:
            graph.node.add().CopyFrom(node)
        case 8:
            model.opset_import[0].version = random.choice((0, 1, 7, 13, 999, 2**62))
        case 9 if node.attribute:
            attribute = random.choice(node.attribute)
            attribute.i = random.choice(_NUMBERS)
            attribute.ints[:] = [random.choice(_NUMBERS) for _ in range(random.choice((0, 1, 4)))]
            attribute.type = random.choice((attribute.type, 0, 1, 2, 3, 4, 5, 7, 14))
        case 10:
            graph.initializer.add().CopyFrom(tensor)
        case 11:
            value = random.choice([*graph.input, *graph.output])
            dims = value.type.tensor_type.shape.dim
            if dims:
                random.choice(dims).dim_value = random.choice(_NUMBERS)
        case _:
            _nest(random, node)


def _make_external(random: Random, tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    locations = ("../x", "/etc/passwd", "model.onnx", "", "./", "a/../../x", "x\x00y", "/dev/zero")
    offsets = ("0", "-8", "9" * 20, "1e3", "x", "")
    for key, choices in (("location", locations), ("offset", offsets), ("length", offsets)):
        if random.random() < 0.8:
            tensor.external_data.add(key=key, value=random.choice(choices))


def _nest(random: Random, node: onnx.NodeProto) -> None:
    attribute = node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    inner = attribute.g
    for _ in range(random.choice((1, 20, 60))):
        branch = inner.node.add(op_type="If")
        inner = branch.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
