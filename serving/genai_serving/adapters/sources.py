"""Where a running server may take adapters from: its own container, and containers of its base.

A request for one names it, or its digest, and never a file: what may be read is chosen by whoever
starts the server.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from genai_core.container.adapters import AdapterEntry, read_index
from genai_core.container.manifest import MANIFEST_FILE
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_runtime.container import Container, manifest_of
from genai_runtime.executor import AdapterShape, AdapterWeights
from genai_serving.adapters.cache import AdapterLoader

__all__ = ["AdapterSources", "Found"]

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


class AdapterSources:
    """See the module's docstring.

    Args:
        container: That is served.
        folder: Below which further containers lie, at most two levels deep; None = nowhere.
    """

    def __init__(self, container: Container, folder: Path | None) -> None:
        self._container = container
        self._folder = folder

    def find(self, address: str) -> Found:
        """The adapter of a name of the container's, or of a digest: `sha256:` and 64 digits.

        Raises:
            BadInput: There is none, or the address is neither.
        """
        own = self._container.adapters().adapters
        if address in own:
            return Found(self._container.folder, own[address])
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
        yield self._container.folder
        if self._folder is None:
            return
        base = self._container.manifest.base or self._container.revision
        levels = [sorted(self._folder.glob(level + MANIFEST_FILE)) for level in ("", "*/", "*/*/")]
        for path in itertools.chain.from_iterable(levels):
            try:
                manifest = manifest_of(path.parent)
            except (GenAIError, OSError):  # another's, or half of one
                continue
            if (manifest.base or manifest.revision()) == base:
                yield path.parent
