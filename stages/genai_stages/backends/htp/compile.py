"""All graphs of one split -> one context binary with shared weights.

    chip = chips.parse("sm8750")
    sources = [Source("prompt_ar32_cl256_1_of_3", a), Source("token_ar1_cl256_1_of_3", b)]
    result = context_binary(sources, Path("part_1_of_3.bin"), chip=chip, scratch=scratch)
    twin(sources, Path("emulation/part_1_of_3.bin"), chip=chip, scratch=scratch)    # for x86

A binary is compiled in a fresh process, since tensors are numbered across a process and the bytes
depend on it: the same DLCs, names, order and options give the same bytes. The order of the graphs
matters too, so callers keep one. What comes out is read back: chip, graph names, and every input's
and output's shape, dtype, scale and offset must be what the DLCs say.

The documented route (ONNX Runtime's `ep.context_enable`) cannot name graphs, and Genie finds graphs
by their names; hence the vendor's C API, whose layouts are pinned to one version of the wheel.
`self_test` proves them on libraries that were not tried here.

A binary with shared weights must never be loaded on x86: the emulator crashes on it. `twin` makes
one without sharing from the same DLCs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from genai_core import chips
from genai_core.chips import Chip
from genai_core.compile_options import GraphOptions
from genai_core.errors import InvalidSpec, ToolchainMismatch, ToolFailed
from genai_core.graphs import NATIVE_KV_ARS
from genai_runtime.htp import epcontext, metadata
from genai_runtime.htp.metadata import BinaryMetadata, GraphMetadata, TensorMetadata
from genai_runtime.htp.vendor import qnn
from genai_stages.backends.htp import dlc, toolrun

_TRIED = {"libQnnHtp.so": 106290201, "libQnnIr.so": 3705073, "libQnnSystem.so": 5385113}
"""Sizes in bytes of the libraries on which the layouts were proved."""


@dataclass(frozen=True)
class CompileSource:
    """One graph of the binary.

    Attributes:
        name: The graph's name in the binary; Genie reads AR, CL and split out of it.
        dlc: From `dlc.convert`.
        options: Its own compile options.
    """

    name: str
    dlc: Path
    options: GraphOptions = field(default_factory=GraphOptions)


@dataclass(frozen=True)
class CompileResult:
    """A finished binary.

    Attributes:
        path: The binary.
        metadata: What the vendor's library reads in it.
        seconds: Wall-clock time of the compiling process.
        peak_memory_bytes: Its largest resident size.
    """

    path: Path
    metadata: BinaryMetadata
    seconds: float
    peak_memory_bytes: int


def context_binary(
    sources: Sequence[CompileSource],
    out: Path,
    *,
    chip: Chip,
    scratch: Path,
    weight_sharing: bool = True,
    native_kv: bool = False,
    timeout: float = 7200.0,
) -> CompileResult:
    """Compile the graphs of one split into one binary.

    Args:
        sources: In the order that the binary keeps; names must differ.
        out: The binary to write.
        chip: What it is compiled for.
        scratch: Private folder; logs stay there.
        weight_sharing: One copy of what the graphs have in common. Such a binary runs on devices
            only.
        native_kv: The cache's inputs and outputs in the processor's own layout. Compiles, but the
            emulator ignores the layout, so nothing here can verify it.
        timeout: Seconds.

    Raises:
        InvalidSpec: Names repeat, or an AR has no native layout.
        ToolFailed: The library failed or died, or the binary is not what was asked for.
        ToolchainMismatch: Another version of the wheel is installed.
        NotRunnableHere: None is.
    """
    libraries = qnn.libraries()
    metadata.require_pinned(libraries)
    _check_names(sources, native_kv=native_kv)
    if any((libraries.folder / name).stat().st_size != size for name, size in _TRIED.items()):
        self_test(scratch / "self-test")
    return _compile(
        sources,
        out,
        chip=chip,
        scratch=scratch,
        weight_sharing=weight_sharing,
        native_kv=native_kv,
        timeout=timeout,
    )


def twin(
    sources: Sequence[CompileSource],
    out: Path,
    *,
    chip: Chip,
    scratch: Path,
    timeout: float = 7200.0,
) -> CompileResult:
    """The same graphs without shared weights and with a flat cache, for the emulator and Genie.

    Beside `out` come its metadata (`.json`) and, for each graph, an ONNX wrapper `<graph>.onnx` by
    which ONNX Runtime loads it; see genai_runtime.htp.emulation.

    Raises:
        GenAIError: As `context_binary`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    result = context_binary(
        sources, out, chip=chip, scratch=scratch, weight_sharing=False, timeout=timeout
    )
    epcontext.write(out, result.metadata)
    text = result.metadata.model_dump_json(indent=1)
    out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return result


def _check_names(sources: Sequence[CompileSource], *, native_kv: bool) -> None:
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise InvalidSpec(f"graph names must be given and differ: {twice or 'none given'}")
    levels = {source.options.optimization for source in sources}
    if len(levels) > 1:
        raise InvalidSpec(
            "the graphs of one binary must share one optimization level, not "
            f"{', '.join(str(level) for level in sorted(levels, key=str))}",
            where="graphs.optimization_type",
        )
    for name in names if native_kv else ():
        found = re.search(r"ar(\d+)_", name)
        ar = int(found[1]) if found else 0
        if ar not in NATIVE_KV_ARS:
            allowed = ", ".join(str(value) for value in NATIVE_KV_ARS)
            raise InvalidSpec(
                f"a native key-value cache does not go with AR {ar}",
                where="compilation.nativeKV",
                remedy=f"use autoRegression lengths out of {allowed}",
            )


