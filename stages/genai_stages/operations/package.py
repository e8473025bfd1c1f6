"""The container: compiled graphs, tokenizer and configuration in one folder, with its identity.

Inputs: the core graph's `facts.json` and `model.onnx`; what compile wrote (cpu: `model.onnx` and
`model.data`; htp: `part_k_of_N.bin` with its `.json`, and `emulation/` where it was made);
`fidelity.json`; from the source the encodings, tokenizer and configuration files; `draft`, the
container of a draft model or EAGLE head, where there is one; of a head, its token map; `forecast`
and `vision`, what forecast_import and vision_import wrote; `adapter_<number>`, and `adapters` and
`ranges`, how static graphs take them, or `case_<number>_part_<split>`, binaries that have them in
them.

The manifest names every file with its digest, and its own digest is the container's revision, so
nothing measured may stand in such a file. `report.json` and `golden.json`, whose margins another
machine may round otherwise, are therefore outside the identity, like `emulation/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_core.canonical import digest_bytes
from genai_core.container.container_metadata import (
    ADAPTER_INPUTS_VERSION,
    FORECAST_VERSION,
    Metadata,
)
from genai_core.container.manifest import (
    MANIFEST_FILE,
    METADATA_FILE,
    REPORT_FILE,
    TOKEN_MAP_FILE,
    Report,
)
from genai_core.container.outside import report_bytes
from genai_core.facts import ModelFacts, RopeTable
from genai_core.names import DRAFT, FORECAST, VISION, Backend
from genai_core.operations import OPERATIONS, PackageConfig
from genai_core.tasks.toolchain import version_of
from genai_runtime.container import container
from genai_runtime.rope import for_context
from genai_stages.graph.core_graph import read_facts
from genai_stages.ingest.model_files import ASSETS
from genai_stages.input_folders import core_folder, find_file, read_json
from genai_stages.measured import read_measurements
from genai_stages.operations.fidelity import RESULT_FILE
from genai_stages.package.container_adapters import place_adapters
from genai_stages.package.container_draft import head_info, place_draft
from genai_stages.package.container_forecast import place_forecast
from genai_stages.package.container_vision import place_vision
from genai_stages.package.contents import Contents, child_input, place_cpu_model, place_htp_parts
from genai_stages.package.first_run import run_once, run_use_cases
from genai_stages.package.identity import identify
from genai_stages.package.merged_cases import of_base, place_merged
from genai_stages.package.use_cases import YARDSTICK
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.twin_folder import place


def run(inputs: Inputs, config: PackageConfig, out: Path, context: Context) -> StageResult:
    """Write the container's folder; run it once where that is possible here."""
    # What lies in the draft's folder must not be taken for the model's.
    given, guessing = inputs, inputs.get(DRAFT)
    others = (DRAFT, FORECAST, VISION, *map(child_input, config.children))
    inputs = {k: v for k, v in inputs.items() if not k.startswith(YARDSTICK) and k not in others}
    every, inputs = inputs, of_base(inputs)
    core = core_folder(inputs)
    facts = read_facts(core)
    contents = Contents(rope=_tables(facts, config))
    if contents.rope != facts.rope:
        contents.warnings.append(
            f"a context of {config.context_length} tokens takes the long factors of this model's "
            "rotary table, for shorter text too: shorter contextLengths keep the short ones"
        )
    for name in ASSETS:
        source = find_file(inputs, name)
        if source is not None:
            place(source, out / name)
    if config.head is None and not (out / "tokenizer.json").is_file():
        contents.warnings.append(
            "the model has no tokenizer.json: its container takes token ids only"
        )
    if config.adapters:
        place_adapters(inputs, config, out)
    if config.backend is Backend.CPU:
        place_cpu_model(inputs, out, contents)
    else:
        place_htp_parts(inputs, config, out, facts=facts, contents=contents)
    if config.head is not None:
        token_map = find_file(inputs, TOKEN_MAP_FILE)
        if token_map is not None:
            place(token_map, out / TOKEN_MAP_FILE)
    if guessing is not None:
        place_draft(guessing, out, facts, contents.files)
    if FORECAST in given:
        contents.forecast = place_forecast(given[FORECAST], out)
    if VISION in given:
        place_vision(given[VISION], out)
    metadata = _metadata(config, facts, contents)
    _write_json(out / METADATA_FILE, metadata.model_dump(mode="json", exclude_none=True))
    if config.merged is not None:
        contents.warnings += place_merged(every, config, out, facts=facts, base=metadata)
    contents.children = {ar: given[child_input(ar)] for ar in config.children}
    manifest = identify(inputs, config, out, facts=facts, contents=contents)
    (out / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    opened = container.load(out, digest_of=None)  # hashed a moment ago
    if config.head is None:
        verified, speed = run_once(opened, config, contents, threads=context.threads)
    else:  # compile has run it; alone it answers nothing
        verified, speed = "Cpu", {}
    if config.adapters and verified != "Metadata":
        yardstick = {k: v for k, v in given.items() if k.startswith(YARDSTICK)}
        speed = {**speed, "useCases": run_use_cases(opened, yardstick, config, contents, context)}
    fidelity = find_file(inputs, RESULT_FILE)
    measured = read_measurements(every)
    report = Report(
        verified=verified,
        fidelity={} if fidelity is None else read_json(fidelity),
        linears=_linears(measured),
        stages=measured | ({"package": speed} if speed else {}),
        tools={name: version_of(name) for name in _libraries()},
        warnings=contents.warnings,
    )
    (out / REPORT_FILE).write_bytes(report_bytes(report))
    return StageResult(
        facts={
            "revision": manifest.revision(),
            "sizeBytes": sum(file.size for file in manifest.files.values()),
            "verified": report.verified,
        },
        notes=speed,
        warnings=tuple(contents.warnings),
        # Measured, so never twice the same; whoever compares two packages compares the rest.
        semantic={REPORT_FILE: digest_bytes(REPORT_FILE.encode())},
    )


def _metadata(config: PackageConfig, facts: ModelFacts, contents: Contents) -> Metadata:
    return Metadata(
        schema_version=_metadata_version(config, contents),
        backend=config.backend,
        architecture=facts.architecture,
        context_length=config.context_length,
        vocab_size=facts.vocab_size,
        rope=contents.rope,
        model_files=contents.files,
        head=head_info(facts, config.head),
        adapter_inputs=contents.adapters.inputs if contents.adapters else None,
        adapter_ranges=contents.adapters.ranges if contents.adapters else None,
        forecast=contents.forecast,
    )


def _metadata_version(config: PackageConfig, contents: Contents) -> int:
    """The oldest version that has all fields."""
    if contents.forecast is not None:
        return FORECAST_VERSION
    if contents.adapters is not None:
        return ADAPTER_INPUTS_VERSION
    return 1 if config.head is None else 2


def _linears(measured: Mapping[str, Any]) -> dict[str, int]:
    """How many linears compile has put into which form (cpu)."""
    counts = [
        figures.get("linears") for task, figures in measured.items() if task.startswith("compile/")
    ]
    return next((dict(count) for count in counts if isinstance(count, dict)), {})


def _tables(facts: ModelFacts, config: PackageConfig) -> dict[str, RopeTable]:
    return {name: for_context(table, config.context_length) for name, table in facts.rope.items()}


def _libraries() -> list[str]:
    return sorted({name for operation in OPERATIONS for name in operation.libraries})


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
