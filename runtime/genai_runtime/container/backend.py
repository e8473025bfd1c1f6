"""The backend that runs a container here: ONNX Runtime on the CPU, or the vendor's emulator.

A container for Snapdragon runs on the device. What runs here is the twin in `emulation/`, which
small builds have; the weight-shared binaries themselves are never opened on x86.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genai_core.canonical import digest_file
from genai_core.container.manifest import EMULATION_FOLDER, FORECAST_FILE
from genai_core.container.vision_info import VISION_FOLDER, VISION_INFO_FILE
from genai_core.errors import BadInput, NotRunnableHere
from genai_core.names import Backend
from genai_runtime.container.container import CPU_MODEL_FILE, TWIN_PREFIX, Container, merged_twin
from genai_runtime.container.verification import DigestOf
from genai_runtime.executor.adapter_weights import AdapterShape, AdapterWeights
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.session import Session

if TYPE_CHECKING:
    from genai_runtime.vision.encoder import VisionEncoder


def open_session(
    container: Container,
    *,
    threads: int = 0,
    context_length: int | None = None,
    worn: Sequence[AdapterUse] = (),
) -> Session:
    """Start what runs one sequence.

    Args:
        container: What is run.
        threads: Of ONNX Runtime on the CPU; 0 = as many as there are cores.
        context_length: Fewer slots than the container offers.
        worn: Adapters of the container that the session wears.

    Raises:
        NotRunnableHere: A Snapdragon container without a twin, or without the vendor's
            libraries on this machine.
        BadInput: More slots than the container offers, or an adapter that it does not carry.
    """
    index = container.adapters()
    merged = index.merged and index.merged_name({use.name: use.alpha for use in worn})
    weights = {} if index.merged else _adapter_weights(container, [use.name for use in worn])
    longest = _places(container, context_length)
    if container.manifest.target.backend is Backend.CPU:
        from genai_runtime.cpu import CpuSession

        return CpuSession(
            container.folder / CPU_MODEL_FILE,
            context_length=longest,
            threads=threads,
            rope=container.metadata.rope,
            adapters=weights,
            worn=worn,
            holds=container.holds,
            prefix=_prefix(container),
            pictures=container.holds(VISION_INFO_FILE),
        )
    _need_twin(container)
    from genai_runtime.htp.executor import HtpSession

    twin = container.folder / EMULATION_FOLDER
    if index.merged:
        return HtpSession(
            twin / merged_twin(merged) if merged else twin, context_length=context_length
        )
    return HtpSession(
        twin,
        inputs=container.metadata.adapter_inputs,
        ranges=container.metadata.adapter_ranges,
        adapters=weights,
        worn=worn,
        context_length=context_length,
    )


def open_executor(
    container: Container,
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
        container: What is run.
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
    longest = _places(container, context_length)
    if container.manifest.target.backend is Backend.CPU:
        from genai_runtime.cpu import open_executor as open_on_cpu

        return open_on_cpu(
            container.folder / CPU_MODEL_FILE,
            cache=cache,
            identity=container.manifest.base or container.revision,
            context_length=longest,
            threads=threads,
            rope=container.metadata.rope,
            adapters=_adapter_weights(
                container, list(container.adapters().adapters) if adapters is None else adapters
            ),
            adapter_columns=adapter_columns,
            branches=branches,
            doubled=doubled,
            digest_of=digest_of,
            holds=container.holds,
            prefix=_prefix(container),
            pictures=container.holds(VISION_INFO_FILE),
        )
    _need_twin(container)
    index = container.adapters()
    if index.merged and adapters:
        raise BadInput(
            "adapters have binaries of their own here, one of which a session wears",
            where=str(container.folder),
            remedy="serve the base, or build with quantUpdatableMode: None or for the cpu",
        )
    given = list(index.adapters) if adapters is None and not index.merged else adapters or ()
    from genai_runtime.htp.executor import HtpExecutor

    return HtpExecutor(
        container.folder / EMULATION_FOLDER,
        inputs=container.metadata.adapter_inputs,
        ranges=container.metadata.adapter_ranges,
        adapters=_adapter_weights(container, given),
        context_length=longest,
    )


def open_encoder(container: Container, *, threads: int = 0) -> VisionEncoder:
    """Start what turns pictures into embeddings.

    Args:
        container: Whose encoder it is.
        threads: Of ONNX Runtime; 0 = as many as there are cores.

    Raises:
        BadInput: It carries none, or one of a newer form.
        BadModel: ONNX Runtime cannot load it.
        NotRunnableHere: Pillow is not installed.
    """
    if not container.holds(VISION_INFO_FILE):
        raise BadInput(
            "the container reads no pictures",
            where=str(container.folder),
            remedy="build it with spec.vision",
        )
    if find_spec("PIL") is None:
        raise NotRunnableHere(
            "pictures need it, and it is not installed",
            where="pillow",
            remedy="pip install 'genai-operator[all]'",
        )
    from genai_runtime.vision.encoder import VisionEncoder, read_vision

    path = container.folder / VISION_INFO_FILE
    return VisionEncoder(
        container.folder / VISION_FOLDER,
        read_vision(path.read_bytes(), where=str(path)),
        threads=threads,
        holds=lambda name: container.holds(f"{VISION_FOLDER}/{name}"),
    )


def _prefix(container: Container) -> NDArray[np.float32] | None:
    """Keys and values that forecast tokens alone see; None where there are none."""
    forecast = container.metadata.forecast
    if forecast is None or not forecast.prefix:
        return None
    from genai_runtime.cpu.prefix import read_prefix

    return read_prefix(container.folder / FORECAST_FILE, forecast.prefix)


def _places(container: Container, context_length: int | None) -> int:
    """The context length to run with."""
    longest = container.manifest.context_length
    if context_length is not None and context_length > longest:
        raise BadInput(
            f"the container was built for {longest} tokens",
            where=f"context length {context_length}",
            remedy="build it for a longer context",
        )
    return context_length or longest


def _need_twin(container: Container) -> None:
    if not container.runnable:
        raise NotRunnableHere(
            f"a container for {container.manifest.target.name} without an emulation twin runs on "
            "the device only",
            where=str(container.folder),
            remedy="push it to a device, or build the cpu target",
        )
    container.verify_outside(TWIN_PREFIX)


def _adapter_weights(container: Container, names: Sequence[str]) -> dict[str, AdapterWeights]:
    index = container.adapters()
    weights = {}
    for name in names:
        if name not in index.adapters:
            raise BadInput(
                f"the container carries no adapter {name}",
                where=str(container.folder),
                remedy=f"use one of {', '.join(index.adapters)}"
                if index.adapters
                else "build it with spec.lora",
            )
        from genai_runtime.cpu.adapter_files import read_adapter

        weights[name] = read_adapter(container.folder / index.adapters[name].file)
    return weights
