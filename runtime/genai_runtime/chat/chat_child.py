"""The process that renders chat templates; see `chat_template`.

    stdin   {"template": TEXT, "variables": {...}, "seconds": OF CPU TIME}
    stdout  {"text": TEXT}, or {"refused": WORDS}, {"broken": WORDS}, {"ended": SIGNAL},
            {"missing": MODULE}

Each is rendered by a fork, see `forks`. Imports jinja2 and the standard library alone.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any

from genai_runtime import forks

_MEMORY_BYTES = 512 << 20
_LARGEST_TEXT = 4 << 20
"""Characters of a rendered conversation."""
_NO_MEMORY = "it takes more memory than a template may"


def main() -> int:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401 - imported once, for all forks
    except ModuleNotFoundError as error:
        sys.stdin.buffer.readline()
        forks.write(1, json.dumps({"missing": error.name}).encode() + b"\n")
        return 0
    return forks.answer_all(_answer, no_memory={"broken": _NO_MEMORY})


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
        return {"broken": _NO_MEMORY}
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
    for piece in environment.from_string(request["template"]).generate(request["variables"]):
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
