"""The record of a finished task: what was asked, what came out, and what it cost.

A record is written once, last, and names every byte of its outputs by digest. Whatever follows
from the inputs alone (`outputs`, `facts`) is kept apart from what was measured on the way
(`measurements`), which no key ever reads. `builder_cache_info.json` is the same in the vendor's
form: operation, source, config as strings, hash, created_at, with ours beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
)

from genai_core.canonical import canonical_json, is_digest
from genai_core.files import json_budgets
from genai_core.files.paths import RelativePath
from genai_core.names import Digest, Key
from genai_core.tasks.keys import short_key
from genai_core.vendor_config import vendor_config

__all__ = [
    "SIDECAR_NAME",
    "Blob",
    "Measurements",
    "Output",
    "Record",
    "ToolchainUsed",
    "entry_folder",
    "flat_strings",
    "model_slug",
    "record_of_sidecar",
    "sidecar",
]

SIDECAR_NAME = "builder_cache_info.json"
RESERVED_SLUGS = frozenset(
    {"blobs", "records", "leases", "logs", "probe", "sources", "sweeps", "tmp"}
)
"""Folders of a store that a model's slug must not take."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_OPERATION = re.compile(r"[a-z][a-z0-9_]{0,31}")


def _check_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError(f"{text!r} is not a SHA-256 in lower-case hex")
    return text


def _to_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


