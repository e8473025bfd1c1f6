"""The container's manifest (identity) and report (measurements), kept apart.

The revision of a container is the SHA-256 of its canonical manifest: nothing that a clock, a
machine or a measurement decides may stand in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genai_core import canonical
from genai_core.container.adapters import ADAPTERS_FOLDER
from genai_core.container.versions import read_versioned
from genai_core.files import json_budgets
from genai_core.files.paths import RelativePath
from genai_core.names import Backend, Precision

_FROZEN = ConfigDict(frozen=True, extra="forbid")

MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
METADATA_FILE = "metadata.json"
SCHEMA_VERSION = 3
"""The newest version of the manifest that this program reads; see `versions`."""

BASE_VERSION = 2
"""The version that has `base`."""

GENIE_BASE_VERSION = 3
"""The version whose `base` leaves `genie_config.json` out, which names adapters."""

EMULATION_FOLDER = "emulation"
"""Outside the identity: a twin of the same graphs that x86 can run."""


DRAFT_FOLDER = "draft"
"""A container of its own: the model that guesses tokens ahead."""

FORECAST_FILE = "speculation/ssd/forecast.safetensors"
"""`forecast_prefix` float32 [layers, 2 (keys, values), KV heads, P, head_dim], as a cache has them:
what forecast tokens alone see."""

TOKEN_MAP_FILE = "token_map.json"  # noqa: S105 - no password
"""Of an EAGLE head with a vocabulary of its own: an array, the model's token by the head's."""

GOLDEN_FILE = "golden.json"
GENIE_FILE = "genie_config.json"
"""What the vendor's LLM runtime reads (htp)."""
CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""How conversations are written for the model, as Hugging Face saves it."""
_ADAPTERS = f"{ADAPTERS_FOLDER}/"
_OUTSIDE = frozenset({MANIFEST_FILE, REPORT_FILE, GOLDEN_FILE})


def outside_identity(name: str) -> bool:
    """Whether a file of a container is none of its manifest's: itself, measurements, the twin."""
    return name in _OUTSIDE or name.startswith(f"{EMULATION_FOLDER}/")


class ManifestFile(BaseModel):
    """One file of the container."""

    model_config = _FROZEN

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: int


class ManifestGraph(BaseModel):
    """One static graph of one split (htp)."""

    model_config = _FROZEN

    name: str
    ar: int
    cl: int
    split: int
    file: RelativePath


class ManifestTarget(BaseModel):
    """What the container was built for."""

    model_config = _FROZEN

    name: str
    """As the user wrote it, normalised: sm8750, cpu."""
    backend: Backend
    soc_model: int | None = None
    dsp_arch: int | None = None
    precision: Precision | None = None
    """Of a cpu container's linears."""
    library: dict[str, str] = Field(default_factory=dict)
    """The vendor library's version and the blob version, least device runtime (htp)."""
    native_kv: bool | None = None
    """The cache is in the processor's own layout, which the emulator ignores (htp)."""
    device_verified: Literal[False] | None = None
    """Nothing here runs on a device (htp); see the report for what was run instead."""


class Manifest(BaseModel):
    """The identity of a container."""

    model_config = _FROZEN

    schema_version: Annotated[int, Field(ge=1)] = 1
    """The oldest version that has all the fields which stand here."""
    model: dict[str, Any]
    """Digest of the core graph and of the encodings, layers, hidden size, vocabulary."""
    architecture: str
    target: ManifestTarget
    context_length: int
    graphs: list[ManifestGraph] = Field(default_factory=list)
    splits: int = 1
    files: dict[RelativePath, ManifestFile]
    """Relative path -> file, but for `manifest.json`, `report.json`, `golden.json` (its margins are
    measured) and `emulation/`."""

    base: str | None = None
    """Where there are adapters: `base_digest`, so that one may be changed under a running server.
    Since version 2."""

    @model_validator(mode="after")
    def _base_is_its_own(self) -> Self:
        """Servers keep what they prepared by `base`, so it may not name another container's."""
        if self.base is not None and self.base != self.base_digest():
            raise ValueError("base is not the digest of the files without adapters")
        return self

    def bytes_below(self, folder: str) -> int:
        """What the files of a folder take together."""
        return sum(f.size for name, f in self.files.items() if name.startswith(f"{folder}/"))

    def revision(self) -> str:
        """`sha256:` and the digest of the canonical manifest."""
        payload = self.model_dump(mode="json", exclude_none=True)
        return f"sha256:{canonical.digest_json(payload)}"

    def base_digest(self) -> str:
        """`sha256:` and the digest of all but what names adapters.

        On cpu that is the revision where there are none.
        """
        rest = {
            name: file
            for name, file in self.files.items()
            if not name.startswith(_ADAPTERS) and name != GENIE_FILE
        }
        update = {"files": rest, "base": None, "schema_version": 1}
        return self.model_copy(update=update).revision()

    def with_base(self) -> Manifest:
        """The manifest of a container with adapters: it states its base."""
        version = GENIE_BASE_VERSION if GENIE_FILE in self.files else BASE_VERSION
        return self.model_copy(update={"base": self.base_digest(), "schema_version": version})

    def with_adapter_files(self, files: Mapping[RelativePath, ManifestFile]) -> Manifest:
        """The manifest of the same container with these files below `adapters/`, and no others.

        Without any it is the base's own: on cpu what a build without adapters writes. Graphs of a
        Snapdragon container still have the inputs then, which no such build makes, and it goes on
        to state its base: servers keep what they prepared by it.
        """
        rest = {name: file for name, file in self.files.items() if not name.startswith(_ADAPTERS)}
        update = {"files": {**rest, **files}, "base": None, "schema_version": 1}
        plain = self.model_copy(update=update)
        if not files and self.target.backend is Backend.CPU:
            return plain
        return plain.with_base()

    def to_bytes(self) -> bytes:
        """What stands in `manifest.json`."""
        value = self.model_dump(mode="json", exclude_none=True)
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()


def read_manifest(data: bytes | str, *, where: str = MANIFEST_FILE) -> Manifest:
    """The manifest of a container, of this version or an older one.

    Raises:
        BadInput: It is newer, no manifest, or more than one holds.
    """
    return read_versioned(
        Manifest, data, newest=SCHEMA_VERSION, where=where, budget=json_budgets.MANIFEST
    )


class Report(BaseModel):
    """Everything measured; never part of the identity."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    verified: Literal["Emulator", "Cpu", "Metadata"]
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Task -> what it noted: drift, unused encodings, seconds, peak memory."""
    fidelity: dict[str, Any] = Field(default_factory=dict)
    linears: dict[str, int] = Field(default_factory=dict)
    """How many linears of a cpu container are in which form: int8, int4, float."""
    tools: dict[str, str] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    outside: dict[RelativePath, ManifestFile] | None = None
    """The manifest, golden prompts and the twin: what the manifest does not name, but the report.
    Of a container that was handed out; see `outside`."""
    sha256: str | None = None
    """Of the report's own bytes, these digits zeros; stands beside `outside`."""
