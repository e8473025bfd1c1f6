"""What vouches for the files of a container that are outside its revision: its report.

The manifest names what a container is. Golden prompts and the emulation twin, which another machine
may write otherwise, are none of its files. So whoever hands a container out puts their digests, and
the manifest's own, into `report.json`, which has a digest of its own bytes: a byte that a disk or a
copy changed is noticed. It is no signature: who may write the folder may write the report too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from genai_core.canonical import digest_bytes, digest_file
from genai_core.container.manifest import REPORT_FILE, ManifestFile, Report, outside_identity
from genai_core.files.json_budgets import DOCUMENT
from genai_core.files.paths import RelativePath

__all__ = ["read_outside", "report_bytes", "vouch_for", "vouching"]

_FILES = TypeAdapter(dict[RelativePath, ManifestFile])
_BLANK = "0" * 64
_OWN_DIGEST = re.compile(rb'\n "sha256": "([0-9a-f]{64})"')
"""In `report_bytes`: members of the report itself have one space in front, and no text has a line
break."""


def report_bytes(report: Report) -> bytes:
    """What stands in `report.json`; with its own digest where it vouches for other files."""
    value: dict[str, Any] = report.model_dump(mode="json", exclude_none=True, exclude={"sha256"})
    if report.outside is not None:
        value["sha256"] = _BLANK
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    data = f"{text}\n".encode()
    if report.outside is None:
        return data
    return _OWN_DIGEST.sub(b'\n "sha256": "' + digest_bytes(data).encode() + b'"', data, count=1)


def vouching(report: bytes, outside: Mapping[RelativePath, ManifestFile]) -> bytes:
    """A report that vouches for these files.

    Raises:
        ValueError: It is no report.
    """
    read = Report.model_validate_json(report)
    return report_bytes(read.model_copy(update={"outside": dict(outside)}))


def vouch_for(folder: Path) -> None:
    """Let the report of a container vouch for what lies outside its revision now.

    A report that is not there, or no report, stays as it is.
    """
    path = folder / REPORT_FILE
    try:
        data = path.read_bytes()
        read = Report.model_validate_json(data)
    except (OSError, ValueError):
        return
    files = [(file.relative_to(folder).as_posix(), file) for file in sorted(folder.rglob("*"))]
    outside = {
        name: ManifestFile(sha256=digest_file(file), size=file.stat().st_size)
        for name, file in files
        if name != REPORT_FILE and outside_identity(name) and file.is_file()
    }
    path.write_bytes(report_bytes(read.model_copy(update={"outside": outside})))


def read_outside(data: bytes) -> dict[RelativePath, ManifestFile] | None:
    """The files that a report vouches for; None = it vouches for none, as older ones do.

    Args:
        data: `report.json`, of this version or another.

    Raises:
        ValueError: Its bytes are not those that were written.
    """
    value = json.loads(DOCUMENT.within(data))
    own = _OWN_DIGEST.search(data)
    if own is None:
        if isinstance(value, dict) and "outside" in value:
            raise ValueError("its own digest is not there")
        return None
    blank = data[: own.start(1)] + _BLANK.encode() + data[own.end(1) :]
    if digest_bytes(blank) != own[1].decode():
        raise ValueError("its bytes are not those of its own digest")
    found = _FILES.validate_python(value.get("outside"))
    if strange := next((name for name in found if not outside_identity(name)), None):
        raise ValueError(f"{strange} is none of the files outside the revision")
    return found
