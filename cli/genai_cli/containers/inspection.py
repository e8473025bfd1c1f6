"""What `genai inspect` shows of the runtime's description."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from genai_cli.containers.choice import the_container
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, table
from genai_cli.display.words import counted, size
from genai_cli.engine.work_folders import known_digests
from genai_cli.settings import ProgramSettings
from genai_runtime.container.inspection import describe

__all__ = ["inspect"]

_SHOWN = 24
_LABELS = {
    "contextLength": "context length",
    "vocabSize": "vocabulary",
    "runsHere": "runs here",
    "runsBy": "runs by",
    "quantUpdatableMode": "update mode",
    "merged": "own binaries",
}


def inspect(path: Path, settings: ProgramSettings) -> int:
    """Print what a container or artifact holds; returns the exit code."""
    description = describe(the_container(path), digest_of=known_digests().digest)
    if settings.json:
        emit(description)
        return 0
    console = PlainConsole(highlight=False)
    for name, value in _facts(description):
        console.print(
            Text.assemble((f"{_LABELS.get(name, name):15}", "dim"), value), soft_wrap=True
        )
    files = description.get("files")
    if isinstance(files, Mapping):
        console.print(Text("files", style="bold"))
        for name, count in files.items():
            console.print(f"  {size(count):>8}  {name}", markup=False, soft_wrap=True)
    for file, graphs in _model_files(description).items():
        for name, graph in graphs.items():
            title = name if file in {"", name} else f"{name} ({file})"
            _print_graph(console, title, graph)
    for entry in description.get("golden", []):
        shown = entry["prompt"] or entry["promptTokens"]
        text = f"{shown!r} -> {len(entry['tokens'])} tokens"
        console.print(Text.assemble((f"{'golden':15}", "dim"), text), soft_wrap=True)
    sys.stdout.flush()
    return 0


def _facts(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Everything that is one value, under its own name."""
    facts: list[tuple[str, str]] = []
    for name, value in description.items():
        if name == "sizeBytes":
            facts.append(("size", size(value)))
        elif isinstance(value, bool):
            facts.append((name, "yes" if value else "no"))
        elif name == "path":
            continue
        elif isinstance(value, str | int | float):
            facts.append((name, str(value)))
        elif isinstance(value, Mapping) and name in {"target", "model"}:
            facts.append((name, ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v != {})))
        elif isinstance(value, Mapping) and name == "merged":
            facts.append((name, ", ".join(f"{k} {size(v)}" for k, v in value.items())))
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            facts.append((name, ", ".join(value)))
        elif name == "record" and isinstance(value, Mapping):
            facts += [(key, str(value.get(key, "-"))) for key in ("operation", "source", "hash")]
            facts += [("config", f"{k} = {v}") for k, v in dict(value.get("config", {})).items()]
    report = description.get("report") or {}
    if "verified" in report:
        facts.append(("verified", str(report["verified"])))
    if linears := report.get("linears"):
        facts.append(("linears", ", ".join(f"{count} {form}" for form, count in linears.items())))
    for name, value in (report.get("fidelity") or {}).items():
        if isinstance(value, int | float | str):
            facts.append(("fidelity", f"{name} {_plain(value)}"))
        elif name == "children":
            facts += [
                ("fidelity", f"AR {ar}: {_listed(measured)}") for ar, measured in value.items()
            ]
    facts += [
        ("drift", f"{name}: {_plain(measured)}") for name, measured in _drifts(report).items()
    ]
    facts += [("warning", text) for text in report.get("warnings") or []]
    return facts


def _drifts(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of each adapter and use case, as package measured it."""
    package = (report.get("stages") or {}).get("package")
    cases = package.get("useCases") if isinstance(package, Mapping) else None
    return cases if isinstance(cases, Mapping) else {}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) + "}"
    return str(value)


def _model_files(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if "modelFiles" in description:
        return dict(description["modelFiles"])
    graphs = description.get("graphs")
    if isinstance(graphs, Mapping):
        return {"": dict(graphs)}
    if "inputs" in description and "outputs" in description:
        return {"": {"graph": description}}
    return {}


def _print_graph(console: Console, title: str, graph: Mapping[str, Any]) -> None:
    console.print(Text(title, style="bold"), soft_wrap=True)
    rows: list[tuple[str, ...]] = []
    for way in ("inputs", "outputs"):
        tensors = graph.get(way, {})
        for index, (name, tensor) in enumerate(tensors.items()):
            if index == _SHOWN:
                rows.append(
                    ("", f"and {counted(len(tensors) - _SHOWN, 'more tensor')}", "", "", "")
                )
                break
            scale = tensor.get("scale")
            encoded = "" if scale is None else f"scale {scale:.6g} offset {tensor.get('offset', 0)}"
            shape = "[" + ",".join(map(str, tensor.get("shape", []))) + "]"
            rows.append((f"  {way[:-1]}", name, tensor.get("dtype", ""), shape, encoded))
    sys.stdout.flush()
    if rows:
        table(("",) * 5, rows)
