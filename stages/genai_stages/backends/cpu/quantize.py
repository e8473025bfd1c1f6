"""Some layers' weights in the form that the CPU model reads: one data file and its fragment.

Linears are read, quantized and written a few rows at a time. Everything else (norms, biases) is
copied as float32; the embedding is stored as float16 where the linears are integers, which is half
the bytes at an error of 2^-11, far below that of any activation grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.errors import BadEncodings, BadModel
from genai_core.facts import ModelFacts
from genai_core.names import Gaps, Precision
from genai_core.operations import ConvertCpuConfig
from genai_stages.aimet.model import Encoding
from genai_stages.backends.cpu import weights
from genai_stages.backends.cpu.fragment import (
    ALIGNMENT,
    DATA_FILE,
    FRAGMENT_FILE,
    Dtype,
    Form,
    Fragment,
    LinearWeights,
    StoredTensor,
)
from genai_stages.graph.linear_sites import LinearSite, SourceEncodings, is_op, linear_site

_CHUNK_VALUES = 4 * 1024 * 1024
"""Weights held as float32 at once (16 MB)."""

_LARGEST_HALF = 65504.0

_SAFE = 64
"""255 x 64 x 2 still fits into 16 signed bits."""


@dataclass(frozen=True)
class _Use:
    """A weight of the core graph where it is used."""

    tensor: ir.ExternalTensor
    group: str
    linear: LinearSite | None
    embedding: bool


def convert_group(
    model: ir.Model,
    facts: ModelFacts,
    encodings: Mapping[str, Encoding] | None,
    *,
    config: ConvertCpuConfig,
    out: Path,
) -> Fragment:
    """Write the weights of layers [first, last), and of embedding and lm_head where asked.

    Args:
        model: The core graph; its weights are read from their files.
        facts: Its facts.
        encodings: By source name; None where the model has none.
        config: Which weights, in which form.
        out: Empty folder for `weights.data` and `fragment.json`.

    Raises:
        BadEncodings: An encoding is missing and gaps are errors, or does not fit its weight.
        BadModel: A weight holds NaN or infinity.
    """
    lookup = SourceEncodings(encodings, facts)
    with (out / DATA_FILE).open("wb") as file:
        writer = _Writer(file, lookup, config)
        for use in _uses(model):
            if _chosen(use.group, config):
                writer.write(use)
    fragment = Fragment(
        precision=config.precision,
        first=config.first,
        last=config.last,
        embedding=config.embedding,
        lm_head=config.lm_head,
        tensors=writer.tensors,
        linears=writer.linears,
        plain=writer.plain,
    )
    (out / FRAGMENT_FILE).write_text(fragment.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return fragment


def gaps(
    model: ir.Model,
    facts: ModelFacts,
    encodings: Mapping[str, Encoding] | None,
    *,
    config: ConvertCpuConfig,
) -> dict[str, list[str]]:
    """Linears that lack an encoding -> the source tensors that have none; arguments as above."""
    lookup = SourceEncodings(encodings, facts)
    sites = [use.linear for use in _uses(model) if use.linear and _chosen(use.group, config)]
    found = {site.weight: _missing(lookup, config, site) for site in sites}
    return {weight: names for weight, names in found.items() if names}


def names_read(model: ir.Model, facts: ModelFacts, config: ConvertCpuConfig) -> set[str]:
    """Source tensors whose encodings `convert_group` asks for: its weights, and all activations."""
    names = {role for one in facts.attention for role in one.roles.values()}
    names |= {str(value.name) for node in model.graph for value in node.outputs}
    for use in _uses(model):
        if _chosen(use.group, config):
            names.add(str(use.tensor.name) if use.linear is None else use.linear.weight)
    return names | {facts.provenance[name].source for name in names if name in facts.provenance}


def summary(fragment: Fragment) -> dict[str, int]:
    """How many linears have which form, and how many keep the source's integers."""
    forms = Counter(linear.form for linear in fragment.linears.values())
    exact = sum(linear.exact for linear in fragment.linears.values() if linear.form != "float")
    rounded = sum(not linear.exact for linear in fragment.linears.values())
    return {**dict(sorted(forms.items())), "exact": exact, "rounded": rounded}


