"""A container: the folder that a build ends with, opened and checked.

opened = container.load(folder)           # manifest, metadata; every file there, byte for byte
session = open_session(opened)            # see `backend`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.canonical import digest_file
from genai_core.container.adapters import INDEX_FILE, AdapterIndex, read_index
from genai_core.container.container_metadata import METADATA_VERSION, Metadata
from genai_core.container.manifest import (
    DRAFT_FOLDER,
    EMULATION_FOLDER,
    GOLDEN_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    TOKEN_MAP_FILE,
    Manifest,
    ManifestFile,
    read_manifest,
)
from genai_core.container.versions import read_versioned
from genai_core.errors import BadInput
from genai_core.names import Backend
from genai_runtime.container.verification import (
    REMEDY,
    DigestOf,
    file_faults,
    index_fault,
    outside_faults,
    outside_files,
)
from genai_runtime.generate import stop_tokens
from genai_runtime.golden import Golden, read_golden
from genai_runtime.tokenizer import TOKENIZER_FILE, TextTokenizer

CPU_MODEL_FILE = "model.onnx"
TWIN_PREFIX = f"{EMULATION_FOLDER}/"
"""How the names of a twin's files begin."""


def merged_twin(name: str) -> str:
    """Where the twin of an adapter's or a use case's own binaries lies, below `emulation/`."""
    return f"merged/{name}"


@dataclass(frozen=True)
class Container:
    """An opened container.

    Attributes:
        folder: Where it lies.
        manifest: Its identity.
        metadata: Its graphs.
        outside: What its report vouches for: files outside the revision. Golden prompts and the
            twin are compared when they are read.
        digest_of: How; None = not at all.
    """

    folder: Path
    manifest: Manifest
    metadata: Metadata
    outside: Mapping[str, ManifestFile] = field(default_factory=dict)
    digest_of: DigestOf | None = None

    @property
    def revision(self) -> str:
        """`sha256:` and the digest of the canonical manifest."""
        return self.manifest.revision()

    @property
    def runnable(self) -> bool:
        """Whether `backend` has something to run here."""
        cpu = self.manifest.target.backend is Backend.CPU
        return cpu or (self.folder / EMULATION_FOLDER).is_dir()

    def tokenizer(self) -> TextTokenizer | None:
        """The model's tokenizer; None where it has none.

        Raises:
            BadModel: The file is unreadable.
        """
        return TextTokenizer.of_folder(self.folder) if self.holds(TOKENIZER_FILE) else None

    def holds(self, name: str) -> bool:
        """Whether the manifest vouches for a file; what lies beside it is not read."""
        return name in self.manifest.files

    def stop_tokens(self) -> frozenset[int]:
        """End tokens of generation_config.json, else config.json."""
        return stop_tokens(self.folder, holds=self.holds)

    def golden(self) -> Golden | None:
        """The recorded prompts; None where there are none.

        Raises:
            BadInput: They are missing, or no golden prompts.
            CorruptBlob: They have other bytes than the report says.
        """
        self.verify_outside(GOLDEN_FILE)
        path = self.folder / GOLDEN_FILE
        return read_golden(path) if path.is_file() else None

    def verify(self, *, digest_of: DigestOf | None = digest_file) -> None:
        """Check that every file of the manifest is there with its bytes.

        Args:
            digest_of: How bytes are compared; None = only sizes are.

        Raises:
            BadInput: A file is missing or has another size.
            CorruptBlob: A file has other bytes.
        """
        for fault in file_faults(self.folder, self.manifest, digest_of=digest_of):
            raise fault.error(self.folder)

    def verify_outside(self, below: str = "") -> None:
        """Check files outside the revision against what the report says of them.

        A twin that is not there at all is no fault: nothing reads it.

        Args:
            below: How the names begin that are checked.

        Raises:
            BadInput: A file is missing, has another size, or is not in the report.
            CorruptBlob: A file has other bytes.
        """
        if self.digest_of is None:
            return
        twin = (self.folder / EMULATION_FOLDER).is_dir()
        for fault in outside_faults(
            self.folder, self.outside, digest_of=self.digest_of, below=below
        ):
            if twin or not fault.name.startswith(TWIN_PREFIX):
                raise fault.error(self.folder)

    def adapters(self) -> AdapterIndex:
        """The adapters and use cases that it carries.

        Raises:
            BadInput: Its index is not readable, or names files that the manifest does not.
        """
        if not self.holds(INDEX_FILE):
            return AdapterIndex()
        index = read_index(self.folder)
        fault = index_fault(index, self.manifest)
        if fault is not None:
            raise BadInput(fault, where=str(self.folder / INDEX_FILE), remedy=REMEDY)
        return index

    def token_map(self) -> NDArray[np.int64] | None:
        """The model's token by an EAGLE head's own; None where they are the same.

        Raises:
            BadInput: It is no map of the head's vocabulary into the model's.
        """
        if not self.holds(TOKEN_MAP_FILE) or self.metadata.head is None:
            return None
        path = self.folder / TOKEN_MAP_FILE
        try:
            ids = np.asarray(json.loads(path.read_bytes()), np.int64)
        except (OSError, ValueError, OverflowError) as error:
            raise BadInput("is no array of token ids", where=str(path)) from error
        if ids.shape != (self.metadata.vocab_size,):
            raise BadInput(
                f"has the shape {list(ids.shape)} for {self.metadata.vocab_size} logits",
                where=str(path),
            )
        if ids.min() < 0 or ids.max() >= self.metadata.head.tokens:
            raise BadInput("names tokens that the model does not have", where=str(path))
        return ids

    def check_takes_adapters(self) -> None:
        """Refuse a container that no adapter can be added to.

        Raises:
            BadInput: Its graphs were built without inputs for adapters, or its adapters have
                binaries of their own.
        """
        self.adapters().check_changeable(str(self.folder))
        cpu = self.manifest.target.backend is Backend.CPU
        if not cpu and self.metadata.adapter_inputs is None:
            raise BadInput(
                f"it is built for {self.manifest.target.name}, and its graphs take no adapters",
                where=str(self.folder),
                remedy="build it with spec.lora and quantUpdatableMode: None, or name the cpu "
                "container of the same build",
            )

    def draft(self) -> Container | None:
        """The draft model or EAGLE head that it carries; None where it has none.

        Raises:
            BadInput: It is not a whole container.
        """
        if not self.holds(f"{DRAFT_FOLDER}/{MANIFEST_FILE}"):
            return None
        # Its bytes were compared as files of this container.
        return load(self.folder / DRAFT_FOLDER, digest_of=None)


