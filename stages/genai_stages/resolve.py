"""Resolves a source behind an address: which files the model consists of, and their digests.

Only what has to be read is fetched (graph, encodings, configuration); the weights are hashed as
they stream by, or not read at all where the bucket knows their digest. In between the folder
stands on disk with empty files of the right sizes, so that the rules for what belongs to a model
are the same as on a laptop.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from genai_core.errors import GenAIError, InvalidSpec, from_dict
from genai_core.keys import toolchain_id
from genai_core.kinds.build import BuildSpec
from genai_core.names import Digest
from genai_core.record import Measurements, Record, ToolchainUsed, check_relative_path, model_slug
from genai_core.resolved import (
    RESOLVE,
    ListedFile,
    ResolvedFile,
    ResolvedSource,
    ResolveFile,
    resolve_key,
)
from genai_core.source import inspect_source
from genai_core.store.lookup import publish
from genai_core.store.protocol import Existing, Hit, Store
from genai_core.store.s3_source import S3Source
from genai_core.task import TaskResult
from genai_stages.source_access import open_source

__all__ = ["resolve"]

log = logging.getLogger("genai_stages.resolve")

_READ = (".onnx", ".encodings", "config.json")


def resolve(question: ResolveFile, store: Store, scratch: Path) -> TaskResult:
    """Answer unless the answer stands already.

    Args:
        question: Which source.
        store: Where the answer goes.
        scratch: An empty private folder.

    Raises:
        GenAIError: What is wrong with the source.
    """
    started = time.monotonic()
    source = open_source(question.uri)
    listing = source.list()
    key = resolve_key(question, listing)
    if isinstance(store.lookup(RESOLVE, key), Hit):
        return TaskResult(id=RESOLVE, outcome="cached")
    folder = scratch / "source"
    folder.mkdir()
    found = _inspect(question, source, listing, folder)
    record = Record(
        operation=RESOLVE,
        key=key,
        model=model_slug(PurePosixPath(source.where.prefix or source.where.bucket).name),
        source=question.uri,
        config=question.model_dump(mode="json"),
        facts=found.model_dump(mode="json", exclude_none=True),
        toolchain=ToolchainUsed(id=toolchain_id({})),
        created_at=datetime.now(UTC),
        measurements=Measurements(seconds=time.monotonic() - started),
    )
    standing = isinstance(publish(store, record), Existing)
    return TaskResult(
        id=RESOLVE, outcome="cached" if standing else "run", seconds=time.monotonic() - started
    )


class _Remote:
    """Digests of files that stand for objects."""

    def __init__(self, source: S3Source, folder: Path, fetched: dict[str, Digest]) -> None:
        self._source = source
        self._folder = folder
        self._fetched = fetched

    def digest(self, path: Path) -> Digest:
        name = path.relative_to(self._folder).as_posix()
        if name not in self._fetched:
            log.info("hashing %s", name)
            self._fetched[name] = self._source.digest(name)
        return self._fetched[name]


def _inspect(
    question: ResolveFile, source: S3Source, listing: dict[str, ListedFile], folder: Path
) -> ResolvedSource:
    fetched: dict[str, Digest] = {}
    for name, file in listing.items():
        try:
            dest = folder / check_relative_path(name)
        except ValueError as error:
            raise InvalidSpec(str(error), where=question.uri, remedy="rename it") from error
        dest.parent.mkdir(parents=True, exist_ok=True)
        if _is_read(name, question):
            fetched[name] = source.fetch(name, dest, size=file.size)
        else:
            with dest.open("wb") as stream:
                stream.truncate(file.size)
    try:
        facts = inspect_source(_spec(question, folder), folder, _Remote(source, folder, fetched))
    except GenAIError as error:
        raise _of_the_user(error, folder, question.uri) from error
    return ResolvedSource(
        digest=facts.digest,
        files={
            role: ResolvedFile(
                path=file.path.relative_to(folder).as_posix(), sha256=file.sha256, size=file.size
            )
            for role, file in facts.files.items()
        },
        config=dict(facts.config),
        weight_bits=facts.weight_bits,
    )


def _is_read(name: str, question: ResolveFile) -> bool:
    for field in ("onnx", "encodings"):
        if name.endswith(f".{field}") and field in question.model:
            return name == question.model[field]
    return name.endswith(_READ)


def _spec(question: ResolveFile, folder: Path) -> BuildSpec:
    names = question.quantization
    quantization: dict[str, object] = {"fidelity": {"tokens": names.get("tokens")}}
    if "calibration" in names:
        quantization |= {"gaps": "Calibrate", "calibration": names["calibration"]}
    return BuildSpec.model_validate(
        {
            "model": {"source": str(folder), **question.model},
            "targets": ["cpu"],
            "quantization": quantization,
        }
    )


def _of_the_user(error: GenAIError, folder: Path, uri: str) -> GenAIError:
    """The same error, speaking of the address instead of this worker's folder."""
    return from_dict(
        {name: text.replace(str(folder), uri) for name, text in error.as_dict().items()}
    )
