"""The container: compiled graphs, tokenizer and configuration in one folder, with its identity.

Inputs: the core graph's `facts.json` and `model.onnx`; what compile wrote (cpu: `model.onnx` and
`model.data`; htp: `part_k_of_N.bin` with its `.json`, and `emulation/` where it was made);
`fidelity.json`; from the source the encodings, tokenizer and configuration files; `draft`, the
container of a draft model or EAGLE head, where there is one; of a head, its token map; `forecast`,
what forecast_import wrote; `adapter_<number>`, and `adapters` and `ranges`, how static graphs take
them, or `case_<number>_part_<split>`, binaries that have them in them.

The manifest names every file with its digest, and its own digest is the container's revision, so
nothing measured may stand in such a file. `report.json` and `golden.json`, whose margins another
machine may round otherwise, are therefore outside the identity, like `emulation/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genai_core.canonical import digest_bytes, digest_file, digest_json
from genai_core.container.adapters import merged_folder
from genai_core.container.container_metadata import (
    ADAPTER_INPUTS_VERSION,
    FORECAST_VERSION,
    ForecastInfo,
    GraphInfo,
    Metadata,
)
from genai_core.container.manifest import (
    EMULATION_FOLDER,
    GENIE_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    REPORT_FILE,
    TOKEN_MAP_FILE,
    Manifest,
    ManifestFile,
    ManifestGraph,
    ManifestTarget,
    Report,
    outside_identity,
)
from genai_core.container.outside import report_bytes
from genai_core.errors import BadModel, DriftError, NotRunnableHere
from genai_core.facts import ModelFacts, RopeTable
from genai_core.names import DRAFT, FORECAST, Backend, Precision
from genai_core.operations import OPERATIONS, PackageConfig
from genai_core.tasks.toolchain import version_of
from genai_runtime import golden
from genai_runtime.container import container
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import CPU_MODEL_FILE, merged_twin
from genai_runtime.container.inspection import onnx_graph
from genai_runtime.generate import Generation
from genai_runtime.rope import for_context
from genai_runtime.session import Session
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.backends.cpu.cpu_model import precision_of
from genai_stages.backends.cpu.model_graph import MODEL_DATA_FILE
from genai_stages.graph.core_graph import FACTS_FILE, MODEL_FILE, read_facts
from genai_stages.ingest.model_files import ASSETS
from genai_stages.input_folders import (
    core_folder,
    find_file,
    folders_with,
    read_json,
)
from genai_stages.lora.branch_inputs import read_inputs, read_ranges
from genai_stages.measured import read_measurements
from genai_stages.operations.fidelity import RESULT_FILE
from genai_stages.package.container_adapters import place_adapters
from genai_stages.package.container_draft import head_info, place_draft
from genai_stages.package.container_forecast import place_forecast
from genai_stages.package.container_htp import GraphAdapters, HtpParts, collect_parts
from genai_stages.package.merged_cases import of_base, place_merged
from genai_stages.package.second_opinion import ask_genie
from genai_stages.package.use_cases import YARDSTICK, Asked, measure_use_cases
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.twin_folder import gather_twin, place

_TOLERANCES = {Precision.FLOAT: 0.01, Precision.INT8: 0.1, Precision.INT4: 0.3}
"""Logits: what another kernel or machine may move a margin by."""
_HTP_TOLERANCE = 0.1

Verified = Literal["Emulator", "Cpu", "Metadata"]
Prompt = tuple[str, NDArray[np.int64]]
"""Text and tokens."""


@dataclass
class _Draft:
    """What is known about a container while it is put together."""

    rope: dict[str, RopeTable]
    files: dict[str, dict[str, GraphInfo]] = field(default_factory=dict)
    graphs: list[ManifestGraph] = field(default_factory=list)
    precision: Precision | None = None
    library: dict[str, str] = field(default_factory=dict)
    native_kv: bool | None = None
    adapters: GraphAdapters | None = None
    forecast: ForecastInfo | None = None
    warnings: list[str] = field(default_factory=list)


def run(inputs: Inputs, config: PackageConfig, out: Path, context: Context) -> StageResult:
    """Write the container's folder; run it once where that is possible here."""
    # What lies in the draft's folder must not be taken for the model's.
    given, guessing = inputs, inputs.get(DRAFT)
    others = (DRAFT, FORECAST)
    inputs = {k: v for k, v in inputs.items() if not k.startswith(YARDSTICK) and k not in others}
    every, inputs = inputs, of_base(inputs)
    core = core_folder(inputs)
    facts = read_facts(core)
    draft = _Draft(rope=_tables(facts, config))
    if draft.rope != facts.rope:
        draft.warnings.append(
            f"a context of {config.context_length} tokens takes the long factors of this model's "
            "rotary table, for shorter text too: shorter contextLengths keep the short ones"
        )
    for name in ASSETS:
        source = find_file(inputs, name)
        if source is not None:
            place(source, out / name)
    if config.head is None and not (out / "tokenizer.json").is_file():
        draft.warnings.append("the model has no tokenizer.json: its container takes token ids only")
    if config.adapters:
        place_adapters(inputs, config, out)
    if config.backend is Backend.CPU:
        _cpu(inputs, out, draft)
    else:
        _htp(inputs, config, out, facts=facts, draft=draft)
    if config.head is not None:
        token_map = find_file(inputs, TOKEN_MAP_FILE)
        if token_map is not None:
            place(token_map, out / TOKEN_MAP_FILE)
    if guessing is not None:
        place_draft(guessing, out, facts, draft.files)
    if FORECAST in given:
        draft.forecast = place_forecast(given[FORECAST], out)
    metadata = Metadata(
        schema_version=_metadata_version(config, draft),
        backend=config.backend,
        architecture=facts.architecture,
        context_length=config.context_length,
        vocab_size=facts.vocab_size,
        rope=draft.rope,
        model_files=draft.files,
        head=head_info(facts, config.head),
        adapter_inputs=draft.adapters.inputs if draft.adapters else None,
        adapter_ranges=draft.adapters.ranges if draft.adapters else None,
        forecast=draft.forecast,
    )
    _write_json(out / METADATA_FILE, metadata.model_dump(mode="json", exclude_none=True))
    if config.merged is not None:
        draft.warnings += place_merged(every, config, out, facts=facts, base=metadata)
    manifest = _manifest(inputs, config, out, facts=facts, draft=draft)
    (out / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    opened = container.load(out, digest_of=None)  # hashed a moment ago
    if config.head is None:
        verified, speed = _try(opened, config, draft, threads=context.threads)
    else:  # compile has run it; alone it answers nothing
        verified, speed = "Cpu", {}
    if config.adapters and verified != "Metadata":
        yardstick = {k: v for k, v in given.items() if k.startswith(YARDSTICK)}
        speed = {**speed, "useCases": _use_cases(opened, yardstick, config, draft, context)}
    fidelity = find_file(inputs, RESULT_FILE)
    measured = read_measurements(every)
    report = Report(
        verified=verified,
        fidelity={} if fidelity is None else read_json(fidelity),
        linears=_linears(measured),
        stages=measured | ({"package": speed} if speed else {}),
        tools={name: version_of(name) for name in _libraries()},
        warnings=draft.warnings,
    )
    (out / REPORT_FILE).write_bytes(report_bytes(report))
    return StageResult(
        facts={
            "revision": manifest.revision(),
            "sizeBytes": sum(file.size for file in manifest.files.values()),
            "verified": report.verified,
        },
        notes=speed,
        warnings=tuple(draft.warnings),
        # Measured, so never twice the same; whoever compares two packages compares the rest.
        semantic={REPORT_FILE: digest_bytes(REPORT_FILE.encode())},
    )


def _metadata_version(config: PackageConfig, draft: _Draft) -> int:
    """The oldest version that has all fields."""
    if draft.forecast is not None:
        return FORECAST_VERSION
    if draft.adapters is not None:
        return ADAPTER_INPUTS_VERSION
    return 1 if config.head is None else 2


def _linears(measured: Mapping[str, Any]) -> dict[str, int]:
    """How many linears compile has put into which form (cpu)."""
    found = [one.get("linears") for task, one in measured.items() if task.startswith("compile/")]
    return next((dict(one) for one in found if isinstance(one, dict)), {})


def _tables(facts: ModelFacts, config: PackageConfig) -> dict[str, RopeTable]:
    return {name: for_context(one, config.context_length) for name, one in facts.rope.items()}


def _cpu(inputs: Inputs, out: Path, draft: _Draft) -> None:
    folders = [f for f in folders_with(inputs, MODEL_DATA_FILE) if (f / CPU_MODEL_FILE).is_file()]
    # A source may bring files of the same names; a model of ours says its precision.
    for folder in folders:
        draft.precision = precision_of(folder / CPU_MODEL_FILE)
        if draft.precision is None:
            continue
        for name in (CPU_MODEL_FILE, MODEL_DATA_FILE):
            place(folder / name, out / name)
        draft.files[CPU_MODEL_FILE] = {"model": onnx_graph(out / CPU_MODEL_FILE)}
        return
    raise BadModel("no input is a compiled cpu model", where="package")


def _htp(
    inputs: Inputs, config: PackageConfig, out: Path, *, facts: ModelFacts, draft: _Draft
) -> None:
    if "adapters" in inputs:
        ranges = read_ranges(inputs["ranges"]) if "ranges" in inputs else None
        draft.adapters = GraphAdapters(read_inputs(inputs["adapters"]), ranges)
    parts: HtpParts = collect_parts(inputs, config, out, facts=facts, adapters=draft.adapters)
    draft.files, draft.graphs = parts.files, parts.graphs
    draft.library = parts.library
    draft.native_kv = parts.native_kv
    draft.warnings += parts.warnings
    gather_twin(inputs, out / EMULATION_FOLDER, draft.rope)


def _manifest(
    inputs: Inputs, config: PackageConfig, out: Path, *, facts: ModelFacts, draft: _Draft
) -> Manifest:
    core = core_folder(inputs)
    encodings = find_file(inputs, "*.encodings")
    model: dict[str, Any] = {
        "core": digest_json([digest_file(core / MODEL_FILE), digest_file(core / FACTS_FILE)]),
        "layers": facts.layers,
        "hiddenSize": facts.hidden_size,
        "vocabSize": facts.vocab_size,
        "parameters": facts.parameters,
    }
    if encodings is not None:
        model["encodings"] = digest_file(encodings)
    chip = config.chip
    made = Manifest(
        model=model,
        architecture=facts.architecture,
        target=ManifestTarget(
            name=config.target,
            backend=config.backend,
            soc_model=chip.soc_model if chip else None,
            dsp_arch=chip.dsp_arch if chip else None,
            precision=draft.precision,
            library=draft.library,
            native_kv=draft.native_kv,
            device_verified=None if config.backend is Backend.CPU else False,
        ),
        context_length=config.context_length,
        graphs=draft.graphs,
        splits=max(1, len(config.splits)),
        files={
            name: ManifestFile(sha256=digest_file(path), size=path.stat().st_size)
            for name, path in _identity_files(out)
        },
    )
    if not config.adapters:
        return made
    return made.with_base()


def _identity_files(out: Path) -> list[tuple[str, Path]]:
    paths = [path for path in sorted(out.rglob("*")) if path.is_file()]
    named = [(path.relative_to(out).as_posix(), path) for path in paths]
    return [(name, path) for name, path in named if not outside_identity(name)]


def _try(
    opened: container.Container, config: PackageConfig, draft: _Draft, *, threads: int
) -> tuple[Verified, dict[str, Any]]:
    """Run the finished container once and record golden prompts.

    Returns:
        What it was run on, and what was measured.

    Raises:
        DriftError: It yields NaN or infinity.
    """
    prompts = _prompts(opened, config, draft)
    try:
        session = open_session(opened, threads=threads)
    except NotRunnableHere as error:
        if opened.runnable:
            draft.warnings.append(f"the emulation twin was not run: {error.message}")
        if prompts:
            draft.warnings.append(
                "golden prompts could not be recorded: nothing here can run this container"
            )
        return "Metadata", {}
    try:
        first = session.forward(np.arange(min(4, session.vocab_size, session.context_length)))
        if not np.isfinite(first).all():
            raise DriftError("the container yields NaN or infinity", where=config.target)
        speed = _record(opened, session, config, prompts=prompts, precision=draft.precision)
    finally:
        session.close()
    genie_config = opened.folder / GENIE_FILE
    if prompts and config.backend is Backend.HTP and genie_config.is_file():
        recorded = golden.Golden.model_validate_json((opened.folder / GOLDEN_FILE).read_bytes())
        seen, warning = ask_genie(opened.folder, genie_config, recorded)
        speed |= seen
        draft.warnings += [warning] if warning else []
    return ("Cpu" if config.backend is Backend.CPU else "Emulator"), speed


def _record(
    opened: container.Container,
    session: Session,
    config: PackageConfig,
    *,
    prompts: list[Prompt],
    precision: Precision | None,
) -> dict[str, Any]:
    """Write golden.json; the speed of the last answer."""
    if not prompts:
        return {}
    answers: list[Generation] = []
    recorded = golden.record(
        session,
        prompts,
        max_tokens=config.golden_max_tokens,
        stop_tokens=opened.stop_tokens(),
        tolerance=_tolerance(precision),
        on_answer=answers.append,
    )
    (opened.folder / GOLDEN_FILE).write_bytes(recorded.to_bytes())
    metrics = answers[-1].metrics
    return {
        "promptTokensPerSecond": round(metrics.prompt_tokens_per_second, 1),
        "generationTokensPerSecond": round(metrics.generation_tokens_per_second, 1),
    }


def _use_cases(
    opened: container.Container,
    yardstick: Inputs,
    config: PackageConfig,
    draft: _Draft,
    context: Context,
) -> dict[str, Any]:
    """Run each adapter and use case; their golden prompts go beside the base's."""
    asked = Asked(
        _prompts(opened, config, _Draft(rope={})),
        config.golden_max_tokens,
        opened.stop_tokens(),
        _tolerance(draft.precision),
    )
    found = measure_use_cases(
        opened, yardstick, asked, scratch=context.scratch / "drift", threads=context.threads
    )
    draft.warnings += found.warnings
    recorded = opened.golden()
    if recorded is not None:
        (opened.folder / GOLDEN_FILE).write_bytes(recorded.with_worn(found.golden).to_bytes())
    genie_config = opened.folder / GENIE_FILE
    if recorded is None or not found.golden or not genie_config.is_file():
        return found.drift
    recorded = recorded.with_worn(found.golden)
    # One of them shows that Genie finds the files, and their order in the graphs' inputs; binaries
    # of their own are each asked.
    for name in found.golden if config.merged else [next(iter(found.golden))]:
        twin = f"{EMULATION_FOLDER}/{merged_twin(name)}" if config.merged else None
        if config.merged:
            genie_config = opened.folder / merged_folder(name) / GENIE_FILE
        seen, warning = ask_genie(opened.folder, genie_config, recorded, worn=name, twin=twin)
        draft.warnings += [warning] if warning else []
        found.drift[name] = {**found.drift.get(name, {}), **seen}
    return found.drift


def _tolerance(precision: Precision | None) -> float:
    return _HTP_TOLERANCE if precision is None else _TOLERANCES[precision]


def _prompts(opened: container.Container, config: PackageConfig, draft: _Draft) -> list[Prompt]:
    if not config.golden_prompts:
        return []
    tokenizer: TextTokenizer | None = opened.tokenizer()
    if tokenizer is None:
        draft.warnings.append("golden prompts need a tokenizer.json, which the model does not have")
        return []
    encoded = [(text, tokenizer.encode(text)) for text in config.golden_prompts]
    for text, tokens in encoded:
        if tokens.size == 0 or tokens.size + config.golden_max_tokens > config.context_length:
            raise BadModel(
                f"{tokens.size} tokens and {config.golden_max_tokens} new ones do not fit into "
                f"{config.context_length}",
                where=f"golden.prompts: {text[:40]!r}",
                remedy="shorten it, or lower golden.maxTokens",
            )
    return encoded


def _libraries() -> list[str]:
    return sorted({name for operation in OPERATIONS for name in operation.libraries})


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
