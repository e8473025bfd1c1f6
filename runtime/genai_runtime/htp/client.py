"""The parent's side of the emulator: start a worker, run graphs in it, notice when it dies.

    with Emulator({"token_ar1_cl128_1_of_1": path}, soc_model=69) as emulator:
        outputs = emulator.run("token_ar1_cl128_1_of_1", {"input_ids": ids, ...})

One worker holds all graphs. It works in a private folder, because the libraries leave scratch files
in the current one.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import ToolFailed, from_dict
from genai_runtime.htp import child, frames
from genai_runtime.htp.vendor import qnn


class Emulator:
    """A worker process with loaded graphs. Not thread safe."""

    def __init__(
        self,
        models: Mapping[str, Path],
        *,
        soc_model: int,
        load_timeout: float = 600.0,
        run_timeout: float = 600.0,
    ) -> None:
        """Start the worker and load the graphs.

        Args:
            models: Graph name -> EPContext ONNX; its binary must not share weights.
            soc_model: The chip that the binaries were compiled for.
            load_timeout: Seconds for loading all graphs.
            run_timeout: Seconds for one pass.

        Raises:
            NotRunnableHere: The vendor's libraries are not installed.
            ToolFailed: A graph cannot be loaded, or the worker died.
        """
        qnn.libraries()
        self._folder = tempfile.TemporaryDirectory(prefix="genai-emulator-")
        self._log = Path(self._folder.name) / child.LOG
        self._timeout = run_timeout
        with self._log.open("wb") as log:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-P", "-m", "genai_runtime.htp.worker"],
                cwd=self._folder.name,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            named = {name: str(path.resolve()) for name, path in models.items()}
            self._ask(
                {"op": "load", "models": named, "soc_model": soc_model}, {}, timeout=load_timeout
            )
        except BaseException:
            self.close()
            raise

    def run(
        self, graph: str, inputs: Mapping[str, NDArray[np.generic]]
    ) -> dict[str, NDArray[np.generic]]:
        """One pass of a graph: integer (or float) arrays in, the same out, by name.

        Raises:
            ToolFailed: The graph is not loaded, an input does not fit, or the worker died or ran
                out of time; after a death every further call raises as well.
        """
        return self._ask({"op": "run", "graph": graph}, inputs, timeout=self._timeout)

    def close(self) -> None:
        """End the worker."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(
        self,
        message: Mapping[str, Any],
        arrays: Mapping[str, NDArray[np.generic]],
        *,
        timeout: float,
    ) -> frames.Arrays:
        process = self._process
        if process is None:
            raise ToolFailed("the emulator is closed", where="emulator")
        assert process.stdin is not None
        deadline = time.monotonic() + timeout
        try:
            for piece in frames.pack(message, arrays):
                process.stdin.write(piece)
            process.stdin.flush()
            reply, outputs = frames.unpack(lambda size: self._read(size, deadline))
        except TimeoutError:  # an OSError too, so it comes first
            raise self._death(message, timeout) from None
        except (EOFError, OSError):
            raise self._death(message, None) from None
        if not reply["ok"]:
            raise from_dict(reply["error"])
        return outputs

    def _read(self, size: int, deadline: float) -> bytes:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(descriptor, min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _death(self, message: Mapping[str, Any], timeout: float | None) -> ToolFailed:
        """Bury the worker and say how it ended; `timeout` only if that is why."""
        process = self._process
        assert process is not None
        if timeout is not None:
            process.kill()
        try:
            status: int | None = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        log = self._log.read_text(encoding="utf-8", errors="replace")
        self.close()
        how = child.describe_exit(None if timeout is not None else status, timeout or 0.0)
        crashed = message["op"] == "load" and timeout is None
        return ToolFailed(
            f"{how}{child.last_words(log)}",
            where=str(message.get("graph", "emulator")),
            remedy="the emulator cannot load binaries with shared weights" if crashed else "",
        )
