"""The source model with its encodings simulated: the yardstick for everything built from it.

The core graph is expanded to ordinary operators (`expand_attention`), its weights are put on their
grids, and each activation that has an entry goes through QuantizeLinear and DequantizeLinear.
Computation between stays float32, as in AIMET's simulation, so the loss of this model is the loss
that the encodings promise; a built model is held against it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir

from genai_core.errors import BadEncodings
from genai_core.facts import ModelFacts, Role
from genai_stages.aimet.arithmetic import storage_dtype
from genai_stages.aimet.model import Encoding, EncodingSet
from genai_stages.graph.core_graph import mapped, read_core, write_proto
from genai_stages.graph.expand_attention import AttentionSpec, Expansion, needed_nodes
from genai_stages.graph.tensor_file import TensorFile
from genai_stages.quantize.encoding_lookup import EncodingLookup, core_lookup

MODEL_FILE = "model.onnx"
DATA_FILE = "model.data"


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What became of the encodings.

    Attributes:
        quantized: Tensors of the core graph and roles that were put on a grid.
        missing: Activations and weights that stay float, since no entry names them.
        unused: Entries that nothing here stands for.
    """

    quantized: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def simulate(
    core: Path,
    encodings: EncodingSet,
    out: Path,
    *,
    start: str | None = None,
    end: str | None = None,
) -> Simulated:
    """Write `model.onnx` and `model.data` into `out`.

    Inputs and outputs are those of `expand_attention.expand`. Peak memory does not depend on the
    size of the model.

    Args:
        core: Folder of a core graph.
        encodings: Of the source model.
        out: An empty folder.
        start: The tensor it starts from, None = `input_ids`; its values are taken as they come.
        end: The tensor it ends with, None = `logits`.

    Raises:
        BadEncodings: An entry does not fit its tensor.
    """
    model, facts = read_core(core)
    lookup = core_lookup(encodings, facts)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    first = model.graph.inputs[0] if start is None else by_name[start]
    last = model.graph.outputs[0] if end is None else by_name[end]
    with TensorFile(out / DATA_FILE) as data:
        simulation = _Simulation(facts, first, last, lookup=lookup, data=data)
        expanded = simulation.run(needed_nodes(first, last))
        simulation.keep_weights()
        write_proto(expanded, out / MODEL_FILE)
    return Simulated(simulation.quantized, tuple(simulation.missing), tuple(lookup.unused()))


