"""The vendor's LLM runtime, libGenie, on x86: a second, independent driver of our graphs.

    verdict = check_config(text)                                   # does Genie's parser take it?
    answer = query(folder, config, tokens=[1, 17, 42], max_tokens=8)

It runs in a child process (`python -m genai_runtime.htp.vendor.genie`), since it crashes on
binaries that the emulator cannot load. Paths in its configuration are relative to its working
folder: the child works in a private folder with links to the container's files.

The C functions have the names of the vendor's public documentation; their arguments were proved by
the answers, which equal our executor's.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    byref,
    c_char_p,
    c_float,
    c_int32,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_core.errors import ToolFailed
from genai_runtime.htp import child
from genai_runtime.htp.vendor import capi, qnn

_ENGINE = b"primary"
"""What Genie calls the engine of a basic dialog."""
_WHOLE_SENTENCE = 0
_CONTEXT_EXCEEDED = 4
"""A warning status: the answer stands, the context is full."""


@dataclass(frozen=True)
class GenieVerdict:
    """What Genie's parser says of a configuration.

    Attributes:
        accepted: Whether it takes the text.
        where: The place below `dialog`, like `/context/size`; empty where the parser says none.
        message: Its own words where it does not take it.
    """

    accepted: bool
    where: str = ""
    message: str = ""


@dataclass(frozen=True)
class GenieAnswer:
    """What a dialog produced: token ids for a token query, text for a text query."""

    tokens: tuple[int, ...]
    text: str


def check_config(text: str, *, timeout: float = 60.0) -> GenieVerdict:
    """Let libGenie parse a configuration (JSON text) without loading a model.

    Raises:
        NotRunnableHere: The vendor's libraries are not installed.
        ToolFailed: The parser died.
    """
    qnn.libraries()
    result = child.run(__name__, {"op": "check", "config": text}, timeout=timeout)
    if result.reply["status"] == 0:
        return GenieVerdict(accepted=True)
    said = child.last_words(result.log).removeprefix("; last output: ")
    places = re.findall(r"at '([^']*)'", said)
    return GenieVerdict(
        accepted=False,
        where=places[0] if places else "",
        message=said or f"status {result.reply['status']}",
    )


def query(
    folder: Path,
    config: Mapping[str, Any],
    *,
    tokens: Sequence[int] | None = None,
    text: str | None = None,
    max_tokens: int = 16,
    adapter: str | None = None,
    timeout: float = 600.0,
) -> GenieAnswer:
    """Ask one question in a fresh dialog.

    Args:
        folder: What the configuration's relative paths start from: a container.
        config: Contents of genie_config.json; see `emulated`.
        tokens: Token ids of the prompt, or
        text: the prompt as text. Genie puts the beginning token in front of either.
        max_tokens: Tokens to generate at most.
        adapter: One of the configuration's, at full strength; None = the base.
        timeout: Seconds, loading included.

    Raises:
        NotRunnableHere: The vendor's libraries are not installed.
        ToolFailed: Genie refused the configuration or a binary, or died.
    """
    qnn.libraries()
    request = {
        "op": "query",
        "config": json.dumps(config),
        "tokens": None if tokens is None else [int(token) for token in tokens],
        "text": text,
        "max_tokens": max_tokens,
        "adapter": adapter,
    }
    with tempfile.TemporaryDirectory(prefix="genai-genie-") as name:
        private = Path(name)
        for entry in folder.resolve().iterdir():
            os.symlink(entry, private / entry.name)
        reply = child.run(__name__, request, folder=private, timeout=timeout).reply
    return GenieAnswer(tuple(reply["tokens"]), reply["text"])


def emulated(config: Mapping[str, Any], folder: str = "emulation") -> dict[str, Any]:
    """A container's configuration with its binaries taken from the emulation folder."""
    made: dict[str, Any] = copy.deepcopy(dict(config))
    engines = made["dialog"]["engine"]
    for engine in engines if isinstance(engines, list) else [engines]:
        binary = engine["model"]["binary"]
        binary["ctx-bins"] = [f"{folder}/{Path(path).name}" for path in binary["ctx-bins"]]
        backend = engine["backend"]
        backend.pop("extensions", None)
        backend["QnnHtp"] |= {"use-mmap": False, "poll": False, "cpu-mask": "0x1"}
        engine["n-threads"] = 1
    return made


