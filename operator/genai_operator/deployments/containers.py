"""Which container a deployment is to serve, and where it lies in the store.

It follows the last good artifact of its build, or a revision that the spec pins. What is known of
a container stands in the status, so that a build that is deleted, or a store that does not answer,
stops nothing that is served already.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from genai_core.canonical import is_digest
from genai_core.container.adapters import INDEX_FILE, INDEX_VERSION, AdapterIndex
from genai_core.container.manifest import GOLDEN_FILE, MANIFEST_FILE, read_manifest
from genai_core.container.versions import read_versioned
from genai_core.errors import BadInput, CorruptBlob, GenAIError, StoreUnavailable
from genai_core.files.json_budgets import ADAPTERS, MANIFEST
from genai_core.kinds.deployment import From
from genai_core.kinds.deployment_status import ServedContainer
from genai_core.names import Key
from genai_core.reasons import Reason
from genai_core.store.address import parse_address
from genai_core.store.protocol import Store
from genai_core.tasks.record import Record
from genai_operator.errors import Waiting
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Revisions", "find", "kept", "look_up", "offered"]

_PACKAGE = "package"
_MOST_RECORDS = 500
"""Of a store, that are looked through for a revision that nobody knows."""
_MOST_REVISION = 128
_LOOKING_SECONDS = 60.0
_LISTED_SECONDS = 60.0
_MOST_KEPT = 4


def offered(
    origin: From,
    build: Mapping[str, Any] | None,
    known: Sequence[ServedContainer],
    *,
    fresh: bool,
) -> ServedContainer | None:
    """The container that is to be served, as status of build and deployment name it.

    Args:
        origin: `spec.from`.
        build: The GenAIBuild; None where there is none.
        known: Of the deployment's own status; the first is what was wanted last.
        fresh: The spec asks for something else since.

    Returns:
        None where a pinned revision is known to neither.

    Raises:
        Waiting: The build is not there, or has no container for the target yet.
    """
    artifacts = [_of_artifact(entry) for entry in _artifacts(build, origin.target)]
    listed = [container for container in artifacts if container is not None]
    if origin.revision is not None:
        return find(origin.revision, [*known, *listed])
    if listed:
        return find(listed[0].revision, [*known, *listed])
    if build is None and known and not fresh:
        return known[0]  # what a build made outlives it
    if build is None:
        raise Waiting(Reason.BUILD_NOT_FOUND, f"there is no GenAIBuild {origin.build}", after=60.0)
    status = build.get("status") or {}
    if origin.target not in (build.get("spec") or {}).get("targets", ()):
        raise Waiting(
            Reason.BUILD_NOT_READY,
            f"GenAIBuild {origin.build} does not build for {origin.target}",
            after=60.0,
        )
    progress = f" ({status['progress']})" if status.get("progress") else ""
    raise Waiting(
        Reason.BUILD_NOT_READY,
        f"GenAIBuild {origin.build} has no container for {origin.target} yet: it is "
        f"{status.get('phase') or 'New'}{progress}",
        after=60.0,
    )


def find(revision: str, among: Iterable[ServedContainer]) -> ServedContainer | None:
    """A container by its revision."""
    return next((one for one in among if one.revision == revision), None)


def kept(
    revisions: Iterable[str | None], among: Iterable[ServedContainer]
) -> list[ServedContainer]:
    """What the status goes on naming: containers of these revisions, each once."""
    known = list(among)
    wanted = dict.fromkeys(revision for revision in revisions if revision is not None)
    found = [find(revision, known) for revision in wanted]
    return [one for one in found if one is not None][:_MOST_KEPT]


def look_up(
    store: Store, revision: str, offer: ServedContainer | None, revisions: Revisions
) -> ServedContainer:
    """Read a container's record; in a thread.

    Args:
        store: Where it lies.
        revision: Of the container.
        offer: Where it should lie; None: its record is looked for.
        revisions: What is known of stores that were looked through.

    Raises:
        Waiting: It is not there.
        GenAIError: The store cannot be read.
    """
    if offer is not None:
        key: Key | None = Key(offer.record.partition("/")[2])
    else:
        key = revisions.key(store, revision)
    if key is not None:
        with suppress(CorruptBlob):
            stored = store.get_record(_PACKAGE, key)
            if stored is not None and stored.record.facts.get("revision") == revision:
                return _described(store, stored.record, revision)
    raise Waiting(
        Reason.CONTAINER_NOT_FOUND,
        f"{store.location} holds no container {revision[:19]}: build it again, or serve another",
        after=60.0,
    )


@dataclass
class _Listing:
    """Revisions of the packages that a store held when it was looked through."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: dict[str, Key] = field(default_factory=dict)
    until: float = float("-inf")


