"""What a context binary or a DLC says about itself.

Read by the vendor's libQnnSystem in a child process (`python -m genai_runtime.htp.metadata`). This
is what the build compares with what it asked for: an unknown chip, for example, compiles silently
for SoC 0.
"""

from __future__ import annotations

import ctypes
import mmap
from ctypes import POINTER, byref, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from genai_core.errors import ToolchainMismatch, ToolFailed
from genai_runtime.htp import child
from genai_runtime.htp.vendor import capi, qnn

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class TensorMetadata(BaseModel):
    """One input or output: `value = (integer + offset) * scale`."""

    model_config = _FROZEN

    name: str
    shape: tuple[int, ...]
    dtype: str
    """numpy's name: uint8, uint16, int32, float32 ..."""
    scale: float | None = None
    offset: int | None = None
    """Minus the zero point; None with `scale` for a tensor that is not quantized."""
    layout: str = "flat"
    """`native_8`: the tiled layout of a native KV cache."""


class GraphMetadata(BaseModel):
    """One graph, inputs and outputs in the binary's order."""

    model_config = _FROZEN

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class BinaryMetadata(BaseModel):
    """A context binary."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    soc_model: int
    build_id: str
    """The version of the vendor's SDK that wrote it."""
    core_api_version: str
    backend_api_version: str
    blob_version: str
    size: int
    graphs: tuple[GraphMetadata, ...]

    def graph(self, name: str) -> GraphMetadata:
        """The graph of that name.

        Raises:
            KeyError: There is none.
        """
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise KeyError(name)


def read(binary: Path, *, timeout: float = 300.0) -> BinaryMetadata:
    """The metadata of a context binary.

    Raises:
        ToolFailed: It is not one, or not of a version that the library reads.
        NotRunnableHere: The vendor's libraries are not installed.
    """
    qnn.libraries()
    result = child.run(__name__, {"binary": str(binary.resolve())}, timeout=timeout)
    return BinaryMetadata.model_validate(result.reply)


def require_pinned(libraries: qnn.Libraries) -> None:
    """Refuse a wheel whose structures may be laid out otherwise.

    Raises:
        ToolchainMismatch: It is not the pinned version.
    """
    if libraries.version != capi.PINNED:
        raise ToolchainMismatch(
            f"{qnn.DISTRIBUTION} {libraries.version} is installed, needed is {capi.PINNED}",
            remedy=f"pip install {qnn.DISTRIBUTION}=={capi.PINNED}",
        )


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    libraries = qnn.libraries()
    require_pinned(libraries)
    path = Path(request["binary"])
    nothing = ToolFailed("not a context binary that this library reads", where=path.name)
    if not path.stat().st_size:
        raise nothing
    with path.open("rb") as file:
        # Mapped, not read: a binary has gigabytes, of which this looks at the beginning.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    system = capi.load_system(libraries.system)
    handle, size = c_void_p(), c_size_t()
    found: Any = POINTER(capi.BinaryInfo)()
    system("systemContextCreate", byref(handle))
    try:
        system("systemContextGetBinaryInfo", handle, buffer, len(data), byref(found), byref(size))
    except ToolFailed as error:
        raise nothing from error
    info = found.contents
    if info.version != 3:
        raise ToolFailed(f"binary info of unknown version {info.version}", where=path.name)
    f = info.fields
    return {
        "soc_model": f.soc_model,
        "build_id": (f.build_id or b"").decode(),
        "core_api_version": str(f.core_version),
        "backend_api_version": str(f.backend_version),
        "blob_version": str(f.blob_version),
        "size": len(data),
        "graphs": [capi.describe_graph(f.graphs[i]) for i in range(f.graph_count)],
    }


if __name__ == "__main__":
    child.serve(_serve)
