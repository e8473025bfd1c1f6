"""ONNX Runtime's sessions of packed models, by number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort

from genai_core.errors import BadModel
from genai_runtime.cpu.branches import branched
from genai_runtime.cpu.model import CpuModel
from genai_runtime.cpu.packing import packed


def session_options(threads: int, *, exact: bool) -> ort.SessionOptions:
    """Options of every session of a CPU model.

    Args:
        threads: 0 = as many as there are cores.
        exact: Take kernels in which u8 x s8 products never saturate. AVX2's own saturate in 16
            bits, which costs 0.02 nats on a model with full-range int8 weights and moves logits by
            up to 0.6; exact ones take 1.4 times as long there. With VNNI or AMX nothing saturates:
            logits are the same bits, and this option would cost 1.2 to 2.2 times the time (VNNI),
            up to 4.5 times (AMX).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_session(model: str | bytes, options: ort.SessionOptions, *, where: Path) -> Any:
    """A session on the CPU.

    Raises:
        BadModel: ONNX Runtime cannot load it.
    """
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many kinds, all plain Exceptions
        raise BadModel(
            f"ONNX Runtime cannot load it: {' '.join(str(error).split())[:300]}", where=str(where)
        ) from error


class Sessions(Protocol):
    """Where an executor gets its sessions from."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows that there are sessions for, ascending."""
        ...

    def session(self, rows: int, *, trees: bool) -> Any:
        """The session of so many rows; made when it is first asked for."""
        ...


class PlainSessions:
    """Packed models made in memory over the container's own data, optimized at every start.

    Args:
        model: The container's.
        threads: 0 = as many as there are cores.
        exact: See `session_options`.
        sizes: Rows; each size prepacks the weights for itself, so more than one costs memory.
        linears: Those that get branches for adapters.
        parts: Of the ranks; see `branches`.
        prefix: Trees may see a trained prefix.
        pictures: Embeddings may stand in tokens' places.
    """

    def __init__(
        self,
        model: CpuModel,
        *,
        threads: int,
        exact: bool,
        sizes: tuple[int, ...] = (1,),
        linears: Sequence[str] = (),
        parts: int = 1,
        prefix: bool = False,
        pictures: bool = False,
    ) -> None:
        self._model = model
        self._proto = branched(model.proto, linears, parts=parts)
        self._threads = threads
        self._exact = exact
        self._sizes = sizes
        self._prefix = prefix
        self._pictures = pictures
        self._open: dict[tuple[int, bool], Any] = {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows, ascending."""
        return self._sizes

    def session(self, rows: int, *, trees: bool) -> Any:
        """The session of so many rows."""
        if (rows, trees) not in self._open:
            options = session_options(self._threads, exact=self._exact)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path",
                str(self._model.path.parent.resolve()),
            )
            made = packed(
                self._proto,
                rows,
                trees=trees,
                prefix=trees and self._prefix,
                pictures=self._pictures,
            )
            self._open[rows, trees] = open_session(
                made.SerializeToString(), options, where=self._model.path
            )
        return self._open[rows, trees]