_Digest = Annotated[Digest, AfterValidator(_check_digest)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Blob(_Frozen):
    """Bytes in a store.

    Attributes:
        sha256: Their digest.
        size: Their number.
    """

    sha256: _Digest
    size: Annotated[int, Field(ge=0)]


class Output(Blob):
    """A file that a task wrote.

    Attributes:
        semantic: Digest of what the file means, where its bytes carry a clock or a path; stands
            for the file in later keys.
    """

    semantic: _Digest | None = None

    @property
    def identity(self) -> Digest:
        """The digest that enters later keys."""
        return self.semantic or self.sha256


class ToolchainUsed(_Frozen):
    """The libraries a task computed with; `image` is noted and enters no key."""

    id: _Digest
    versions: dict[str, str] = Field(default_factory=dict)
    image: str = ""


class Measurements(_Frozen):
    """What a task cost and observed; differs from run to run, never part of an identity.

    Attributes:
        seconds: Wall time of the operation.
        peak_memory_bytes: Largest resident set of the task's process.
        notes: Free JSON: drift against the input, unused encodings, sizes.
        warnings: Sentences for the user.
        log: The task's log in the store.
    """

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    peak_memory_bytes: Annotated[int, Field(ge=0)] = 0
    notes: dict[str, JsonValue] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    log: Blob | None = None


class Record(_Frozen):
    """One committed task.

    Attributes:
        operation: Name in the table of operations.
        key: The task's key.
        model: Slug of the model: the folder under which people see the entry. Not identity.
        source: What it was made from, for people: a model's name or address. Not identity.
        config: The operation's config as JSON values, as hashed into the key.
        inputs: Input name -> {relative path: digest}, as hashed into the key.
        outputs: Relative path -> file.
        facts: JSON that later tasks or the planner read; follows from the inputs alone.
    """

    schema_name: Literal["genai.record/1"] = Field(default="genai.record/1", alias="schema")
    operation: str
    key: Annotated[Key, AfterValidator(_check_digest)]
    model: str = "model"
    source: str = ""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[str, dict[str, _Digest]] = Field(default_factory=dict)
    outputs: dict[RelativePath, Output] = Field(default_factory=dict)
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    toolchain: ToolchainUsed
    created_at: Annotated[AwareDatetime, AfterValidator(_to_utc)]
    measurements: Measurements = Field(default_factory=Measurements)

    @field_validator("operation")
    @classmethod
    def _operation_is_a_name(cls, value: str) -> str:
        if not _OPERATION.fullmatch(value):
            raise ValueError(f"{value!r} is not the name of an operation")
        return value

    @field_validator("model")
    @classmethod
    def _model_is_a_slug(cls, value: str) -> str:
        if not _SLUG.fullmatch(value) or value in RESERVED_SLUGS:
            raise ValueError(f"{value!r} is not a slug; make one with model_slug()")
        return value

    @field_validator("outputs")
    @classmethod
    def _outputs_fit_in_one_folder(cls, value: dict[str, Output]) -> dict[str, Output]:
        if SIDECAR_NAME in value:
            raise ValueError(f"{SIDECAR_NAME} is written by the store, not by a task")
        folders = {"/".join(p.split("/")[:n]) for p in value for n in range(1, p.count("/") + 1)}
        if both := sorted(folders & value.keys()):
            raise ValueError(f"{both[0]!r} is a file and a folder at once")
        return value

    def identities(self) -> dict[str, Digest]:
        """Return {relative path: digest} as later tasks hash it into their keys."""
        return {path: output.identity for path, output in self.outputs.items()}

    def blobs(self) -> dict[Digest, int]:
        """Return {digest: size} of all bytes the record needs, its log included."""
        found = {output.sha256: output.size for output in self.outputs.values()}
        if self.measurements.log is not None:
            found[self.measurements.log.sha256] = self.measurements.log.size
        return found

    def to_json(self) -> dict[str, JsonValue]:
        """Return the record as JSON values; absent fields are left out, not null."""
        value: dict[str, JsonValue] = self.model_dump(mode="json", by_alias=True)
        for output in self.outputs:
            _drop_nulls(value["outputs"], output)
        _drop_nulls(value, "measurements")
        return value

    def to_bytes(self) -> bytes:
        """Return the bytes that a store keeps: canonical JSON."""
        return canonical_json(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: Not JSON, not a record of this schema (pydantic's ValidationError), or more
                than one may hold.
        """
        record = cls.model_validate_json(json_budgets.RECORD.within(data))
        json_budgets.check_numbers([record.config, record.facts, record.measurements.notes])
        return record


def _drop_nulls(holder: JsonValue, name: str) -> None:
    """Leave out null members of `holder[name]`; config, facts and notes keep theirs."""
    assert isinstance(holder, dict)
    inner = holder[name]
    assert isinstance(inner, dict)
    holder[name] = {k: v for k, v in inner.items() if v is not None}


def model_slug(text: str) -> str:
    """Return a folder name for a model: lower case, `a-z0-9._-`, at most 63 characters."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:63].rstrip("-._") or "model"
    return f"{slug[:57]}-model" if slug in RESERVED_SLUGS else slug


def entry_folder(record: Record) -> str:
    """Return `<model-slug>/<operation>_<first 32 hex of the key>`."""
    return f"{record.model}/{record.operation}_{short_key(record.key)}"


def flat_strings(config: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return a config in the vendor's form: dotted names, every value a string."""
    found: dict[str, str] = {}

    def visit(name: str, value: JsonValue) -> None:
        if isinstance(value, dict) and value:
            for inner, item in value.items():
                visit(f"{name}.{inner}" if name else inner, item)
        elif isinstance(value, str):
            found[name] = value
        elif value is None:
            found[name] = ""
        else:
            found[name] = canonical_json(value).decode()

    visit("", dict(config))
    return dict(_sorted(found.items()))


def _sorted(items: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(item for item in items if item[0])


def sidecar(record: Record) -> bytes:
    """Return `builder_cache_info.json`: the vendor's five members, what people ask, the record."""
    value = {
        "operation": record.operation,
        "source": record.source,
        "config": flat_strings(record.config) | vendor_config(record.operation, record.config),
        "hash": record.key,
        "created_at": record.created_at.isoformat(),
        "outputs": {path: output.size for path, output in sorted(record.outputs.items())},
        "tools": dict(sorted(record.toolchain.versions.items())),
        "seconds": record.measurements.seconds,
        "peak_memory_bytes": record.measurements.peak_memory_bytes,
        "record": record.to_json(),
    }
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def record_of_sidecar(data: bytes) -> Record:
    """Return the record inside a `builder_cache_info.json`.

    Raises:
        ValueError: Not a sidecar of ours.
    """
    value = json_budgets.RECORD_VIEW.read(data)
    inner = value.get("record") if isinstance(value, dict) else None
    if inner is None:
        raise ValueError("it holds no record; only entries written by genai can be read")
    return Record.model_validate(inner)
