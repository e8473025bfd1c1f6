"""The process that renders chat templates; see `chat_process`.

    stdin   {"template": TEXT, "variables": {...}, "seconds": OF CPU TIME}
    stdout  {"text": TEXT}, or {"refused": WORDS}, {"broken": WORDS}, {"ended": SIGNAL},
            {"missing": MODULE}

One JSON object a line. Each is rendered by a fork, whose memory and time are bounded. Imports
jinja2 and the standard library alone, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from datetime import datetime
from typing import Any

_MEMORY_BYTES = 512 << 20
_LARGEST_TEXT = 4 << 20
"""Characters of a rendered conversation."""


def main() -> int:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401 - imported once, for all forks
    except ModuleNotFoundError as error:
        sys.stdin.buffer.readline()
        _write(1, json.dumps({"missing": error.name}).encode() + b"\n")
        return 0
    for line in sys.stdin.buffer:
        _write(1, _rendered(line) + b"\n")
    return 0


def _rendered(line: bytes) -> bytes:
    """The answer of a fork."""
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
            _write(theirs, json.dumps(_answer(request)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return json.dumps({"ended": -code}).encode()
    if code or not answer:
        return json.dumps({"broken": "it takes more memory than a template may"}).encode()
    return answer


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _answer(request: dict[str, Any]) -> dict[str, str]:
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    try:
        return {"text": _render(request)}
    except _RefusedError as error:
        return {"refused": str(error)[:500]}
    except TemplateSyntaxError as error:
        return {"broken": f"line {error.lineno}: {error.message}"}
    except SecurityError as error:
        return {"broken": f"it does what the sandbox forbids: {error}"}
    except TemplateError as error:
        return {"broken": str(error)[:500]}
    except (MemoryError, RecursionError):
        return {"broken": "it takes more memory than a template may"}
    except Exception as error:  # noqa: BLE001 - a template is a program: it can fail in any way
        return {"broken": f"{type(error).__name__}: {error}"[:500]}


class _RefusedError(Exception):
    """What `raise_exception` of a template raises."""


def _render(request: dict[str, Any]) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # As transformers renders templates: they rely on its whitespace rules and globals.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005
    pieces: list[str] = []
    length = 0
    for piece in environment.from_string(request["template"]).generate(**request["variables"]):
        length += len(piece)
        if length > _LARGEST_TEXT:
            raise MemoryError
        pieces.append(piece)
    return "".join(pieces)


def _refuse(message: object) -> None:
    raise _RefusedError(str(message))


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:  # noqa: FBT001, FBT002 - as templates call it
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _generation() -> type:
    """`{% generation %}`: marks what the assistant said, for training; here its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


if __name__ == "__main__":
    raise SystemExit(main())
