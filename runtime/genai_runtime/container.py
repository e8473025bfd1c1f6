"""A container: the folder that a build ends with, opened, checked, and run where it can be.

    container = container.load(folder)        # manifest, metadata; every file there, byte for byte
    session = container.open_session()        # CPU, or the emulator on an htp container's twin

A container for Snapdragon runs on the device. What runs here is the twin in `emulation/`, which
small builds have; the weight-shared binaries themselves are never opened on x86.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genai_core.canonical import digest_file
from genai_core.container.adapters import INDEX_FILE, AdapterIndex, read_index
from genai_core.container.container_metadata import METADATA_VERSION, Metadata
from genai_core.container.manifest import (
    DRAFT_FOLDER,
    EMULATION_FOLDER,
    FORECAST_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    TOKEN_MAP_FILE,
    Manifest,
    ManifestFile,
    read_manifest,
)
from genai_core.container.versions import read_versioned
from genai_core.errors import BadInput, NotRunnableHere
from genai_core.names import Backend
from genai_runtime.executor.adapter_weights import AdapterShape
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import stop_tokens
from genai_runtime.golden import Golden, read_golden
from genai_runtime.session import Session
from genai_runtime.tokenizer import TOKENIZER_FILE, TextTokenizer
from genai_runtime.verification import (
    REMEDY,
    DigestOf,
    file_faults,
    index_fault,
    outside_faults,
    outside_files,
)

if TYPE_CHECKING:  # it needs ONNX Runtime
    from genai_runtime.cpu.bank import AdapterWeights

CPU_MODEL_FILE = "model.onnx"
_TWIN = f"{EMULATION_FOLDER}/"


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
        """Whether `open_session` has something to run here."""
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
            if twin or not fault.name.startswith(_TWIN):
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

    def open_session(
        self,
        *,
        threads: int = 0,
        context_length: int | None = None,
        worn: Sequence[AdapterUse] = (),
    ) -> Session:
        """Start an executor.

        Args:
            threads: Of ONNX Runtime on the CPU; 0 = as many as there are cores.
            context_length: Fewer slots than the container offers.
            worn: Adapters of the container that the session wears.

        Raises:
            NotRunnableHere: A Snapdragon container without a twin, or without the vendor's
                libraries on this machine.
            BadInput: More slots than the container offers, or an adapter that it does not carry.
        """
        index = self.adapters()
        merged = index.merged and index.merged_name({use.name: use.alpha for use in worn})
        weights = {} if index.merged else self._adapter_weights([use.name for use in worn])
        longest = self._places(context_length)
        if self.manifest.target.backend is Backend.CPU:
            from genai_runtime.cpu import CpuSession

            return CpuSession(
                self.folder / CPU_MODEL_FILE,
                context_length=longest,
                threads=threads,
                rope=self.metadata.rope,
                adapters=weights,
                worn=worn,
                holds=self.holds,
                prefix=self._prefix(),
            )
        self._need_twin()
        from genai_runtime.htp.executor import HtpSession

        twin = self.folder / EMULATION_FOLDER
        if index.merged:
            return HtpSession(
                twin / merged_twin(merged) if merged else twin, context_length=context_length
            )
        return HtpSession(
            twin,
            inputs=self.metadata.adapter_inputs,
            ranges=self.metadata.adapter_ranges,
            adapters=weights,
            worn=worn,
            context_length=context_length,
        )

    def open_executor(
        self,
        *,
        cache: Path,
        threads: int = 0,
        context_length: int | None = None,
        adapters: Sequence[str] | None = None,
        adapter_columns: int = 0,
        branches: Iterable[AdapterShape] = (),
        doubled: bool = True,
        digest_of: DigestOf = digest_file,
    ) -> Executor:
        """Start what runs several sequences beside one another.

        A CPU container's graphs are optimized for this machine at the first start and mapped from
        `cache` at every later one (see `genai_runtime.cpu.prepared`).

        Args:
            cache: A folder of this user's own; made where absent.
            threads: Of ONNX Runtime on the CPU; 0 = as many as there are cores.
            context_length: The most tokens of a slot, if fewer than the container offers.
            adapters: Those that rows may wear; None = all that the container carries, and none
                where adapters have binaries of their own.
            adapter_columns: Ranks of all that are worn, together, at least; see `AdapterHost`.
            branches: Adapters that may come: what they touch can be adapted.
            doubled: A row's numbers never depend on its neighbours, to the bit; else a lone token's
                do. On the CPU alone.
            digest_of: How cached files are compared with their digests.

        Raises:
            NotRunnableHere: As `open_session`.
            BadInput: More tokens than the container offers.
        """
        longest = self._places(context_length)
        if self.manifest.target.backend is Backend.CPU:
            from genai_runtime.cpu import open_executor

            return open_executor(
                self.folder / CPU_MODEL_FILE,
                cache=cache,
                identity=self.manifest.base or self.revision,
                context_length=longest,
                threads=threads,
                rope=self.metadata.rope,
                adapters=self._adapter_weights(
                    list(self.adapters().adapters) if adapters is None else adapters
                ),
                adapter_columns=adapter_columns,
                branches=branches,
                doubled=doubled,
                digest_of=digest_of,
                holds=self.holds,
                prefix=self._prefix(),
            )
        self._need_twin()
        index = self.adapters()
        if index.merged and adapters:
            raise BadInput(
                "adapters have binaries of their own here, one of which a session wears",
                where=str(self.folder),
                remedy="serve the base, or build with quantUpdatableMode: None or for the cpu",
            )
        given = list(index.adapters) if adapters is None and not index.merged else adapters or ()
        from genai_runtime.htp.executor import HtpExecutor

        return HtpExecutor(
            self.folder / EMULATION_FOLDER,
            inputs=self.metadata.adapter_inputs,
            ranges=self.metadata.adapter_ranges,
            adapters=self._adapter_weights(given),
            context_length=longest,
        )

    def _prefix(self) -> NDArray[np.float32] | None:
        """Keys and values that forecast tokens alone see; None where there are none."""
        forecast = self.metadata.forecast
        if forecast is None or not forecast.prefix:
            return None
        from genai_runtime.cpu.prefix import read_prefix

        return read_prefix(self.folder / FORECAST_FILE, forecast.prefix)

    def _places(self, context_length: int | None) -> int:
        """The context length to run with."""
        longest = self.manifest.context_length
        if context_length is not None and context_length > longest:
            raise BadInput(
                f"the container was built for {longest} tokens",
                where=f"context length {context_length}",
                remedy="build it for a longer context",
            )
        return context_length or longest

    def _need_twin(self) -> None:
        if not self.runnable:
            raise NotRunnableHere(
                f"a container for {self.manifest.target.name} without an emulation twin runs on "
                "the device only",
                where=str(self.folder),
                remedy="push it to a device, or build the cpu target",
            )
        self.verify_outside(_TWIN)

    def _adapter_weights(self, names: Sequence[str]) -> dict[str, AdapterWeights]:
        index = self.adapters()
        found = {}
        for name in names:
            if name not in index.adapters:
                raise BadInput(
                    f"the container carries no adapter {name}",
                    where=str(self.folder),
                    remedy=f"use one of {', '.join(index.adapters)}"
                    if index.adapters
                    else "build it with spec.lora",
                )
            from genai_runtime.cpu.adapter_files import read_adapter

            found[name] = read_adapter(self.folder / index.adapters[name].file)
        return found


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
    found = (folder / MANIFEST_FILE).is_file() and digest_of is not None
    outside = outside_files(folder) if found else {}
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
