"""A model behind an address: what is asked about it once, and what the answer is.

Resolving is a task like any other: its key is made of the folder's listing (sizes and tags, no
bytes read), its result is a record, so a source that did not change is resolved once for all
builds, and a resolved one is known by a single look-up. The record's `facts` are a
`ResolvedSource`; from then on only digests count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from genai_core.canonical import digest_json
from genai_core.files.paths import FileName, RelativePath
from genai_core.names import MODEL, Digest, Key, SourceName, is_child
from genai_core.sources.build_sources import child_of, is_built, sources_of
from genai_core.sources.part_files import PartKind, part_kind

if TYPE_CHECKING:  # workers read answers and know no specs
    from genai_core.kinds.build import BuildSpec
from genai_core.sources.source_address import is_archive, parse_https

__all__ = [
    "RESOLVE",
    "ListedFile",
    "ResolveFile",
    "ResolvedFile",
    "ResolvedSource",
    "content_key",
    "pinned_content",
    "resolve_file",
    "resolve_key",
]

RESOLVE = "resolve"
"""The operation's name in records."""

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class ListedFile(BaseModel):
    """An object as its bucket lists it."""

    model_config = _FROZEN

    size: int
    tag: str


class ResolveFile(BaseModel):
    """What a worker has to know to resolve a source."""

    model_config = _FROZEN

    kind: Literal["resolve"] = "resolve"
    uri: str
    """`s3://bucket/folder?endpoint=...`"""
    model: dict[str, FileName]
    """The names of files in the spec's `model`, or in an adapter."""
    quantization: dict[str, FileName]
    """The names of files in the spec's `quantization`."""
    pin: str | None = None
    """The digest that the spec pins, of a source that cannot be listed without reading it."""
    what: PartKind | None = None
    """None: a model."""


class ResolvedFile(BaseModel):
    """One file by its role."""

    model_config = _FROZEN

    path: RelativePath
    """Relative to the address."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: int


class ResolvedSource(BaseModel):
    """The answer."""

    model_config = _FROZEN

    digest: str
    """`sha256:...` of roles and contents: what `spec.model.digest` pins."""
    files: dict[RelativePath, ResolvedFile]
    config: dict[str, Any] = Field(default_factory=dict)
    weight_bits: int | None = None
    stored: bool = False
    """The files are blobs of the store: they came out of an archive."""


def resolve_file(
    spec: BuildSpec, uri: str, *, source: SourceName = MODEL, pin: str | None = None
) -> ResolveFile:
    """The question that a build asks about one of its sources.

    Args:
        spec: The build's.
        uri: Where the source lies.
        source: Which of the build's it is.
        pin: See `ResolveFile`.
    """
    if source != MODEL:
        files = {
            name: file
            for one in sources_of(spec)
            if one.name == source
            for name, file in one.files.items()
        }
        what = None if is_built(source) else part_kind(source)
        own = child_of(spec, source).calibration if is_child(source) else None
        texts = {} if own is None else {"calibration": own}
        return ResolveFile(uri=uri, pin=pin, model=files, quantization=texts, what=what)
    return ResolveFile(
        uri=uri,
        pin=pin,
        model={
            name: value
            for name in ("onnx", "encodings")
            if (value := getattr(spec.model, name)) is not None
        },
        quantization={
            name: value
            for name, value in {
                "tokens": spec.quantization.fidelity.tokens,
                "calibration": spec.quantization.calibration,
            }.items()
            if value is not None
        },
    )


def resolve_key(question: ResolveFile, listing: Mapping[str, ListedFile]) -> Key:
    """Return the key of a resolve task."""
    digest: Digest = digest_json(
        {
            "schema": "genai.resolve/1",
            "question": question.model_dump(mode="json", exclude_none=True),
            "listing": {name: [file.size, file.tag] for name, file in listing.items()},
        }
    )
    return Key(digest)


def content_key(question: ResolveFile, content: str) -> Key:
    """Return the key of a resolve task whose source cannot be listed without reading it.

    Args:
        question: What is asked.
        content: Digest of the archive, or of the model's files, whichever is pinned or was read.
    """
    return resolve_key(question, {"content": ListedFile(size=0, tag=content)})


def pinned_content(question: ResolveFile) -> str | None:
    """What `content_key` takes where it is known before anything is read."""
    if is_archive(question.uri):
        archive = parse_https(question.uri).sha256
        if archive is not None:
            return f"archive:{archive}"
    return question.pin
