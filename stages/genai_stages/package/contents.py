"""What a container holds: compiled graphs are placed, and what is known about them noted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from genai_core.container.container_metadata import ForecastInfo, GraphInfo
from genai_core.container.manifest import EMULATION_FOLDER, ManifestGraph
from genai_core.errors import BadModel
from genai_core.facts import ModelFacts, RopeTable
from genai_core.names import Precision
from genai_core.operations import PackageConfig
from genai_runtime.container.container import CPU_MODEL_FILE
from genai_runtime.container.inspection import onnx_graph
from genai_stages.backends.cpu.cpu_model import precision_of
from genai_stages.backends.cpu.model_graph import MODEL_DATA_FILE
from genai_stages.input_folders import folders_with
from genai_stages.lora.branch_inputs import read_inputs, read_ranges
from genai_stages.package.container_htp import GraphAdapters, HtpParts, collect_parts
from genai_stages.stage import Inputs
from genai_stages.twin_folder import gather_twin, place


@dataclass
class Contents:
    """What is known about a container while it is put together.

    Attributes:
        rope: Rotary tables for the container's context length, by name.
        files: Model file -> its graphs.
        graphs: The htp target's grid.
        precision: Of the cpu model; None on htp.
        library: The vendor's, by name -> version.
        native_kv: Whether keys and values lie as the device has them; None where it does not tell.
        adapters: How static graphs take adapters; None where they take none.
        children: AR -> the core graph's folder of the model that it has of its own.
        forecast: What forecast tokens read; None where the model has none.
        warnings: For the report.
    """

    rope: dict[str, RopeTable]
    files: dict[str, dict[str, GraphInfo]] = field(default_factory=dict)
    graphs: list[ManifestGraph] = field(default_factory=list)
    precision: Precision | None = None
    library: dict[str, str] = field(default_factory=dict)
    native_kv: bool | None = None
    adapters: GraphAdapters | None = None
    children: dict[int, Path] = field(default_factory=dict)
    forecast: ForecastInfo | None = None
    warnings: list[str] = field(default_factory=list)


def child_input(ar: int) -> str:
    """The package's input with the core graph of the model that an AR has of its own."""
    return f"child_{ar}"


def place_cpu_model(inputs: Inputs, out: Path, contents: Contents) -> None:
    """Place the compiled cpu model.

    Raises:
        BadModel: No input is one.
    """
    folders = [f for f in folders_with(inputs, MODEL_DATA_FILE) if (f / CPU_MODEL_FILE).is_file()]
    # A source may bring files of the same names; a model of ours says its precision.
    for folder in folders:
        contents.precision = precision_of(folder / CPU_MODEL_FILE)
        if contents.precision is None:
            continue
        for name in (CPU_MODEL_FILE, MODEL_DATA_FILE):
            place(folder / name, out / name)
        contents.files[CPU_MODEL_FILE] = {"model": onnx_graph(out / CPU_MODEL_FILE)}
        return
    raise BadModel("no input is a compiled cpu model", where="package")


def place_htp_parts(
    inputs: Inputs, config: PackageConfig, out: Path, *, facts: ModelFacts, contents: Contents
) -> None:
    """Place the context binaries, their metadata and the emulation twin."""
    if "adapters" in inputs:
        ranges = read_ranges(inputs["ranges"]) if "ranges" in inputs else None
        contents.adapters = GraphAdapters(read_inputs(inputs["adapters"]), ranges)
    parts: HtpParts = collect_parts(inputs, config, out, facts=facts, adapters=contents.adapters)
    contents.files, contents.graphs = parts.files, parts.graphs
    contents.library = parts.library
    contents.native_kv = parts.native_kv
    contents.warnings += parts.warnings
    gather_twin(inputs, out / EMULATION_FOLDER, contents.rope)
