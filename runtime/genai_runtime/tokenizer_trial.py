"""A stranger's tokenizer, tried in a process of its own.

The tokenizers library is written in Rust and ends the whole process where it meets what it does
not expect (a panic that may not unwind, a stack that overflows, memory that is refused). In a build
that would be a stage that died without a word; here it is one sentence that names the file.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from genai_core.errors import BadModel, GenAIError, from_dict

__all__ = ["try_tokenizer"]

_SECONDS = 60
_MEMORY = 4 << 30
"""Bytes of addresses, beside what the process has when it begins: the largest tokenizers of public
models (256,000 tokens) take 1 GiB."""
_TEXTS = (
    'def __init__(self):\n    """Return \'x\'."""\n\treturn x != -1.5e3\r\n',
    "naïve café, über \u6f22\u5b57\u3044\u308d \uc870\uc120\uae00 \u0627\u0644\u0639\u0631 ",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "\u202e\u200b\ufffd\U0010ffff\x00\x7f",
    "a" * 5000,
    " " * 300,
    "<s> </s> <|im_start|>",
)
_REMEDY = "export it with the tokenizer's save_pretrained"


def try_tokenizer(path: Path) -> None:
    """Read a tokenizer.json, cut texts of many scripts into tokens, and turn every id into text.

    It takes 0.2 s, so it is done once, where a build reads the model.

    Raises:
        BadModel: It cannot be read, ends the process that reads it, or takes more than a minute or
            4 GiB.
    """
    command = (sys.executable, "-m", __name__, str(path), str(_SECONDS), str(_MEMORY))
    try:
        ran = subprocess.run(  # noqa: S603 - a module of ours
            command, capture_output=True, check=False, timeout=2 * _SECONDS
        )
    except subprocess.TimeoutExpired:
        raise _refusal(path, f"takes more than {2 * _SECONDS} s to read it") from None
    if ran.returncode == 0:
        return
    if ran.returncode == 1 and ran.stdout:
        raise from_dict(json.loads(ran.stdout))
    raise _refusal(path, f"ends on it ({_how(ran.returncode)})")


def _refusal(path: Path, what: str) -> BadModel:
    return BadModel(f"the tokenizers library {what}", where=path.name, remedy=_REMEDY)


def _how(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"it computes for more than {_SECONDS} s"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _bounds(seconds: int, memory: int) -> None:
    """What this process may take: it reads what anybody may have written."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main(path: Path, seconds: int, memory: int) -> int:
    from genai_runtime.tokenizer import TextTokenizer  # the parent does without

    if sys.platform == "linux":
        _bounds(seconds, memory)
    try:
        tokenizer = TextTokenizer(path)
    except GenAIError as error:
        sys.stdout.write(json.dumps(error.as_dict()))
        return 1
    for text in _TEXTS:
        with suppress(GenAIError):  # a text that it has no tokens for is refused when it comes
            tokenizer.decode(tokenizer.encode(text).tolist())
    with suppress(GenAIError):
        tokenizer.decode(sorted(tokenizer.vocabulary().values()))
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
