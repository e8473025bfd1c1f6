"""The core graph on disk: written tensor by tensor, read with memory-mapped weights.

A core graph is a standard ONNX file (opset 23) plus two operators of the domain `genai`, purely
feed-forward over the tokens of one sequence; everything that depends on positions hides inside
`genai.Attention`. Weights live beside it in one file a group (`embed`, `layer_000` ..., `head`),
so that a stage which needs two layers fetches two files.

The writer streams: it holds one tensor at a time, and the bytes depend on the order of calls only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from genai_core.facts import ModelFacts, WeightsGroup

if TYPE_CHECKING:
    from types import TracebackType

DOMAIN = "genai"
OPSET = 23
IR_VERSION = 10
_STRIP = 64
"""Columns that are turned at once."""

ALIGNMENT = 64
"""Bytes; every weight starts on a cache line, so that it can be mapped and used in place."""

MODEL_FILE = "model.onnx"
FACTS_FILE = "facts.json"
WEIGHTS_FOLDER = "weights"
_BLOCK_BYTES = 64 << 20

Dim = int | str
AttributeValue = int | float | str | Sequence[int] | Sequence[float]
FloatArray = npt.NDArray[np.float32]


def layer_group(layer: int) -> str:
    """Name of the weights group of a layer."""
    return f"layer_{layer:03d}"


@dataclasses.dataclass(frozen=True)
class _Stored:
    file: str
    offset: int
    length: int
    shape: tuple[int, ...]


class CoreWriter:
    """Writes one core graph into an empty folder.

    Nodes are added in execution order, weights in the order of their files. Use as a context
    manager: leaving it closes the files.

    Args:
        folder: Where `model.onnx`, `facts.json` and `weights/` are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._initializers: list[ir.Value] = []
        self._stored: dict[str, _Stored] = {}
        self._files: dict[str, BinaryIO] = {}
        self._groups: dict[str, list[int]] = {}
        self._inputs: list[ir.Value] = []
        (folder / WEIGHTS_FOLDER).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files of weights."""
        for file in self._files.values():
            file.close()

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of this name exists already."""
        return name in self._values

    def input(self, name: str, shape: Sequence[Dim], dtype: ir.DataType) -> str:
        """Declare a graph input."""
        value = self._value(name, shape, dtype)
        self._inputs.append(value)
        return name

    def weight(self, name: str, array: npt.ArrayLike, *, group: str) -> str:
        """Append a weight to its group's file as float32, row-major, little-endian."""
        data = np.asarray(array)
        file = self._files.get(group)
        path = f"{WEIGHTS_FOLDER}/{group}.data"
        if file is None:
            file = (self._folder / path).open("wb")
            self._files[group] = file
            self._groups[group] = [0, 0]
        position = file.tell()
        padding = -position % ALIGNMENT
        file.write(b"\0" * padding)
        for block in _blocks(data):
            file.write(_row_major(block).data)
        length = 4 * data.size
        count = self._groups[group]
        count[0] = position + padding + length
        count[1] += data.size
        stored = _Stored(path, position + padding, length, data.shape)
        self._external(name, stored)
        return name

    def alias(self, name: str, of: str) -> str:
        """Give the bytes of an existing weight a second name (a tied lm_head)."""
        self._external(name, self._stored[of])
        return name

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        """Store a small tensor inside `model.onnx`."""
        value = self._value(name, array.shape, ir.DataType.from_numpy(array.dtype))
        value.const_value = ir.Tensor(array, name=name)
        self._initializers.append(value)
        return name

    def node(
        self,
        op_type: str,
        inputs: Sequence[str | None],
        outputs: Sequence[str],
        *,
        shapes: Sequence[Sequence[Dim] | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        domain: str = "",
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> str:
        """Append a node and return its first output.

        Args:
            op_type: Operator.
            inputs: Names of existing tensors; None = an optional input left out.
            outputs: Names of new tensors.
            shapes: One for each output; None = unknown.
            attributes: Plain values.
            domain: `genai` for the two operators of ours.
            dtype: Of all outputs.
        """
        made = [
            self._value(name, shape, dtype) for name, shape in zip(outputs, shapes, strict=True)
        ]
        node = ir.Node(
            domain,
            op_type,
            [None if name is None else self._values[name] for name in inputs],
            attributes=ir.convenience.convert_attributes(dict(attributes or {})),
            outputs=made,
            name=f"{op_type}:{outputs[0]}",
        )
        self._nodes.append(node)
        return outputs[0]

    def linear(
        self, source: str, weight: str, output: str, *, bias: str | None = None, width: int
    ) -> str:
        """Append a `genai.Linear`; `width` is the number of its output channels."""
        inputs: list[str | None] = [source, weight]
        if bias is not None:
            inputs.append(bias)
        return self.node("Linear", inputs, [output], shapes=[(1, "T", width)], domain=DOMAIN)

    def finish(self, outputs: Iterable[str], facts: ModelFacts) -> ModelFacts:
        """Write `model.onnx` and `facts.json`; the facts' groups are filled in from the files."""
        graph = ir.Graph(
            self._inputs,
            [self._values[name] for name in outputs],
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports={"": OPSET, DOMAIN: 1},
            name="core",
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="genai-operator")
        proto = ir.to_proto(model)
        (self._folder / MODEL_FILE).write_bytes(proto.SerializeToString(deterministic=True))
        groups = {
            group: WeightsGroup(
                file=f"{WEIGHTS_FOLDER}/{group}.data", size_bytes=size, parameters=parameters
            )
            for group, (size, parameters) in sorted(self._groups.items())
        }
        full = facts.model_copy(
            update={
                "groups": groups,
                "parameters": sum(group.parameters for group in groups.values()),
            }
        )
        return write_facts(self._folder, full)

    def _value(self, name: str, shape: Sequence[Dim] | None, dtype: ir.DataType) -> ir.Value:
        if name in self._values:
            raise ValueError(f"two tensors named {name}")
        value = ir.Value(
            name=name,
            shape=None if shape is None else ir.Shape(list(shape)),
            type=ir.TensorType(dtype),
        )
        self._values[name] = value
        return value

    def _external(self, name: str, stored: _Stored) -> None:
        value = self._value(name, stored.shape, ir.DataType.FLOAT)
        value.const_value = ir.ExternalTensor(
            stored.file,
            stored.offset,
            stored.length,
            ir.DataType.FLOAT,
            shape=ir.Shape(list(stored.shape)),
            name=name,
            base_dir=str(self._folder),
        )
        self._stored[name] = stored
        self._initializers.append(value)


def _row_major(block: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """A block as it is written; a turned one in strips that stay in the cache, twice as fast."""
    if block.ndim != 2 or block.strides[0] >= block.strides[1]:
        return np.ascontiguousarray(block, dtype="<f4")
    rows = np.empty(block.shape, "<f4")
    for start in range(0, block.shape[1], _STRIP):
        rows[:, start : start + _STRIP] = block[:, start : start + _STRIP]
    return rows


def _blocks(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Ranges of the first axis: a weight that is mapped and transposed is never copied whole."""
    rows = len(data) if data.ndim > 1 else 0
    if not rows:
        yield data
        return
    step = max(1, _BLOCK_BYTES * rows // max(1, 4 * data.size))
    for start in range(0, rows, step):
        yield data[start : start + step]


def write_facts(folder: Path, facts: ModelFacts) -> ModelFacts:
    """Write `facts.json` into a core graph's folder."""
    text = facts.model_dump_json(indent=1, exclude_defaults=False)
    (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")
    return facts


def read_facts(folder: Path) -> ModelFacts:
    """Read `facts.json` of a core graph's folder."""
    return ModelFacts.model_validate_json((folder / FACTS_FILE).read_text(encoding="utf-8"))


def read_core(folder: Path) -> tuple[ir.Model, ModelFacts]:
    """Read a core graph; its weights stay on disk and are mapped when touched."""
    return ir.load(folder / MODEL_FILE), read_facts(folder)


def mapped(tensor: ir.TensorProtocol) -> npt.NDArray[np.generic]:
    """The values of a tensor, mapped from its file where they lie outside the graph.

    onnx-ir itself refuses a file that has several hard links, and the files of a task's inputs are
    links to the store's blobs.
    """
    if not isinstance(tensor, ir.ExternalTensor) or not tensor.size:
        return tensor.numpy()
    path = Path(tensor.base_dir) / tensor.location
    shape = tuple(tensor.shape.numpy())
    values: npt.NDArray[np.generic] = np.memmap(
        path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape or (1,)
    )
    return values.reshape(shape)


def write_proto(model: ir.Model, path: Path) -> None:
    """Write a graph whose weights lie outside it, with bytes that follow from its content."""
    proto: onnx.ModelProto = ir.to_proto(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))