class Revisions:
    """Keys of packages by their revisions, of stores in which nothing else tells them.

    A store is looked through once in a while, for all who ask: five hundred deployments that pin
    what is not there would each read five hundred records a minute.
    """

    def __init__(self, *, timing: Timing = SYSTEM) -> None:
        self._timing = timing
        self._known: WeakKeyDictionary[Store, _Listing] = WeakKeyDictionary()

    def key(self, store: Store, revision: str) -> Key | None:
        """The key of the package of a revision; None = the store had none. In a thread.

        Raises:
            GenAIError: The store cannot be read.
        """
        listing = self._known.setdefault(store, _Listing())
        with listing.lock:
            if revision not in listing.keys and self._timing.monotonic() >= listing.until:
                listing.keys = dict(_revisions(store, self._timing))
                listing.until = self._timing.monotonic() + _LISTED_SECONDS
            return listing.keys.get(revision)


def _revisions(store: Store, timing: Timing) -> Iterator[tuple[str, Key]]:
    until = timing.monotonic() + _LOOKING_SECONDS
    for key in _keys(store):
        if timing.monotonic() > until:
            raise StoreUnavailable(
                f"looking its packages through takes longer than {_LOOKING_SECONDS:.0f} s",
                where=store.location,
            )
        with suppress(CorruptBlob):
            stored = store.get_record(_PACKAGE, key)
            found = stored.record.facts.get("revision") if stored is not None else None
            if isinstance(found, str) and len(found) <= _MOST_REVISION:
                yield found, key


def _keys(store: Store) -> Iterator[Key]:
    for number, ref in enumerate(store.list_records(_PACKAGE)):
        if number == _MOST_RECORDS:
            return
        yield ref.key


def _described(store: Store, record: Record, revision: str) -> ServedContainer:
    index = record.outputs.get(INDEX_FILE)
    adapters: dict[str, str] = {}
    if index is not None:
        if index.size > ADAPTERS.most_bytes:  # it is a tenant's, and memory is everybody's
            raise BadInput(f"has {index.size} bytes", where=INDEX_FILE)
        read = read_versioned(
            AdapterIndex,
            store.read_blob(index),
            newest=INDEX_VERSION,
            where=INDEX_FILE,
            budget=ADAPTERS,
        )
        for name, entry in read.adapters.items():
            if (file := record.outputs.get(entry.file)) is not None:
                adapters[name] = f"sha256:{file.sha256}"
    try:
        return ServedContainer(
            revision=revision,
            record=f"{_PACKAGE}/{record.key}",
            size_bytes=sum(output.size for output in record.outputs.values()),
            golden=GOLDEN_FILE in record.outputs,
            base=_base_of(store, record, revision),
            adapters=adapters,
        )
    except ValueError as error:
        raise BadInput(
            f"its {len(adapters)} adapters are more, or have longer names, than a status can tell",
            where=INDEX_FILE,
            remedy="serve a container with fewer adapters",
        ) from error


def _base_of(store: Store, record: Record, revision: str) -> str | None:
    """Of the container without adapters; None where its manifest does not say it.

    One that cannot be read says nothing here: pods find out what is wrong with it.
    """
    output = record.outputs.get(MANIFEST_FILE)
    if output is None or output.size > MANIFEST.most_bytes:
        return None
    with suppress(GenAIError, ValueError):
        manifest = read_manifest(store.read_blob(output), where=MANIFEST_FILE)
        if manifest.revision() == revision:
            return manifest.base
    return None


def _artifacts(build: Mapping[str, Any] | None, target: str) -> Iterator[Mapping[str, Any]]:
    status = (build or {}).get("status") or {}
    for entry in status.get("artifacts") or ():
        if entry.get("target") == target:
            yield entry


def _of_artifact(entry: Mapping[str, Any]) -> ServedContainer | None:
    """Of a build's status; None where it is no word of ours."""
    try:
        key = Path(parse_address(entry["url"]).prefix).stem
        if not is_digest(key):
            return None
        return ServedContainer(
            revision=entry["revision"],
            record=f"{_PACKAGE}/{key}",
            size_bytes=int(entry.get("sizeBytes") or 0),
        )
    except (KeyError, ValueError, GenAIError):
        return None
