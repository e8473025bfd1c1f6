"""Containers for the CPU: a dynamic-T model with GroupQueryAttention, run over packed rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.canonical import digest_file
from genai_core.facts import RopeTable
from genai_runtime import processor
from genai_runtime.cpu.bank import AdapterBank, AdapterWeights
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.locations import Holds
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.prepared import DigestOf, PreparedSessions, prepare
from genai_runtime.cpu.sessions import PlainSessions
from genai_runtime.executor.adapter_weights import AdapterShape
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.session import SlotSession

__all__ = ["CpuSession", "open_executor"]


class CpuSession(SlotSession):
    """One sequence over one model file, nothing written anywhere.

    Args:
        model: `model.onnx` beside its data.
        context_length: The most tokens; memory is taken as they come in.
        threads: Of ONNX Runtime; 0 = as many as there are cores.
        rope: Rotary tables; None = those that the model itself states.
        features: Of the processor (see `processor.features`); None = of this one.
        adapters: What rows may wear, by name.
        worn: What this sequence wears.
        holds: Which files the model's data may lie in; None = any of its folder.
        prefix: See `CpuExecutor`.
        pictures: Embeddings may stand in tokens' places.

    Raises:
        BadModel: ONNX Runtime cannot load the file, or it is not a model of this form.
        BadInput: The context length is below 1.
    """

    def __init__(
        self,
        model: Path,
        *,
        context_length: int,
        threads: int = 0,
        rope: Mapping[str, RopeTable] | None = None,
        features: frozenset[str] | None = None,
        adapters: Mapping[str, AdapterWeights] | None = None,
        worn: Sequence[AdapterUse] = (),
        holds: Holds | None = None,
        prefix: NDArray[np.float32] | None = None,
        pictures: bool = False,
    ) -> None:
        opened = read_model(model, holds=holds)
        known = processor.features() if features is None else features
        exact = opened.wide and processor.saturates(known)
        bank = AdapterBank(adapters or {}, threads=threads or os.cpu_count() or 1)
        sessions = PlainSessions(
            opened,
            threads=threads,
            exact=exact,
            linears=bank.linears,
            parts=bank.parts,
            prefix=prefix is not None,
            pictures=pictures,
        )
        executor = CpuExecutor(
            opened, sessions, context_length=context_length, rope=rope, bank=bank, prefix=prefix
        )
        super().__init__(executor, worn)


def open_executor(
    model: Path,
    *,
    cache: Path,
    identity: str,
    context_length: int,
    threads: int = 0,
    rope: Mapping[str, RopeTable] | None = None,
    adapters: Mapping[str, AdapterWeights] | None = None,
    adapter_columns: int = 0,
    branches: Iterable[AdapterShape] = (),
    doubled: bool = True,
    digest_of: DigestOf = digest_file,
    holds: Holds | None = None,
    prefix: NDArray[np.float32] | None = None,
    pictures: bool = False,
) -> CpuExecutor:
    """Several sequences over one model file, by graphs that are prepared in a cache.

    Args:
        model: `model.onnx` beside its data.
        cache: See `prepared`.
        identity: Of the container that the model is from: its revision.
        context_length: The most tokens of a slot.
        threads: Of ONNX Runtime; 0 = as many as there are cores.
        rope: Rotary tables; None = those that the model itself states.
        adapters: What rows may wear, by name.
        adapter_columns: At least so many, as room for adapters to come.
        branches: Adapters that may come: what they touch can be adapted.
        doubled: See `CpuExecutor`.
        digest_of: How cached files are compared with their digests.
        holds: Which files the model's data may lie in; None = any of its folder.
        prefix: See `CpuExecutor`.
        pictures: Embeddings may stand in tokens' places.

    Raises:
        BadModel: ONNX Runtime cannot load the file, or it is not a model of this form.
        BadInput: The context length is below 1.
        OSError: The cache cannot be written.
    """
    opened = read_model(model, holds=holds)
    features = processor.features()
    exact = opened.wide and processor.saturates(features)
    bank = AdapterBank(
        adapters or {},
        threads=threads or os.cpu_count() or 1,
        columns=adapter_columns,
        branches=branches,
    )
    folder = prepare(
        opened,
        cache,
        identity=identity,
        features=features,
        exact=exact,
        linears=bank.linears,
        parts=bank.parts,
        prefix=prefix is not None,
        pictures=pictures,
        digest_of=digest_of,
    )
    sessions = PreparedSessions(folder, threads=threads, exact=exact)
    numerics = {
        "onnxruntime": ort.__version__,
        "features": sorted(features),
        "exact": exact,
        "threads": threads or os.cpu_count() or 1,
        "linears": list(bank.linears),
        "columns": bank.columns,
    }
    return CpuExecutor(
        opened,
        sessions,
        context_length=context_length,
        rope=rope,
        bank=bank,
        numerics=numerics,
        prefix=prefix,
        doubled=doubled,
    )