class _Simulation(Expansion):
    """An expansion that puts what it meets on its grid."""

    def __init__(
        self,
        facts: ModelFacts,
        first: ir.Value,
        last: ir.Value,
        *,
        lookup: EncodingLookup,
        data: TensorFile,
    ) -> None:
        super().__init__(facts, first, last)
        self.lookup = lookup
        self.data = data
        self.quantized = 0
        self.missing: list[str] = []
        self.roles = {one.layer: one.roles for one in facts.attention}

    def linear(self, node: ir.Node) -> None:
        weight = node.inputs[1]
        assert weight is not None
        if weight not in self.map:
            self.map[weight] = self.weight(weight)
        super().linear(node)
        self.put_on_grid(node.outputs[0])

    def copy(self, node: ir.Node) -> None:
        table = node.inputs[0]
        if node.op_type == "Gather" and table is not None and table.is_initializer():
            if self.embedding(node, table):
                return
        else:
            for value in node.inputs:
                if value is not None and value.is_initializer() and value not in self.map:
                    self.map[value] = self.vector(value)
        super().copy(node)
        for value in node.outputs:
            self.put_on_grid(value)

    def seen(self, value: ir.Value, role: Role, spec: AttentionSpec) -> ir.Value:
        roles = self.roles[spec.layer]
        name = roles.get(role)
        if name is None and role == "scaled" and spec.scale == 1.0:
            name = roles.get("scores")
        encoding = None if name is None else self.lookup.activation(name)
        return value if encoding is None else self.through_grid(value, encoding)

    def put_on_grid(self, core: ir.Value) -> None:
        """Quantize what stands for a core tensor; the output of the graph keeps its name."""
        assert core.name is not None
        if core.dtype is not None and not core.dtype.is_floating_point():
            return
        encoding = self.lookup.activation(core.name)
        if encoding is None:
            if self.lookup.entry(core.name) is None:
                self.missing.append(core.name)
            return
        value = self.map[core]
        if core is self.last:
            value.name = f"{core.name}_float"
        self.map[core] = self.through_grid(value, encoding)
        self.map[core].shape, self.map[core].type = core.shape, core.type
        if core is self.last:
            self.map[core].name = core.name

    def through_grid(self, value: ir.Value, encoding: Encoding) -> ir.Value:
        self.quantized += 1
        scale, zero = self.grid(encoding)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", value, scale, zero), scale,
                       zero)  # fmt: skip

    def grid(self, encoding: Encoding) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of an activation's or a table's grid, unsigned, as constants."""
        dtype = storage_dtype(encoding, signed=False)
        zero = np.asarray(encoding.zero_point(signed=False))
        if encoding.bits not in (8, 16) or np.any(zero != np.rint(zero)):
            raise BadEncodings(
                f"activations of {encoding.bits} bits cannot be simulated",
                where=f"{self.lookup.where}: {encoding.name}",
                remedy="quantize activations at 8 or 16 bits",
            )
        scale = encoding.scale.astype(np.float32)
        return (
            self.constant(f"scale_{encoding.name}", scale),
            self.constant(f"zero_{encoding.name}", zero.astype(dtype)),
        )

    def weight(self, core: ir.Value) -> ir.Value:
        """A Linear's weight [out, in] as integers, dequantized in the graph."""
        assert core.name is not None
        assert core.const_value is not None
        shape = core.const_value.shape.numpy()
        encoding = self.lookup.weight(core.name, inputs=shape[1])
        if encoding is None:
            self.missing.append(core.name)
            return super().mapped(core)
        self.quantized += 1
        if encoding.bits not in (4, 8, 16) or not encoding.signed:
            return self.vector(core, encoding)
        grid = self.data.add_quantized(
            f"{core.name}_quantized", core.const_value, encoding, channel_axis=0
        )
        self.initializers.append(grid)
        scale = self.constant(f"scale_{core.name}", encoding.scale.astype(np.float32))
        if encoding.block_size is None:
            value = self.op("DequantizeLinear", grid, scale, axis=0)
        else:
            size = encoding.block_size
            value = self.op("DequantizeLinear", grid, scale, axis=1, block_size=size)
        value.shape, value.type = core.shape, core.type
        return value

    def vector(self, core: ir.Value, encoding: Encoding | None = None) -> ir.Value:
        """A vector, or a weight of an unusual grid, as float values that lie on its grid."""
        assert core.name is not None
        assert core.const_value is not None
        shape = core.const_value.shape.numpy()
        if encoding is None and shape:
            encoding = self.lookup.weight(core.name, inputs=shape[-1])
        if encoding is None:
            return super().mapped(core)
        value = self.data.add_rounded(core.name, core.const_value, encoding, channel_axis=0)
        self.initializers.append(value)
        return value

    def embedding(self, node: ir.Node, table: ir.Value) -> bool:
        """Gather from the integer table, so that only the rows in use are dequantized.

        What it yields is on the table's grid, so it needs no entry of its own. False where the
        table stays float or has a grid that Gather cannot read.
        """
        assert table.name is not None
        assert table.const_value is not None
        encoding = self.lookup.weight(table.name, inputs=table.const_value.shape.numpy()[1])
        if encoding is None:
            return False
        self.quantized += 1
        out, ids = node.outputs[0], node.inputs[1]
        assert ids is not None
        if encoding.per_tensor and encoding.bits in (8, 16):
            grid = self.data.add_quantized(
                f"{table.name}_quantized",
                table.const_value,
                encoding,
                channel_axis=0,
                signed=False,
            )
            self.initializers.append(grid)
            rows = self.op("Gather", grid, self.mapped(ids), axis=0)
            value = self.op("DequantizeLinear", rows, *self.grid(encoding), name=out.name)
        else:
            value = self.op("Gather", self.vector(table, encoding), self.mapped(ids), axis=0,
                            name=out.name)  # fmt: skip
        value.shape, value.type = out.shape, out.type
        self.map[out] = value
        if self.lookup.entry(out.name or "") is not None:
            self.put_on_grid(out)
        return True

    def keep_weights(self) -> None:
        """Copy the weights that stay float, so that the folder stands alone."""
        for value in self.initializers:
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.location != DATA_FILE:
                assert value.name is not None
                value.const_value = self.data.add(value.name, mapped(tensor)).const_value
