"""The session of a container's encoder: pixels -> embeddings that the model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.container.versions import read_versioned
from genai_core.container.vision_info import VISION_VERSION, VisionInfo
from genai_core.errors import BadModel
from genai_core.names import VISION_ROLE
from genai_runtime.cpu.locations import Holds, check_locations

__all__ = ["VisionEncoder", "read_vision"]

_HALF = "tensor(float16)"


def read_vision(data: bytes, *, where: str) -> VisionInfo:
    """A container's vision.json.

    Raises:
        BadInput: It is newer, or has another form.
    """
    return read_versioned(VisionInfo, data, newest=VISION_VERSION, where=where)


class VisionEncoder:
    """See the module's docstring. Of one thread at a time.

    Args:
        folder: Holds the encoder.
        info: How it is driven.
        threads: Of ONNX Runtime; 0 = as many as there are cores.
        holds: Which files of the folder its data may lie in; None = any.
        where: What an error names; None = the file.

    Raises:
        BadModel: ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        folder: Path,
        info: VisionInfo,
        *,
        threads: int = 0,
        holds: Holds | None = None,
        where: str | None = None,
    ) -> None:
        self.info = info
        self._where = where or str(folder / VISION_ROLE)
        path = folder / VISION_ROLE
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            proto = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - no weights inside
            check_locations(proto, path, holds=holds)
            self._session: Any = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except BadModel:
            raise
        except Exception as error:  # ONNX Runtime raises many kinds, all plain Exceptions
            raise self._bad(f"ONNX Runtime cannot load it: {_short(error)}") from error
        kinds = {value.name: value.type for value in self._session.get_inputs()}
        self._dtype = np.float16 if kinds.get(info.input) == _HALF else np.float32

    def run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings float32 [tokens, hidden size] of pixels [1, 3, height, width].

        Raises:
            BadModel: It fails on them, or yields something else.
        """
        feeds = {self.info.input: pixels.astype(self._dtype, copy=False)}
        try:
            (made,) = self._session.run([self.info.output], feeds)
        except Exception as error:  # likewise
            shape = list(pixels.shape)
            raise self._bad(f"it fails on pixels {shape}: {_short(error)}") from error
        found = np.asarray(made, np.float32)
        if found.ndim == 3 and found.shape[0] == 1:
            found = found[0]
        if found.ndim != 2 or not found.size:
            raise self._bad(f"it yields the shape {list(np.shape(made))}, not [1, tokens, size]")
        if found.shape[1] != self.info.hidden_size:
            raise self._bad(
                f"its embeddings have the size {found.shape[1]}, the model's hidden size is "
                f"{self.info.hidden_size}"
            )
        if not np.isfinite(found).all():
            raise self._bad("it yields NaN or infinity")
        if self.info.tokens not in (None, len(found)):
            raise self._bad(f"it yields {len(found)} embeddings, not {self.info.tokens}")
        return np.ascontiguousarray(found)

    def _bad(self, what: str) -> BadModel:
        return BadModel(
            what,
            where=self._where,
            remedy="name an encoder that was trained for this model, its projector included",
        )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
