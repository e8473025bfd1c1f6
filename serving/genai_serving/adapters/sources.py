"""Where a running server may take adapters from: its own container, and containers of its base.

A request for one names it, or its digest, and never a file: what may be read is chosen by whoever
starts the server. A later revision of the same base is followed by what differs: its adapters and
use cases, see `later`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from genai_core.canonical import digest_bytes
from genai_core.container.adapters import INDEX_FILE, AdapterEntry, AdapterIndex, read_index
from genai_core.container.manifest import MANIFEST_FILE
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_runtime.container.container import Container, manifest_of
from genai_runtime.executor.adapter_weights import AdapterShape, AdapterWeights
from genai_serving.adapters.cache import AdapterLoader

__all__ = ["AdapterSources", "Fetch", "FollowedRevision", "Found"]

_DIGEST = re.compile(r"^sha256:([0-9a-f]{64})$")


class Found:
    """An adapter's file and what it must be."""

    def __init__(self, folder: Path, entry: AdapterEntry) -> None:
        self.entry = entry
        self._path = folder / entry.file

    def source(self) -> AdapterLoader:
        """What it takes, by the head of its file, and how it is read.

        Raises:
            BadInput: The file is no adapter.
        """
        from genai_runtime.cpu.adapter_files import read_shape

        shape = read_shape(self._path)
        return AdapterLoader(shape, lambda: self._read(shape))

    def _read(self, shape: AdapterShape) -> AdapterWeights:
        """Its matrices, of the bytes whose digest was compared.

        Raises:
            BadInput: The file is no adapter.
            CorruptBlob: It has other bytes, or had when its head was read.
        """
        from genai_runtime.cpu.adapter_files import read_adapter

        read = read_adapter(self._path, sha256=self.entry.sha256)
        if AdapterShape.of(read) != shape:
            raise CorruptBlob("it was another when its head was read", where=str(self._path))
        return read


Fetch = Callable[[str, str], Path]
"""Record and revision of a container -> a folder with its manifest and its adapters."""


@dataclass(frozen=True)
class FollowedRevision:
    """The revision whose adapters and use cases have names.

    Attributes:
        folder: With its adapters.
    """

    revision: str
    folder: Path
    index: AdapterIndex


class AdapterSources:
    """See the module's docstring.

    Args:
        container: That is served.
        folder: Below which further containers lie, at most two levels deep; None = nowhere.
        fetch: Fetches what another revision has; None = no other one is followed.
    """

    def __init__(
        self, container: Container, folder: Path | None, fetch: Fetch | None = None
    ) -> None:
        self._container = container
        self._folder = folder
        self._fetch = fetch
        self.own = FollowedRevision(container.revision, container.folder, container.adapters())
        self.followed = self.own

    @property
    def base(self) -> str:
        """Of the container that is served, and of all whose adapters it may wear."""
        return self._container.manifest.base or self._container.revision

    def revision(self, record: str, revision: str) -> FollowedRevision:
        """A revision of the base that is served.

        Args:
            record: Of its container, where it is not at hand.
            revision: `sha256:...`.

        Raises:
            BadInput: It has another base, or none may be followed.
            CorruptBlob: It is not what it should be.
            GenAIError: It cannot be fetched now.
        """
        for known in (self.own, self.followed):
            if known.revision == revision:
                return known
        if self._fetch is None:
            raise BadInput(
                f"this server was started to follow no other revision than {self.own.revision}",
                where="container",
            )
        folder = self._fetch(record, revision)
        manifest = manifest_of(folder)
        if manifest.revision() != revision:
            raise CorruptBlob(f"it is {manifest.revision()}", where=f"container {revision[:19]}")
        if manifest.base != self.base:
            raise BadInput(
                f"its base is {manifest.base}, and {self.base} is served",
                where=f"container {revision[:19]}",
            )
        file, data = manifest.files.get(INDEX_FILE), (folder / INDEX_FILE).read_bytes()
        index = read_index(folder)
        listed = {entry.file: entry.sha256 for entry in index.adapters.values()}
        files = {name: manifest.files[name].sha256 for name in listed if name in manifest.files}
        if file is None or digest_bytes(data) != file.sha256 or files != listed:
            raise CorruptBlob("its adapters are not those of its manifest", where=str(folder))
        return FollowedRevision(revision, folder, index)

    def find(self, address: str, *, of: FollowedRevision | None = None) -> Found:
        """The adapter of a name of a container's, or of a digest: `sha256:` and 64 digits.

        Args:
            address: Name or digest.
            of: Whose names; None = of the revision that is followed.

        Raises:
            BadInput: There is none, or the address is neither.
        """
        named = self.followed if of is None else of
        own = named.index.adapters
        if address in own:
            return Found(named.folder, own[address])
        digest = _DIGEST.match(address)
        if digest is None:
            known = ", ".join(own) or "none"
            raise BadInput(
                f"it is neither sha256: and 64 digits nor an adapter of the container ({known})",
                where="lora_path",
            )
        for folder in self._containers():
            for entry in read_index(folder).adapters.values():
                if entry.sha256 == digest[1]:
                    return Found(folder, entry)
        raise BadInput(
            f"no container of this base model that the server may read carries {address}",
            where="lora_path",
            remedy="add it with `genai adapter add`, and start the server with --adapter-folder",
        )

    def _containers(self) -> Iterator[Path]:
        """Folders of containers whose base is the one that is served."""
        yield from dict.fromkeys((self.followed.folder, self._container.folder))
        if self._folder is None:
            return
        levels = [sorted(self._folder.glob(level + MANIFEST_FILE)) for level in ("", "*/", "*/*/")]
        for path in itertools.chain.from_iterable(levels):
            try:
                manifest = manifest_of(path.parent)
            except (GenAIError, OSError):  # another's, or half of one
                continue
            if (manifest.base or manifest.revision()) == self.base:
                yield path.parent
