"""An older program refuses a newer container by its version; a newer one reads an older one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field

from genai_core.canonical import canonical_json
from genai_core.container.manifest import SCHEMA_VERSION, Manifest, read_manifest
from genai_core.container.versions import read_versioned
from genai_core.errors import BadInput

WRITTEN: dict[str, Any] = {
    "schema_version": 1,
    "model": {"digest": "sha256:00"},
    "architecture": "llama",
    "target": {"name": "cpu", "backend": "Cpu", "library": {}},
    "context_length": 8,
    "graphs": [],
    "splits": 1,
    "files": {"model.onnx": {"sha256": "0" * 64, "size": 1}},
}


class NewerManifest(Manifest):
    """The manifest as a later version may have it: with a field more."""

    adapters: list[str] | None = None


def test_read_manifest_refuses_by_version_when_the_container_is_newer() -> None:
    newer = WRITTEN | {"schema_version": SCHEMA_VERSION + 1, "adapters": ["a"], "files": "moved"}
    with pytest.raises(BadInput) as caught:
        read_manifest(json.dumps(newer), where="box/manifest.json")
    told = str(caught.value)
    assert f"schema_version {SCHEMA_VERSION + 1}" in told
    assert f"up to {SCHEMA_VERSION}" in told
    assert told.startswith("box/manifest.json: ")
    assert "upgrade" in told
    assert "adapters" not in told


def test_read_manifest_refuses_a_base_that_is_another_containers() -> None:
    adapter = {"adapters/a.safetensors": {"sha256": "1" * 64, "size": 1}}
    plain = read_manifest(json.dumps(WRITTEN))
    files = {**WRITTEN["files"], **adapter}
    worn = WRITTEN | {"schema_version": 2, "files": files, "base": plain.revision()}
    assert read_manifest(json.dumps(worn)).base_digest() == plain.revision()
    other = worn | {"files": {"model.onnx": {"sha256": "2" * 64, "size": 1}, **adapter}}
    with pytest.raises(BadInput, match="base is not the digest of the files without adapters"):
        read_manifest(json.dumps(other))


def test_a_newer_program_reads_an_older_manifest_and_keeps_its_revision() -> None:
    older = read_manifest(json.dumps(WRITTEN))
    newer = read_versioned(
        NewerManifest, json.dumps(WRITTEN), newest=SCHEMA_VERSION + 1, where="manifest.json"
    )
    assert newer.schema_version == 1
    assert newer.adapters is None
    assert newer.revision() == older.revision()
    written = newer.model_dump(mode="json", exclude_none=True)
    assert canonical_json(written) == canonical_json(WRITTEN)


def test_a_newer_program_reads_its_own_fields() -> None:
    content = WRITTEN | {"schema_version": SCHEMA_VERSION + 1, "adapters": ["a"]}
    read = read_versioned(
        NewerManifest, json.dumps(content), newest=SCHEMA_VERSION + 1, where="manifest.json"
    )
    assert read.adapters == ["a"]


def test_read_versioned_takes_a_file_without_a_version_as_the_first() -> None:
    assert read_versioned(Small, '{"name": "x"}', newest=1, where="small.json").schema_version == 1


class Small(BaseModel):
    schema_version: int = Field(default=1, ge=1)
    name: str


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"schema_version": "one", "name": "x"}', "schema_version: "),
        ('{"schema_version": 0, "name": "x"}', "schema_version: "),
        ('{"schema_version": 1}', "name: Field required"),
    ],
)
def test_read_versioned_says_what_is_wrong_when_a_file_is_broken(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_versioned(Small, text, newest=1, where="small.json")