_TokenCallback = CFUNCTYPE(None, POINTER(c_uint32), c_uint32, c_int32, c_void_p)
_TextCallback = CFUNCTYPE(None, c_char_p, c_int32, c_void_p)
_LogCallback = CFUNCTYPE(None, c_void_p, c_char_p, c_uint32, c_uint64, c_void_p)


class _Dialog:
    """One libGenie dialog in this process."""

    def __init__(self, config: str) -> None:
        self.library = ctypes.CDLL(str(qnn.libraries().genie))
        self.log_callback = _LogCallback(
            lambda _handle, text, level, time, arguments: capi.log_to_stderr(
                text, level, time, arguments
            )
        )
        log, parsed, self.handle = c_void_p(), c_void_p(), c_void_p()
        self.call("GenieLog_create", None, self.log_callback, c_uint32(1), byref(log))
        self.call("GenieDialogConfig_createFromJson", c_char_p(config.encode()), byref(parsed))
        self.call("GenieDialogConfig_bindLogger", parsed, log)
        self.call("GenieDialog_create", parsed, byref(self.handle))

    def wear(self, adapter: str, *, alpha: str) -> None:
        """Apply an adapter: that alone leaves its strength at 0."""
        engine = c_char_p(_ENGINE)
        self.call("GenieDialog_applyLora", self.handle, engine, c_char_p(adapter.encode()))
        name, full = c_char_p(alpha.encode()), c_float(1.0)
        self.call("GenieDialog_setLoraStrength", self.handle, engine, name, full)

    def call(self, name: str, *arguments: Any) -> None:
        function = getattr(self.library, name)
        function.restype = c_int32
        status = int(function(*arguments))
        if status not in (0, _CONTEXT_EXCEEDED):
            raise ToolFailed(f"{name} failed with status {status}", where="libGenie")


def _alpha_input(config: Mapping[str, Any]) -> str:
    """The input that a configuration's adapters are scaled by.

    Raises:
        ToolFailed: It has none.
    """
    try:
        name = config["dialog"]["engine"]["model"]["binary"]["lora"]["alpha-tensor-name"]
    except (KeyError, TypeError) as error:
        raise ToolFailed("the configuration has no adapters", where="libGenie") from error
    return str(name)


def _check(config: str) -> dict[str, Any]:
    library = ctypes.CDLL(str(qnn.libraries().genie))
    library.GenieDialogConfig_createFromJson.restype = c_int32
    parsed = c_void_p()
    status = library.GenieDialogConfig_createFromJson(c_char_p(config.encode()), byref(parsed))
    return {"status": int(status)}


def _query(request: Mapping[str, Any]) -> dict[str, Any]:
    dialog = _Dialog(request["config"])
    if request["adapter"] is not None:
        dialog.wear(request["adapter"], alpha=_alpha_input(json.loads(request["config"])))
    dialog.call("GenieDialog_setMaxNumTokens", dialog.handle, c_uint32(request["max_tokens"]))
    tokens: list[int] = []
    pieces: list[bytes] = []

    def on_tokens(values: Any, count: int, _code: int, _user: int) -> None:
        tokens.extend(int(values[i]) for i in range(count))

    def on_text(piece: bytes, _code: int, _user: int) -> None:
        pieces.append(piece or b"")

    code = c_int32(_WHOLE_SENTENCE)
    if request["tokens"] is not None:
        ids = (c_uint32 * len(request["tokens"]))(*request["tokens"])
        callback: Any = _TokenCallback(on_tokens)
        dialog.call(
            "GenieDialog_tokenQuery", dialog.handle, ids, c_uint32(len(ids)), code, callback, None
        )
    else:
        callback = _TextCallback(on_text)
        text = c_char_p(str(request["text"]).encode())
        dialog.call("GenieDialog_query", dialog.handle, text, code, callback, None)
    return {"tokens": tokens, "text": b"".join(pieces).decode("utf-8", errors="replace")}


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _check(request["config"]) if request["op"] == "check" else _query(request)
    except ToolFailed as error:
        sys.stderr.flush()
        log = Path(child.LOG).read_text(encoding="utf-8", errors="replace")
        raise ToolFailed(f"{error.message}{child.last_words(log)}", where=error.where) from error


if __name__ == "__main__":
    child.serve(_serve)
