"""The process that compiles a request's grammar first, where it can do no harm.

    stdin   {"grammar": TEXT, "seconds": OF CPU TIME}
    stdout  {"wrong": WORDS}, empty where it compiles, or {"ended": SIGNAL}

A schema whose references nest deeply overflows the compiler's stack and ends its process. Here the
stack is an eighth of what threads of the server have, so that what compiles here compiles there.
"""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

from llguidance import LLMatcher

from genai_runtime import forks
from genai_serving.structure.answer_forms import limits

_STACK_BYTES = 1 << 20
_MEMORY_BYTES = 64 << 20
"""Beyond what the process has before."""
_NO_MEMORY = "it takes more than 64 MiB to compile"


def main() -> int:
    """Answer requests until there are no more."""
    threading.stack_size(_STACK_BYTES)
    return forks.answer_all(_answer, no_memory={"wrong": _NO_MEMORY})


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    # Not of addresses: an allocator reserves more of them for a thread than it uses.
    most = _data_bytes() + _STACK_BYTES + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    told = {"wrong": _NO_MEMORY}

    def compiled() -> None:
        failed, words = LLMatcher.validate_grammar_with_warnings(
            request["grammar"], None, limits=limits()
        )
        told["wrong"] = words[0] if failed else ""

    thread = threading.Thread(target=compiled)
    thread.start()
    thread.join()
    return told


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
