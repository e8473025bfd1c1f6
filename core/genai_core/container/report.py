"""A container's report as one build sees it.

A package task is looked up by what it packs. What was measured on the way enters no key, so where
the text, the budget or the encodings changed and the container did not, its package is another
build's, and so is the report inside. Whoever hands a container out tells it what this build
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genai_core.container.manifest import Report
from genai_core.container.outside import report_bytes
from genai_core.tasks.record import Record

__all__ = ["own_report"]

_PACKAGE = "package"


def own_report(
    packaged: bytes,
    *,
    fidelity: Mapping[str, Any] | None = None,
    records: Mapping[str, Record] | None = None,
) -> bytes:
    """The report of a container for the build that hands it out.

    Args:
        packaged: `report.json` as the package task wrote it.
        fidelity: What this build's fidelity task found; None = as packaged.
        records: Task -> record, of this build's tasks before package: their measurements and
            warnings take the place of those that were packaged. None = as packaged.

    Raises:
        ValueError: `packaged` is no report.
    """
    report = Report.model_validate_json(packaged)
    changed: dict[str, Any] = {}
    if fidelity is not None:
        changed["fidelity"] = dict(fidelity)
    if records is not None:
        stages = {
            task: {"seconds": round(one.measurements.seconds, 2), **one.measurements.notes}
            for task, one in records.items()
        }
        own = {name: value for name, value in report.stages.items() if name == _PACKAGE}
        changed["stages"] = stages | own
        said = [text for one in records.values() for text in one.measurements.warnings]
        changed["warnings"] = list(dict.fromkeys([*said, *report.warnings]))
    return report_bytes(report.model_copy(update=changed))
