"""Linears in the precision that their weights are stored in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genai_stages.backends.cpu.activations import ActivationGrid
from genai_stages.backends.cpu.fragment import LinearWeights
from genai_stages.backends.cpu.model_graph import MICROSOFT, ModelGraph
from genai_stages.graph.linear_sites import LinearSite

__all__ = ["LinearNodes"]

_ACCURACY_INT8 = 4
"""MatMulNBits: activations as int8 in blocks; the other levels are 3.5 to 44 times slower."""


class LinearNodes:
    """Adds linears to a graph; those that read one tensor share its grid.

    Args:
        graph: Gets the nodes.
        linears: Core-graph weight -> its stored form.
        grids: Input tensor of an int8 linear -> its grid.
    """

    def __init__(
        self,
        graph: ModelGraph,
        linears: Mapping[str, LinearWeights],
        grids: Mapping[str, ActivationGrid],
    ) -> None:
        self._graph = graph
        self._linears = linears
        self._grids = grids
        self._quantized: dict[str, str] = {}

    def add(self, site: LinearSite) -> None:
        """A projection, with its bias where it has one."""
        form = self._linears[site.weight]
        product = f"{site.output}.product" if site.bias else site.output
        if form.form == "int8":
            self._int8(site, form, product)
        elif form.form == "int4":
            self._int4(site, form, product)
        else:
            self._graph.op("MatMul", [site.source, self._graph.data(form.weight)], product)
        if site.bias:
            self._graph.op(
                "Add", [product, self._graph.data(self._graph.plain[site.bias])], site.output
            )

    def _int8(self, site: LinearSite, form: LinearWeights, output: str) -> None:
        weight = f"{form.weight}.real"
        if weight not in self._graph.made:
            self._graph.made.add(weight)
            assert form.scale is not None
            parts = [self._graph.data(form.weight), self._graph.data(form.scale)]
            if form.zero_point is not None:
                parts.append(self._graph.data(form.zero_point))
            self._graph.op("DequantizeLinear", parts, weight, axis=1)
        self._graph.op("MatMul", [self._on_grid(site.source), weight], output)

    def _on_grid(self, tensor: str) -> str:
        """The tensor through its uint8 grid; shared by all linears that read it."""
        if tensor not in self._quantized:
            grid = self._grids[tensor]
            parameters = [
                self._graph.constant(f"{tensor}.scale", np.array(grid.scale, dtype=np.float32)),
                self._graph.constant(
                    f"{tensor}.zero_point", np.array(grid.zero_point, dtype=np.uint8)
                ),
            ]
            integers = self._graph.op("QuantizeLinear", [tensor, *parameters], f"{tensor}.uint8")
            self._quantized[tensor] = self._graph.op(
                "DequantizeLinear", [integers, *parameters], f"{tensor}.real"
            )
        return self._quantized[tensor]

    def _int4(self, site: LinearSite, form: LinearWeights, output: str) -> None:
        assert form.scale is not None
        assert form.block_size is not None
        parts = [site.source, self._graph.data(form.weight), self._graph.data(form.scale)]
        if form.zero_point is not None:
            parts.append(self._graph.data(form.zero_point))
        self._graph.op(
            "MatMulNBits",
            parts,
            output,
            domain=MICROSOFT,
            K=form.inputs,
            N=form.outputs,
            bits=4,
            block_size=form.block_size,
            accuracy_level=_ACCURACY_INT8,
        )
