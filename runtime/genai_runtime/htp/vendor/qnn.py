"""Where the vendor's libraries are, and whether this machine can use them.

They come in the wheel `onnxruntime-qnn` (Linux x86-64, glibc 2.35), which is depended upon and
never redistributed. Nothing here loads a library: that happens in child processes only, because a
failure inside them is a segmentation fault.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from genai_core.errors import NotRunnableHere

DISTRIBUTION = "onnxruntime-qnn"
PROVIDER = "QNNExecutionProvider"

_REMEDY = "use Linux x86-64 with glibc 2.35 or later, and install 'genai-operator[runtime]'"


@dataclass(frozen=True)
class Libraries:
    """The wheel's files.

    Attributes:
        folder: Where they are.
        version: Of the wheel, e.g. `2.7.0`.
        qairt: Of the vendor's SDK inside it, e.g. `2.51.0`.
    """

    folder: Path
    version: str
    qairt: str

    @property
    def provider(self) -> Path:
        """ONNX Runtime's execution provider."""
        return self.folder / "libonnxruntime_providers_qnn.so"

    @property
    def htp(self) -> Path:
        """Compiler and emulator of the Hexagon processor."""
        return self.folder / "libQnnHtp.so"

    @property
    def system(self) -> Path:
        """Reader of binaries and DLCs."""
        return self.folder / "libQnnSystem.so"

    @property
    def ir(self) -> Path:
        """Writer of DLCs."""
        return self.folder / "libQnnIr.so"

    @property
    def genie(self) -> Path:
        """The vendor's LLM runtime."""
        return self.folder / "libGenie.so"


def why_unavailable() -> str:
    """Why the vendor's libraries cannot be used here, as one sentence; empty if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the vendor's wheel does not exist for {sys.platform} on {platform.machine()}"
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(int(n) for n in version.split(".")[:2]) < (2, 35):
        return f"the vendor's libraries need glibc 2.35, this machine has {version}"
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        return f"the package {DISTRIBUTION} is not installed"
    return ""


def available() -> bool:
    """Whether `libraries` would succeed."""
    return not why_unavailable()


@cache
def libraries() -> Libraries:
    """The wheel's libraries.

    Raises:
        NotRunnableHere: They are not installed, or not for this machine.
    """
    reason = why_unavailable()
    if reason:
        raise NotRunnableHere(reason, where="htp", remedy=_REMEDY)
    spec = importlib.util.find_spec("onnxruntime_qnn")
    assert spec is not None
    assert spec.origin is not None
    from onnxruntime_qnn import build_and_package_info as built

    return Libraries(
        Path(spec.origin).resolve().parent,
        importlib.metadata.version(DISTRIBUTION),
        str(built.qnn_version),
    )
