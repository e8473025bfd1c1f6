"""Child process that holds the emulator: `python -P -m genai_runtime.htp.worker`.

Messages (see frames) on the original standard input and output. The libraries print to standard
output too, so that descriptor is moved away first and theirs is pointed at standard error.

    {op: load, models: {graph: path}, soc_model}   -> {ok: true}
    {op: run, graph} + inputs                      -> {ok: true} + outputs
    {op: close} or end of input                    -> the process ends
    a failure                                      -> {ok: false, error: {...}}
"""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

import onnxruntime as ort

from genai_core.errors import GenAIError, ToolFailed
from genai_runtime.htp import frames
from genai_runtime.htp.vendor import qnn
from genai_runtime.htp.vendor.provider import register, session_options


class _Emulator:
    """Sessions by graph name."""

    def __init__(self) -> None:
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.outputs: dict[str, list[str]] = {}

    def load(self, models: dict[str, str], soc_model: int) -> None:
        libraries = qnn.libraries()
        device = register(libraries)
        options = {"backend_path": str(libraries.htp), "soc_model": str(soc_model)}
        for name, path in models.items():
            session = ort.InferenceSession(
                path, session_options(device, options), enable_fallback=False
            )
            self.sessions[name] = session
            self.outputs[name] = [value.name for value in session.get_outputs()]

    def run(self, graph: str, feeds: frames.Arrays) -> frames.Arrays:
        if graph not in self.sessions:
            raise ToolFailed("no such graph is loaded", where=graph)
        names = self.outputs[graph]
        return dict(zip(names, self.sessions[graph].run(names, dict(feeds)), strict=True))


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer messages until the end of `source`."""

    def read(size: int) -> bytes:
        data = source.read(size)
        if len(data) != size:
            raise EOFError
        return data

    emulator = _Emulator()
    while True:
        try:
            message, arrays = frames.unpack(read)
        except EOFError:
            return
        reply: dict[str, Any] = {"ok": True}
        outputs: frames.Arrays = {}
        try:
            if message["op"] == "load":
                emulator.load(message["models"], message["soc_model"])
            elif message["op"] == "run":
                outputs = emulator.run(message["graph"], arrays)
            else:
                return
        except GenAIError as error:
            reply = {"ok": False, "error": error.as_dict()}
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base of their own
            failure = ToolFailed(str(error)[:800], where=str(message.get("graph", "load")))
            reply = {"ok": False, "error": failure.as_dict()}
        sink.writelines(frames.pack(reply, outputs))
        sink.flush()


def main() -> None:
    """Move standard output out of the libraries' way, then serve."""
    ours = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(ours, "wb") as sink:
        serve(sys.stdin.buffer, sink)
    sys.stderr.flush()
    os._exit(0)  # not through the libraries' destructors, where some of them crash


if __name__ == "__main__":
    main()
