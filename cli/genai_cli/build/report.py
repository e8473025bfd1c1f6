"""`report.html` of a build: what its tasks and containers came to, gathered for the page."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from genai_cli.display.report_page import (
    AdapterRow,
    BuildReport,
    ContainerReport,
    TaskCost,
    report_page,
)
from genai_cli.display.words import counted, duration, size
from genai_cli.engine.events import BuildResult, PlanReady
from genai_core.container.adapters import merged_folder, read_index
from genai_core.container.manifest import MANIFEST_FILE, REPORT_FILE, Manifest, read_manifest
from genai_core.errors import BadInput
from genai_core.names import Key
from genai_core.store.delivery import Delivered
from genai_core.tasks.record import Record

__all__ = ["REPORT_PAGE", "write_report"]

REPORT_PAGE = "report.html"
"""Beside the folders of a build's containers."""

_COVERAGE = {
    "matched": ("encodings",),
    "propagated": ("derivedEncodings",),
    "calibrated": ("calibrated", "calibratedActivations"),
    "float": ("floatTensors",),
}
"""Column -> notes of tasks that count it: a number, or a list of tensors."""


def write_report(
    folder: Path,
    name: str,
    plan: PlanReady,
    result: BuildResult,
    containers: Mapping[str, Delivered],
) -> None:
    """Write the page into a build's folder; a reader sees the old one or the new one.

    A build that left nothing leaves no page either, but takes the place of an earlier one's. A page
    that cannot be written costs no build: the containers stand.
    """
    if not containers and not (folder / REPORT_PAGE).is_file():
        return
    text = report_page(_report(name, plan, result, containers))
    draft = folder / f".{REPORT_PAGE}.{uuid.uuid4().hex[:8]}"
    with suppress(OSError):
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / REPORT_PAGE)
    with suppress(OSError):
        draft.unlink()


def _report(
    name: str, plan: PlanReady, result: BuildResult, containers: Mapping[str, Delivered]
) -> BuildReport:
    failed = {failure.id: failure for failure in result.failures}
    states = {
        task.id: "failed"
        if task.id in failed
        else "run"
        if task.id in result.ran
        else "cached"
        if task.cached
        else "idle"
        for task in plan.tasks
    }
    records = _records(plan, result)
    facts = [f"{counted(result.total, 'task')}: {result.run} run, {result.cached} cached"]
    if result.failures:
        facts.append(f"{len(result.failures)} failed")
    facts.append(f"in {duration(result.seconds)}")
    if result.peak_memory_bytes:
        facts.append(f"peak memory {size(result.peak_memory_bytes)}")
    return BuildReport(
        name=name,
        headline=", ".join(facts),
        derived=plan.derived,
        tasks=plan.tasks,
        states=states,
        costs=tuple(_cost(task.id, states[task.id], records.get(task.id)) for task in plan.tasks),
        containers=tuple(
            _container(target, item, result) for target, item in sorted(containers.items())
        ),
        warnings=result.warnings,
        failures=tuple(f"{failure.id}: {failure.error}" for failure in result.failures),
    )


def _records(plan: PlanReady, result: BuildResult) -> dict[str, Record]:
    """Task -> its record, of those that stand."""
    made = {task: record for records in result.made_of.values() for task, record in records.items()}
    keys = {record.key: record for record in result.containers.values()}
    return made | {task.id: keys[Key(task.key)] for task in plan.tasks if task.key in keys}


def _cost(task: str, state: str, record: Record | None) -> TaskCost:
    if record is None:
        return TaskCost(task, state)
    cost, notes = record.measurements, record.measurements.notes
    coverage = {
        column: sum(_count(notes.get(name)) for name in names)
        for column, names in _COVERAGE.items()
        if any(name in notes for name in names)
    }
    return TaskCost(
        task=task,
        state=state,
        seconds=cost.seconds,
        peak_memory_bytes=cost.peak_memory_bytes,
        bytes_written=sum(output.size for output in record.outputs.values()),
        drift=tuple(_drifts(notes)),
        coverage=coverage,
    )


def _count(value: object) -> int:
    if isinstance(value, int):
        return value
    return len(value) if isinstance(value, list | dict) else 0


def _drifts(notes: Mapping[str, Any]) -> Iterator[str]:
    """How far a task measured its output from its input."""
    if isinstance(drift := notes.get("drift"), int | float):
        limit = notes.get("driftLimit")
        allowed = f" (allowed {limit:.2g})" if isinstance(limit, int | float) else ""
        yield f"{drift:.2g}{allowed}"
    if isinstance(noise := notes.get("sqnrDb"), int | float):
        yield f"{noise:.1f} dB"
    ratios = notes.get("signalToNoiseDb")
    values = list(ratios.values()) if isinstance(ratios, dict) else ratios
    listed = values if isinstance(values, list | tuple) else []
    if numbers := [ratio for ratio in listed if isinstance(ratio, int | float)]:
        yield f"{min(numbers):.1f} dB at least"


def _container(target: str, item: Delivered, result: BuildResult) -> ContainerReport:
    report = _json(item.path / REPORT_FILE)
    package = report.get("stages", {}).get("package", {})
    drifts = package.get("useCases", {}) if isinstance(package, dict) else {}
    manifest = read_manifest((item.path / MANIFEST_FILE).read_bytes())
    facts = {
        "target": manifest.target.name,
        "revision": item.revision,
        "size": size(item.size_bytes),
        "in": str(item.path),
        "verified": str(report.get("verified", "")),
        "context": f"{manifest.context_length} tokens",
    }
    if manifest.target.precision is not None:
        facts["precision"] = manifest.target.precision.value
    facts |= {name: text for name, text in manifest.target.library.items() if text}
    linears = report.get("linears") or {}
    if linears:
        facts["linears"] = ", ".join(f"{count} {form}" for form, count in linears.items())
    return ContainerReport(
        target=target,
        facts=facts,
        files={name: file.size for name, file in manifest.files.items()},
        fidelity={**(report.get("fidelity") or {}), **(result.fidelity.get(target) or {})},
        adapters=tuple(_adapters(item.path, manifest, drifts)),
    )


def _adapters(folder: Path, manifest: Manifest, drifts: Mapping[str, Any]) -> Iterator[AdapterRow]:
    try:
        index = read_index(folder)
    except BadInput:
        return
    for name, entry in index.adapters.items():
        what = f"rank {entry.rank}, {counted(entry.linears, 'linear')}"
        held = (folder / entry.file).stat().st_size + manifest.bytes_below(merged_folder(name))
        yield AdapterRow(name, what, size(held), drifts.get(name) or {})
    for name, case in index.use_cases.items():
        what = " + ".join(f"{worn.alpha:g} {worn.name}" for worn in case.adapters)
        held = manifest.bytes_below(merged_folder(name))
        yield AdapterRow(name, what, size(held) if held else "", drifts.get(name) or {})


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict):
            return document
    return {}