def _uses(model: ir.Model) -> Iterator[_Use]:
    """Every weight that lies in a file, once for each name, in the graph's order."""
    seen: set[str] = set()
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is None or not isinstance(value.const_value, ir.ExternalTensor):
                continue
            name = str(value.name)
            if name in seen:
                continue
            seen.add(name)
            is_weight = is_op(node, "Linear") and index == 1
            group = Path(str(value.const_value.location)).stem
            embedding = node.op_type == "Gather" and index == 0 and group == "embed"
            if group == "embed" and not embedding:
                group = "head"
            yield _Use(
                tensor=value.const_value,
                group=group,
                linear=linear_site(node) if is_weight else None,
                embedding=embedding,
            )


def _chosen(group: str, config: ConvertCpuConfig) -> bool:
    if group == "embed":
        return config.embedding
    if group == "head":
        return config.lm_head
    return config.first <= int(group.rpartition("_")[2]) < config.last


def _missing(lookup: SourceEncodings, config: ConvertCpuConfig, site: LinearSite) -> list[str]:
    """Tensors of a linear that need an encoding and have none, by the source's names."""
    if config.precision is Precision.FLOAT:
        return []
    names = []
    if lookup.weight(site.weight, inputs=site.inputs, outputs=site.outputs) is None:
        names.append(site.weight)
    if config.precision is Precision.INT8 and lookup.activation(site.source) is None:
        names.append(site.source)
    return [lookup.source(name) for name in names]