def _compile(
    sources: Sequence[CompileSource],
    out: Path,
    *,
    chip: Chip,
    scratch: Path,
    weight_sharing: bool,
    native_kv: bool,
    timeout: float,
) -> CompileResult:
    request = {
        "soc_model": chip.soc_model,
        "weight_sharing": weight_sharing,
        "out": str(out.resolve()),
        "graphs": [
            {
                "name": source.name,
                "dlc": str(source.dlc.resolve()),
                "optimization": source.options.optimization,
                "vtcm_mb": source.options.vtcm_mb,
                "native_kv": native_kv,
            }
            for source in sources
        ],
    }
    done = toolrun.run(
        "genai_stages.backends.htp.compile_child", request, scratch=scratch, timeout=timeout
    )
    found = metadata.read(out)
    listings = [GraphMetadata.model_validate(graph) for graph in done.reply["listings"]]
    problem = differences(found, listings, chip=chip, native_kv=native_kv)
    if problem:
        raise ToolFailed(f"the binary is not what was asked for: {problem}", where=out.name)
    return CompileResult(out, found, done.seconds, done.peak_memory_bytes)


def differences(
    found: BinaryMetadata, wanted: Sequence[GraphMetadata], *, chip: Chip, native_kv: bool = False
) -> str:
    """In what a binary departs from what was asked for, as a phrase; empty if in nothing."""
    if found.soc_model != chip.soc_model:
        return f"socModel {found.soc_model} instead of {chip.soc_model} ({chip.name})"
    names, expected = {g.name for g in found.graphs}, {g.name for g in wanted}
    if names != expected:
        return f"graphs {sorted(names)} instead of {sorted(expected)}"
    for graph in wanted:
        there = found.graph(graph.name)
        for kind in ("inputs", "outputs"):
            left = {t.name: t for t in getattr(there, kind)}
            right = {t.name: _laid_out(t, native_kv=native_kv) for t in getattr(graph, kind)}
            if left.keys() != right.keys():
                return f"{graph.name} has {kind} {sorted(left)} instead of {sorted(right)}"
            for name, tensor in left.items():
                if tensor != right[name]:
                    return f"{graph.name}, {name}: {tensor!r} instead of {right[name]!r}"
    return ""


def _laid_out(tensor: TensorMetadata, *, native_kv: bool) -> TensorMetadata:
    cache = tensor.name.startswith(("past_key_", "past_value_"))
    layout = "native_8" if native_kv and cache else "flat"
    return tensor.model_copy(update={"layout": layout})


def self_test(scratch: Path) -> None:
    """Prove the pinned layouts on the libraries at hand with a small graph, in child processes.

    Shown: our graph names and the chip arrive; weight sharing makes the binary smaller; level and
    VTCM size reach the compiler (other bytes); the same request gives the same bytes.

    Raises:
        ToolchainMismatch: Something did not; the C API route must not be used.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    model = scratch / "probe.onnx"
    onnx.save(_probe(), model)
    try:
        converted = dlc.convert(model, "probe", scratch / "probe.dlc", scratch=scratch)
        made = {}
        for name, sharing, options in (
            ("plain", True, GraphOptions()),
            ("again", True, GraphOptions()),
            ("apart", False, GraphOptions()),
            ("level", True, GraphOptions(optimization=1)),
            ("memory", True, GraphOptions(vtcm_mb=2)),
        ):
            out = scratch / f"{name}.bin"
            _compile(
                [CompileSource(graph, converted.path, options) for graph in ("first", "second")],
                out,
                chip=chips.by_name("SM8650"),
                scratch=scratch,
                weight_sharing=sharing,
                native_kv=False,
                timeout=600.0,
            )
            made[name] = out.read_bytes()
    except ToolFailed as error:
        raise ToolchainMismatch(
            f"the vendor's libraries do not behave as those tried: {error.message}",
            where=error.where,
        ) from error
    failed = [
        what
        for what, holds in (
            ("equal bytes", made["plain"] == made["again"]),
            ("weight sharing", len(made["plain"]) < 0.75 * len(made["apart"])),
            ("optimization level", made["level"] != made["plain"]),
            ("VTCM size", made["memory"] != made["plain"]),
        )
        if not holds
    ]
    if failed:
        raise ToolchainMismatch(
            f"the vendor's libraries do not behave as those tried: {', '.join(failed)}",
            remedy=f"install {qnn.DISTRIBUTION} 2.7.0 from the package index",
        )


def _probe() -> onnx.ModelProto:
    """A quantized 256 x 256 MatMul followed by a Sigmoid."""
    weight = np.random.default_rng(0).integers(-100, 100, (256, 256), dtype=np.int8)
    constants: dict[str, NDArray[Any]] = {
        "scale": np.array(2e-4, np.float32),
        "zero": np.array(32768, np.uint16),
        "weight": weight,
        "weight_scale": np.full(256, 0.01, np.float32),
        "weight_zero": np.zeros(256, np.int8),
    }
    pair = ["scale", "zero"]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", *pair], ["x_f"]),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["weight_f"], axis=1
        ),
        helper.make_node("MatMul", ["x_f", "weight_f"], ["m_f"]),
        helper.make_node("QuantizeLinear", ["m_f", *pair], ["m"]),
        helper.make_node("DequantizeLinear", ["m", *pair], ["m_d"]),
        helper.make_node("Sigmoid", ["m_d"], ["y_f"]),
        helper.make_node("QuantizeLinear", ["y_f", *pair], ["y"]),
    ]
    for index, node in enumerate(nodes):
        node.name = f"probe_{index}"
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT16, [1, 8, 256])],
        [helper.make_tensor_value_info("y", TensorProto.UINT16, [1, 8, 256])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
