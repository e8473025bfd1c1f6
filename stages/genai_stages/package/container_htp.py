"""A Snapdragon container's own files: binaries in split order, what is in them, Genie's JSON."""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from genai_core import chips
from genai_core.container.adapters import read_index
from genai_core.container.container_metadata import GraphInfo, TensorInfo
from genai_core.container.genie_adapters import genie_bytes, genie_names
from genai_core.container.manifest import GENIE_FILE, ManifestGraph
from genai_core.errors import BadModel, InvalidSpec
from genai_core.facts import AdapterInputs, AdapterRanges, ModelFacts
from genai_core.operations import PackageConfig
from genai_runtime.generate import stop_tokens
from genai_runtime.htp import metadata
from genai_runtime.htp.emulation import graph_key
from genai_runtime.htp.metadata import BinaryMetadata, GraphMetadata
from genai_stages.backends.htp.genie_config import (
    EXTENSIONS_FILE,
    GenieFacts,
    genie_config,
    htp_backend_ext_config,
)
from genai_stages.input_folders import read_json
from genai_stages.package.genie_adapters import write_genie_adapters
from genai_stages.stage import Inputs
from genai_stages.twin_folder import place

_PART = re.compile(r"^part_(\d+)_of_(\d+)\.bin$")


@dataclass(frozen=True)
class GraphAdapters:
    """How the graphs of a container take adapters.

    Attributes:
        inputs: The graphs' own.
        ranges: Of these; None = they are floating point.
    """

    inputs: AdapterInputs
    ranges: AdapterRanges | None


@dataclass
class HtpParts:
    """What the binaries of a container hold."""

    files: dict[str, dict[str, GraphInfo]] = field(default_factory=dict)
    graphs: list[ManifestGraph] = field(default_factory=list)
    library: dict[str, str] = field(default_factory=dict)
    native_kv: bool = False
    warnings: list[str] = field(default_factory=list)


def collect_parts(
    inputs: Inputs,
    config: PackageConfig,
    out: Path,
    *,
    facts: ModelFacts,
    adapters: GraphAdapters | None = None,
    below: str = "",
) -> HtpParts:
    """Put the binaries into `out` and write Genie's configuration for them.

    Args:
        inputs: What compile left for each split.
        config: Names splits and chip.
        out: The container's folder; its adapters lie there already.
        facts: The model's facts.
        adapters: How the graphs take adapters; None = not at all.
        below: A folder of the container for all of it; empty = its own.

    Raises:
        BadModel: A split is missing or there twice, or a binary is for another chip.
    """
    assert config.chip is not None
    found: dict[int, Path] = {}
    counts: set[int] = set()
    for name in sorted(inputs):
        for path in sorted(inputs[name].iterdir()):
            match = _PART.match(path.name)
            if match is None:
                continue
            if int(match[1]) in found:
                raise BadModel("there twice", where=path.name)
            found[int(match[1])] = path
            counts.add(int(match[2]))
    if not found or counts != {len(found)} or sorted(found) != list(range(1, len(found) + 1)):
        raise BadModel(f"splits {sorted(found)} are not the whole model", where="package")
    parts = HtpParts()
    for index, path in sorted(found.items()):
        place(path, out / below / path.name)
        binary = _metadata(path)
        if binary.soc_model != config.chip.soc_model:
            raise BadModel(
                f"compiled for SoC {binary.soc_model}, not for {config.chip.soc_model}",
                where=path.name,
            )
        parts.library = {
            "buildId": binary.build_id,
            "coreApi": binary.core_api_version,
            "backendApi": binary.backend_api_version,
            "blob": binary.blob_version,
        }
        parts.native_kv |= any(
            tensor.layout != "flat" for graph in binary.graphs for tensor in graph.inputs
        )
        parts.files[path.name] = {graph.name: _graph(graph) for graph in binary.graphs}
        for graph in binary.graphs:
            key = graph_key(graph.name)
            parts.graphs.append(
                ManifestGraph(name=graph.name, ar=key.ar, cl=key.cl, split=index, file=path.name)
            )
    _write_genie(config, out, facts=facts, parts=parts, adapters=adapters, below=below)
    return parts


def _metadata(binary: Path) -> BinaryMetadata:
    """What compile read in the binary; read again where that file is not at hand."""
    beside = binary.with_suffix(".json")
    if beside.is_file():
        return BinaryMetadata.model_validate_json(beside.read_bytes())
    return metadata.read(binary)


def _graph(graph: GraphMetadata) -> GraphInfo:
    def infos(tensors: tuple[metadata.TensorMetadata, ...]) -> dict[str, TensorInfo]:
        return {
            tensor.name: TensorInfo(
                shape=list(tensor.shape),
                dtype=tensor.dtype,
                scale=tensor.scale,
                offset=tensor.offset,
            )
            for tensor in tensors
        }

    return GraphInfo(inputs=infos(graph.inputs), outputs=infos(graph.outputs))


def _write_genie(
    config: PackageConfig,
    out: Path,
    *,
    facts: ModelFacts,
    parts: HtpParts,
    adapters: GraphAdapters | None,
    below: str,
) -> None:
    """Genie's two files; a model that Genie cannot run gets none, and a warning that says why."""
    assert config.chip is not None
    chip = chips.Chip(
        name=config.target, soc_model=config.chip.soc_model, dsp_arch=config.chip.dsp_arch
    )
    extensions = htp_backend_ext_config(chip)
    _write(out / EXTENSIONS_FILE, extensions)
    index = read_index(out)
    try:
        binaries = [posixpath.join(below, name) for name in parts.files]
        known = _genie_facts(config, out, facts=facts, binaries=binaries)
        if adapters is not None:
            known = replace(known, adapters=genie_names(index), alpha_input=adapters.inputs.alpha)
        values = genie_config(
            known,
            generation=(
                read_json(out / "generation_config.json")
                if (out / "generation_config.json").is_file()
                else None
            ),
        )
    except (BadModel, InvalidSpec) as error:
        parts.warnings.append(f"no {GENIE_FILE} for Genie: {error}")
        return
    (out / below / GENIE_FILE).write_bytes(genie_bytes(values))
    if adapters is not None:
        write_genie_adapters(out, index, adapters.inputs, ranges=adapters.ranges)


def _genie_facts(
    config: PackageConfig, out: Path, *, facts: ModelFacts, binaries: list[str]
) -> GenieFacts:
    if not (out / "tokenizer.json").is_file():
        raise BadModel("the model has no tokenizer.json", where="tokenizer")
    if not (out / "config.json").is_file():
        raise BadModel("the model has none", where="config.json")
    if len(facts.rope) != 1:
        raise BadModel(f"the model has {len(facts.rope)} rotary tables, Genie knows one",
                       where="rope")  # fmt: skip
    source = read_json(out / "config.json")
    heads = {attention.head_dim for attention in facts.attention}
    if len(heads) != 1:
        raise BadModel("heads of different sizes", where="config.json")
    ends = sorted(stop_tokens(out))
    begin = source.get("bos_token_id")
    original = source.get("original_max_position_embeddings")
    return GenieFacts(
        context_length=config.context_length,
        vocab_size=facts.vocab_size,
        head_dim=heads.pop(),
        rope=next(iter(facts.rope.values())),
        bos_token=begin if isinstance(begin, int) else (ends[0] if ends else 0),
        eos_tokens=ends,
        binaries=binaries,
        max_positions=facts.max_positions,
        original_max_positions=original if isinstance(original, int) else None,
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
