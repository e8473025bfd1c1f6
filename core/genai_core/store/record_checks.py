"""What a record must say to be believed: its own key, and a container's files as its manifest.

Neither makes a stranger's store safe to read: who may write a store decides what its readers get
(docs/stores.md). A record that was put under another task's key, or whose container is not the
one that its revision names, is no result of that task.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from genai_core.container.manifest import MANIFEST_FILE, Manifest, outside_identity, read_manifest
from genai_core.errors import BadInput, CorruptBlob
from genai_core.operations import OPERATIONS
from genai_core.store.blobs import Blobs
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Output, Record

__all__ = ["container_fault", "container_miss", "key_fault", "manifest_fault"]

log = logging.getLogger("genai_core.store")

_LARGEST_MANIFEST = 16 << 20
"""Bytes; that of a container with 64 splits and 100 adapters has 0.3 MB."""


def key_fault(record: Record) -> str | None:
    """Return why a record's key is not that of what it says, or None where it is.

    A record does not say with which code version it was made, so the versions up to today's are
    tried. Operations that are not in the table (`resolve`, whose key holds a listing that the
    record leaves out, and those of newer versions) are not judged.
    """
    versions = [row.code_version for row in OPERATIONS if row.name == record.operation]
    for version in range(max(versions, default=0), 0, -1):
        try:
            key = task_key(
                record.operation,
                version,
                toolchain_id=record.toolchain.id,
                config=record.config,
                inputs=record.inputs,
            )
        except ValueError:  # a number that JSON cannot hold
            break
        if key == record.key:
            return None
    return "its key is not that of its options and inputs" if versions else None


def manifest_fault(manifest: Manifest, outputs: Mapping[str, Output]) -> str | None:
    """Return which file of a container its manifest does not vouch for, or None.

    Args:
        manifest: Of the container.
        outputs: Relative path -> file, as the package task's record has them.
    """
    for name, file in manifest.files.items():
        output = outputs.get(name)
        if output is None:
            return f"{name} is in its manifest and not in its record"
        if (output.sha256, output.size) != (file.sha256, file.size):
            return f"{name} is another file than its manifest says"
    for name in outputs:
        if name not in manifest.files and not outside_identity(name):
            return f"{name} is not in its manifest"
    return None


def container_fault(record: Record, store: Blobs) -> str | None:
    """Return why a package record's files are not the container that its revision names, or None.

    Records without a manifest are other tasks'; nothing is said about them.

    Raises:
        CorruptBlob: The manifest itself is missing or wrong.
        BadInput: The manifest is newer than this program, or no manifest.
    """
    manifest = record.outputs.get(MANIFEST_FILE)
    if manifest is None or record.operation != "package":
        return None
    if manifest.size > _LARGEST_MANIFEST:
        raise CorruptBlob(
            f"its manifest has {manifest.size} bytes", where=f"package/{record.key[:12]}"
        )
    data = store.read_blob(Blob(sha256=manifest.sha256, size=manifest.size))
    source = f"package {record.key[:12]}: {MANIFEST_FILE}"
    read = read_manifest(data, where=source)
    told = record.facts.get("revision")
    if told is not None and told != read.revision():
        return f"it tells of {told}, and its manifest is {read.revision()}"
    return manifest_fault(read, record.outputs)


def container_miss(record: Record, store: Blobs) -> str | None:
    """Return why a container's record is no hit, or None; see `container_fault`.

    Every look-up asks, so nobody is told a revision whose files are others', and the next writer
    heals the record.
    """
    try:
        fault = container_fault(record, store)
    except (CorruptBlob, BadInput) as error:
        return f"its manifest cannot be read: {error.message}"
    if fault is None:
        return None
    where = f"{store.location}: {record.operation}/{record.key[:12]}"
    log.warning("%s: its record does not name the container that was built: %s", where, fault)
    return f"its record does not name the container that was built: {fault}"