class _Writer:
    def __init__(self, file: BinaryIO, lookup: SourceEncodings, config: ConvertCpuConfig) -> None:
        self._file = file
        self._lookup = lookup
        self._config = config
        self.tensors: list[StoredTensor] = []
        self.linears: dict[str, LinearWeights] = {}
        self.plain: dict[str, str] = {}

    def write(self, use: _Use) -> None:
        if use.linear is None:
            self._plain(use)
            return
        form, encoding = self._form(use.linear)
        write = {"int8": self._int8, "int4": self._int4, "float": self._float}[form]
        write(use.tensor, use.linear, encoding)

    def _form(self, site: LinearSite) -> tuple[Form, Encoding | None]:
        """What a linear becomes, and the encoding of its weight."""
        config = self._config
        if config.precision is Precision.FLOAT:
            return "float", None
        encoding = self._lookup.weight(site.weight, inputs=site.inputs, outputs=site.outputs)
        missing = _missing(self._lookup, config, site)
        if missing and config.gaps is Gaps.ERROR:
            raise BadEncodings(
                "has no encoding",
                where=missing[0],
                remedy="quantize this tensor too, or set quantization.gaps to Float or Calibrate",
            )
        if missing and config.gaps is Gaps.FLOAT:
            return "float", None
        return ("int8" if config.precision is Precision.INT8 else "int4"), encoding

    def _plain(self, use: _Use) -> None:
        name = str(use.tensor.name)
        if not use.embedding:
            self.plain[name] = self._put(name, _read_all(use.tensor))
            return
        half = self._config.precision is not Precision.FLOAT and all(
            float(np.abs(rows).max(initial=0)) <= _LARGEST_HALF
            for _, _, rows in _chunks(use.tensor)
        )
        stored = f"{name}.float16" if half else name
        dtype = np.dtype(np.float16 if half else np.float32)
        offset = self._align()
        for _, _, rows in _chunks(use.tensor):
            self._file.write(np.ascontiguousarray(rows, dtype=dtype).data)
        self._add(stored, dtype, _shape(use.tensor), offset)
        self.plain[name] = stored

    def _int8(self, tensor: ir.ExternalTensor, site: LinearSite, enc: Encoding | None) -> None:
        values = np.empty((site.inputs, site.outputs), dtype=np.int8)
        scale = np.empty(site.outputs, dtype=np.float32)
        zero = np.empty(site.outputs, dtype=np.int8)
        exact = True
        for start, stop, rows in _chunks(tensor):
            part = weights.int8_rows(rows, enc.rows(start, stop) if enc else None)
            values[:, start:stop] = part.values.T
            scale[start:stop], zero[start:stop] = part.scale, part.zero_point
            exact &= part.exact
        self.linears[site.weight] = LinearWeights(
            form="int8",
            inputs=site.inputs,
            outputs=site.outputs,
            weight=self._put(f"{site.weight}.int8", values),
            scale=self._put(f"{site.weight}.scale", scale),
            zero_point=self._put(f"{site.weight}.zero_point", zero) if zero.any() else None,
            exact=exact,
            wide=int(values.max()) > _SAFE or int(values.min()) < -_SAFE,
        )

    def _int4(self, tensor: ir.ExternalTensor, site: LinearSite, enc: Encoding | None) -> None:
        block, _ = weights.int4_block(enc, site.inputs, self._config.block_size)
        blocks = -(-site.inputs // block)
        packed = np.empty((site.outputs, blocks, block // 2), dtype=np.uint8)
        scale = np.empty((site.outputs, blocks), dtype=np.float32)
        zero = np.empty((site.outputs, blocks), dtype=np.uint8)
        exact = True
        for start, stop, rows in _chunks(tensor):
            part = weights.int4_rows(rows, enc.rows(start, stop) if enc else None, block_size=block)
            packed[start:stop], scale[start:stop] = part.packed, part.scale
            zero[start:stop] = part.zero_point
            exact &= part.exact
        packed_zero = weights.pack_nibbles(zero).reshape(-1)
        self.linears[site.weight] = LinearWeights(
            form="int4",
            inputs=site.inputs,
            outputs=site.outputs,
            weight=self._put(f"{site.weight}.int4", packed),
            scale=self._put(f"{site.weight}.scale", scale.reshape(-1)),
            zero_point=(
                self._put(f"{site.weight}.zero_point", packed_zero) if (zero != 8).any() else None
            ),
            block_size=block,
            exact=exact,
        )

    def _float(self, tensor: ir.ExternalTensor, site: LinearSite, _: Encoding | None) -> None:
        values = np.empty((site.inputs, site.outputs), dtype=np.float32)
        for start, stop, rows in _chunks(tensor):
            values[:, start:stop] = rows.T
        self.linears[site.weight] = LinearWeights(
            form="float",
            inputs=site.inputs,
            outputs=site.outputs,
            weight=self._put(f"{site.weight}.transposed", values),
            exact=True,
        )

    def _put(self, name: str, array: NDArray[np.generic]) -> str:
        offset = self._align()
        self._file.write(np.ascontiguousarray(array).data)
        self._add(name, array.dtype, array.shape, offset)
        return name

    def _align(self) -> int:
        """Pad to where the next tensor may start; returns that place."""
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        return self._file.tell()

    def _add(
        self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], offset: int
    ) -> None:
        self.tensors.append(
            StoredTensor(
                name=name,
                dtype=_dtype(dtype),
                shape=shape,
                offset=offset,
                length=self._file.tell() - offset,
            )
        )


def _dtype(dtype: np.dtype[np.generic]) -> Dtype:
    names: dict[str, Dtype] = {
        "float32": "float32",
        "float16": "float16",
        "int8": "int8",
        "uint8": "uint8",
    }
    return names[dtype.name]


def _chunks(tensor: ir.ExternalTensor) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Rows of a matrix, a few at a time: (start, stop, float32 [stop - start, inputs])."""
    outputs, inputs = _shape(tensor)
    step = max(1, _CHUNK_VALUES // max(1, inputs))
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        rows = _read(tensor, start * inputs, (stop - start) * inputs)
        yield start, stop, rows.reshape(stop - start, inputs)


def _shape(tensor: ir.ExternalTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape.numpy())


def _read_all(tensor: ir.ExternalTensor) -> NDArray[np.float32]:
    shape = _shape(tensor)
    return _read(tensor, 0, int(np.prod(shape, dtype=np.int64))).reshape(shape)


def _read(tensor: ir.ExternalTensor, first: int, count: int) -> NDArray[np.float32]:
    """Values [first, first + count) by plain reads: mapped pages would count as our memory."""
    values = np.fromfile(
        tensor.path, dtype="<f4", count=count, offset=(tensor.offset or 0) + 4 * first
    )
    if values.size != count:
        raise BadModel("the weights file is cut short", where=str(tensor.location))
    if not np.isfinite(values).all():
        raise BadModel("holds NaN or infinity", where=str(tensor.name))
    return values
