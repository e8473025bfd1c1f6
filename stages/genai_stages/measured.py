"""`measured.json`: what a task and those before it measured, on its way to the container's report.

It travels beside the outputs, so that package finds the drift of every stage without knowing the
plan. It must never change a key: its semantic digest is a constant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genai_core.canonical import digest_bytes
from genai_stages.stage import Inputs, StageResult

MEASURED_FILE = "measured.json"


def read_measurements(inputs: Inputs) -> dict[str, Any]:
    """What all inputs bring: task -> its measurements."""
    found: dict[str, Any] = {}
    for name in sorted(inputs):
        path = inputs[name] / MEASURED_FILE
        if path.is_file():
            found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def note_measurements(
    task: str, inputs: Inputs, out: Path, *, result: StageResult, cost: Mapping[str, float]
) -> StageResult:
    """Write the file into a task's output and return the result that knows of it."""
    values = read_measurements(inputs) | {task: {**cost, **result.notes}}
    text = json.dumps(values, indent=1, sort_keys=True, allow_nan=False)
    (out / MEASURED_FILE).write_text(text + "\n", encoding="utf-8")
    constant = digest_bytes(MEASURED_FILE.encode())
    return replace(result, semantic={**result.semantic, MEASURED_FILE: constant})
