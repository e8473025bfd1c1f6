"""A process that answers requests by forks of itself: nothing of one is there for the next.

Each request and each answer is a JSON object on a line. A fork's memory and CPU time are bounded;
one that ends in any other way than by answering is told as such. Imports the standard library
alone, so that such a process starts in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["answer_all", "write"]

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def answer_all(answer: Answer, *, no_memory: dict[str, Any]) -> int:
    """Answer what comes on standard input until there is no more; returns the exit code.

    Args:
        answer: Run in a fork; the request's `seconds` are its CPU time.
        no_memory: What is told of a fork that ended with an error of its own. One that a signal
            ended is told as `{"ended": SIGNAL}`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        write(1, _forked(line, answer, no_memory) + b"\n")
    return 0


def write(fd: int, data: bytes) -> None:
    """All of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _forked(line: bytes, answer: Answer, no_memory: dict[str, Any]) -> bytes:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ours)
            os.close(0)
            os.close(1)
            request = json.loads(line)
            resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
            write(theirs, json.dumps(answer(request)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return json.dumps({"ended": -code}).encode()
    if code or not told:
        return json.dumps(no_memory).encode()
    return told
