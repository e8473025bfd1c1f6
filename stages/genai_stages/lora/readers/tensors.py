"""Reads the tensors of a .safetensors file as float32; never a pickle.

Format: https://github.com/huggingface/safetensors, whose own library checks the header.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from genai_core.errors import BadAdapter
from genai_stages.lora.adapter import Floats

__all__ = ["Tensors"]

_FLOATING = {"F64", "F32", "F16", "BF16"}
_LFS = b"version https://git-lfs"


class Tensors:
    """Tensors of one file, mapped: each is converted when it is asked for.

    Args:
        path: The file.

    Raises:
        BadAdapter: It is not there, no .safetensors file, or cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as stream:
                pointer = stream.read(len(_LFS)) == _LFS
            self._opened: Any = None if pointer else safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise BadAdapter(
                f"it cannot be read as .safetensors: {error}",
                where=path.name,
                remedy="copy the file again, or save the adapter anew",
            ) from error
        if pointer:
            raise BadAdapter(
                "it is a Git LFS pointer, not the file", where=path.name, remedy="git lfs pull"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(sorted(self._opened.keys()))

    def read(self, name: str) -> Floats:
        """One tensor, float32.

        Raises:
            BadAdapter: It holds no floating point numbers.
        """
        dtype = self._opened.get_slice(name).get_dtype()
        if dtype not in _FLOATING:
            raise BadAdapter(
                f"it is stored as {dtype}; floating point numbers are expected",
                where=f"{self._path.name}: {name}",
                remedy="save the adapter in float32, float16 or bfloat16",
            )
        return np.ascontiguousarray(self._opened.get_tensor(name), dtype=np.float32)
