"""Adapters of a later revision, by the program beside the server that may read the store.

The server itself holds no credentials: it asks `genai_core.store.adapter_fetch` on a Unix socket,
which only this pod has, and reads what that has laid into a volume that it cannot write itself.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from genai_core.errors import GenAIError, StoreUnavailable, from_dict
from genai_core.files.json_budgets import DOCUMENT

__all__ = ["fetch_by"]

_ANSWER_SECONDS = 600.0
_STARTING_SECONDS = 30.0
"""The program may start beside the server, and after it."""
_TRY_SECONDS = 0.1


def fetch_by(
    path: Path, record: str, revision: str, *, patience: float = _STARTING_SECONDS
) -> Path:
    """Have a revision's adapters fetched; their folder.

    Args:
        path: Of the socket.
        record: `package/<key>`.
        revision: `sha256:...`.
        patience: Seconds in which the program may come.

    Raises:
        StoreUnavailable: The program does not answer.
        GenAIError: What it could not do, in its words.
    """
    until = time.monotonic() + patience
    question = json.dumps({"record": record, "revision": revision}).encode() + b"\n"
    while True:
        try:
            answer = _ask(path, question)
            break
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() >= until:
                raise StoreUnavailable(
                    "the program that fetches adapters is not there", where=str(path)
                ) from error
            time.sleep(_TRY_SECONDS)
        except OSError as error:
            raise StoreUnavailable(
                f"the program that fetches adapters does not answer: {error}", where=str(path)
            ) from error
    if isinstance(answer.get("folder"), str):
        return Path(str(answer["folder"]))
    told = answer.get("error")
    if isinstance(told, dict):
        raise from_dict({str(key): str(text) for key, text in told.items()})
    raise GenAIError("it gives no answer", where=str(path))


def _ask(path: Path, question: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(str(path))
        connection.sendall(question)
        with connection.makefile("rb") as lines:
            data = lines.readline(DOCUMENT.most_bytes + 1)
    try:
        read = DOCUMENT.read(data)
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {}
