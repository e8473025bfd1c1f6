"""Resolves a source behind an address: which files the model consists of, and their digests.

Of a bucket only what has to be read is fetched (graph, encodings, configuration); the weights are
hashed as they stream by, or not read at all where the bucket knows their digest. In between the
folder stands on disk with empty files of the right sizes, so that the rules for what belongs to a
model are the same as on a laptop.

An archive cannot be looked into, so it is downloaded once, here, and its files become blobs of the
store: whatever happens to the archive afterwards, the build uses what was resolved. A volume is
read where it is mounted, now and again by the tasks that need it; those refuse what has changed.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from genai_core.errors import BadModel, GenAIError, InvalidSpec, SourceChanging, from_dict
from genai_core.files.digest_cache import FileCache
from genai_core.files.paths import check_relative_path
from genai_core.kinds.build import BuildSpec
from genai_core.names import TOKEN_MAP_ROLE, Digest, Key
from genai_core.redaction import hidden_queries
from genai_core.sources.part_files import inspect_part
from genai_core.sources.resolved import (
    RESOLVE,
    ListedFile,
    ResolvedFile,
    ResolvedSource,
    ResolveFile,
    content_key,
    pinned_content,
    resolve_key,
)
from genai_core.sources.source_address import PvcAddress, is_archive, parse_https, parse_pvc
from genai_core.sources.source_files import Digests, SourceFacts, inspect_source
from genai_core.store.address import is_bucket
from genai_core.store.layered import brought
from genai_core.store.location import SourceFolder
from genai_core.store.lookup import publish
from genai_core.store.protocol import Existing, Hit, Store
from genai_core.tasks.keys import toolchain_id
from genai_core.tasks.record import (
    Measurements,
    Output,
    Record,
    ToolchainUsed,
    model_slug,
)
from genai_core.tasks.task_file import TaskResult
from genai_stages.worker.source_access import fetch_archive, mounted_folder, open_source

__all__ = ["resolve"]

log = logging.getLogger("genai_stages.worker.resolve")

_READ = (".onnx", ".encodings", "config.json")
_NO_FOLDER = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG}


def resolve(question: ResolveFile, store: Store, scratch: Path) -> TaskResult:
    """Answer unless the answer stands already.

    Args:
        question: Which source.
        store: Where the answer goes.
        scratch: An empty private folder.

    Returns:
        With the key of the record that holds the answer.

    Raises:
        GenAIError: What is wrong with the source.
    """
    started = time.monotonic()
    if not is_bucket(question.uri):
        return _resolve_unlisted(question, store, scratch, started)
    source = open_source(question.uri)
    listing = source.list()
    key = resolve_key(question, listing)
    if _stands(store, key):
        return TaskResult(id=RESOLVE, outcome="cached", record=key)
    folder = scratch / "source"
    folder.mkdir()
    resolved = _inspect(question, source, listing, folder)
    if source.list() != listing:
        raise SourceChanging(
            "objects came, went or changed while the source was read",
            where=question.uri,
            remedy="have one version of the model below an address, and read it again",
        )
    name = PurePosixPath(source.where.prefix or source.where.bucket).name
    return _publish(question, store, key, resolved=resolved, name=name, started=started)


def _resolve_unlisted(
    question: ResolveFile, store: Store, scratch: Path, started: float
) -> TaskResult:
    """Resolve what has to be read to be known."""
    pinned = pinned_content(question)
    if pinned is not None and _stands(store, key := content_key(question, pinned)):
        return TaskResult(id=RESOLVE, outcome="cached", record=key)
    if is_archive(question.uri):
        archive = parse_https(question.uri)
        folder, digest = fetch_archive(archive, scratch)
        key = content_key(question, pinned or f"archive:{digest}")
        if _stands(store, key):
            return TaskResult(id=RESOLVE, outcome="cached", record=key)
        resolved, outputs = _read_folder(question, folder), {}
        for role, file in resolved.files.items():
            blob = store.put_blob(folder / file.path, digest=Digest(file.sha256), consume=True)
            outputs[role] = Output(sha256=blob.sha256, size=blob.size)
        resolved = resolved.model_copy(update={"stored": True})
        return _publish(
            question,
            store,
            key,
            resolved=resolved,
            name=archive.name,
            started=started,
            outputs=outputs,
        )
    volume = parse_pvc(question.uri)
    folder = mounted_folder(volume)
    resolved = _read_folder(question, folder, links_within=mounted_folder(PvcAddress(volume.claim)))
    key = content_key(question, pinned or resolved.digest)
    if _stands(store, key):
        return TaskResult(id=RESOLVE, outcome="cached", record=key)
    return _publish(question, store, key, resolved=resolved, name=volume.name, started=started)


def _stands(store: Store, key: Key) -> bool:
    return isinstance(brought(store, RESOLVE, key, store.lookup(RESOLVE, key)), Hit)


def _publish(
    question: ResolveFile,
    store: Store,
    key: Key,
    *,
    resolved: ResolvedSource,
    name: str,
    started: float,
    outputs: Mapping[str, Output] | None = None,
) -> TaskResult:
    record = Record(
        operation=RESOLVE,
        key=key,
        model=model_slug(name),
        source=hidden_queries(question.uri),
        config={
            **question.model_dump(mode="json", exclude_none=True),
            "uri": hidden_queries(question.uri),
        },
        outputs=dict(outputs or {}),
        facts=resolved.model_dump(mode="json", exclude_none=True),
        toolchain=ToolchainUsed(id=toolchain_id({})),
        created_at=datetime.now(UTC),
        measurements=Measurements(seconds=time.monotonic() - started),
    )
    standing = isinstance(publish(store, record), Existing)
    return TaskResult(
        id=RESOLVE,
        outcome="cached" if standing else "run",
        seconds=time.monotonic() - started,
        record=key,
    )


def _read_folder(
    question: ResolveFile, folder: Path, *, links_within: Path | None = None
) -> ResolvedSource:
    """A folder whose files are all at hand."""
    try:
        facts = _facts(question, folder, FileCache(None), links_within=links_within)
    except GenAIError as error:
        raise _of_the_user(error, folder, question.uri) from error
    resolved = _resolved(facts, folder)
    if question.pin not in {None, resolved.digest}:
        raise BadModel(
            f"its content is {resolved.digest}, not the {question.pin} that the spec pins",
            where=question.uri,
            remedy="correct the digest in the spec, or restore what it stands for",
        )
    return resolved


def _facts(
    question: ResolveFile, folder: Path, cache: Digests, *, links_within: Path | None = None
) -> SourceFacts:
    if question.what is not None:
        return inspect_part(question.what, folder, cache, where=question.uri, **question.model)
    return inspect_source(
        _spec(question, folder),
        folder,
        cache,
        links_within=links_within,
        token_map=question.model.get(TOKEN_MAP_ROLE),
    )


class _Remote:
    """Digests of files that stand for objects."""

    def __init__(
        self,
        source: SourceFolder,
        listing: Mapping[str, ListedFile],
        folder: Path,
        fetched: dict[str, Digest],
    ) -> None:
        self._source = source
        self._listing = listing
        self._folder = folder
        self._fetched = fetched

    def digest(self, path: Path) -> Digest:
        name = path.relative_to(self._folder).as_posix()
        if name not in self._fetched:
            log.info("hashing %s", name)
            self._fetched[name] = self._source.digest(name, tag=self._listing[name].tag)
        return self._fetched[name]


def _inspect(
    question: ResolveFile, source: SourceFolder, listing: dict[str, ListedFile], folder: Path
) -> ResolvedSource:
    fetched: dict[str, Digest] = {}
    for name, file in listing.items():
        try:
            dest = folder / check_relative_path(name)
        except ValueError as error:
            raise InvalidSpec(str(error), where=question.uri, remedy="rename it") from error
        try:
            dest.parent.mkdir(parents=True, exist_ok=True)
            with dest.open("xb") as stream:
                stream.truncate(file.size)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            raise InvalidSpec(
                f"its object {name[:200]} makes no folder of files ({error.strerror})",
                where=question.uri,
                remedy="rename it",
            ) from error
        if _is_read(name, question):
            fetched[name] = source.fetch(name, dest, size=file.size, tag=file.tag)
    try:
        facts = _facts(question, folder, _Remote(source, listing, folder, fetched))
    except GenAIError as error:
        raise _of_the_user(error, folder, question.uri) from error
    return _resolved(facts, folder)


def _resolved(facts: SourceFacts, folder: Path) -> ResolvedSource:
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
            "model": {
                "source": str(folder),
                **{name: file for name, file in question.model.items() if name != TOKEN_MAP_ROLE},
            },
            "targets": ["cpu"],
            "quantization": quantization,
        }
    )


def _of_the_user(error: GenAIError, folder: Path, uri: str) -> GenAIError:
    """The same error, speaking of the address instead of this worker's folder."""
    return from_dict(
        {name: text.replace(str(folder), uri) for name, text in error.as_dict().items()}
    )