def load(folder: Path, *, digest_of: DigestOf | None = digest_file) -> Container:
    """Open a container whose files are those of its manifest.

    Args:
        folder: The container's.
        digest_of: How files are compared with the manifest. `FileCache.digest` reads gigabytes
            once and not again while they do not change. None = only sizes are compared: for
            whoever has just written, or verified, the files.

    Raises:
        BadInput: The folder is not a container, or not a whole one.
        CorruptBlob: A file has other bytes.
    """
    compared = (folder / MANIFEST_FILE).is_file() and digest_of is not None
    outside = outside_files(folder) if compared else {}
    # Before they say what others should be, or are.
    for fault in outside_faults(folder, outside, digest_of=digest_of, below=MANIFEST_FILE):
        raise fault.error(folder)
    manifest = manifest_of(folder)
    for fault in file_faults(folder, manifest, digest_of=digest_of):
        raise fault.error(folder)
    metadata_file = folder / METADATA_FILE
    try:
        written = metadata_file.read_bytes()
    except FileNotFoundError as error:
        raise BadInput("is missing", where=str(metadata_file)) from error
    metadata = read_versioned(Metadata, written, newest=METADATA_VERSION, where=str(metadata_file))
    return Container(folder, manifest, metadata, outside, digest_of)


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a container's folder.

    Raises:
        BadInput: There is none, or it is of no form that is known here.
    """
    manifest_file = folder / MANIFEST_FILE
    if not manifest_file.is_file():
        raise BadInput(
            f"not a container: it has no {MANIFEST_FILE}",
            where=str(folder),
            remedy="name the folder that `genai build` or `genai pull` wrote",
        )
    return read_manifest(manifest_file.read_bytes(), where=str(manifest_file))
