"""YAML text to plain values that still know their lines.

A mistake in a spec is mended in an editor, so every message should name the line. Besides that,
this reader is stricter than PyYAML's: a key that stands twice is an error rather than a surprise,
tags that would build objects are refused, and aliases cannot be piled up into a huge document.
Plain scalars mean what they mean to `kubectl apply`: `1e-3` is a number, a date is text, `yes` is
true. Numbers with a leading zero, whose base is a matter of opinion, stay text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from genai_core.errors import InvalidSpec
from genai_core.files.foreign import plain_text

__all__ = ["Document", "Path", "load_documents"]

Path = tuple[str | int, ...]
"""Where a value stands: names of fields and indices of items."""

MAX_BYTES = 1 << 20
"""etcd refuses larger objects anyway."""
MAX_VALUES = 100_000
"""Values of a document with every alias written out."""

_TAG = "tag:yaml.org,2002:"
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Document:
    """One document of a YAML stream.

    Attributes:
        value: None, bool, int, float, str, lists and dicts with str names of these.
        lines: Where each field and item stands; the first line is 1.
    """

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of a value, or of what holds it where it does not exist."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):  # type: ignore[misc, unused-ignore]
    """Composes nodes; values are made by `_Maker`."""

    def __init__(self, stream: bytes | str) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)


_DECIMAL = r"(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
_IMPLICIT = {
    "bool": ("|".join(f"{w}|{w.title()}|{w.upper()}" for w in _BOOLS), "tTfFyYnNoO"),
    "null": ("~|null|Null|NULL|", "~nN"),
    "int": ("[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (rf"[-+]?(?:{_DECIMAL}|\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN", "-+0123456789."),
    "merge": ("<<", "<"),
}
for _name, (_pattern, _first) in _IMPLICIT.items():
    _starts = ["" if _name == "null" else _first[0], *_first]
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _starts)


def load_documents(text: bytes | str, *, name: str) -> list[Document]:
    """Read every document of a YAML stream; empty ones are left out.

    Args:
        text: UTF-8, or with the mark of another byte order.
        name: The file's name as messages show it.

    Raises:
        InvalidSpec: Syntax, a key twice, a tag, or too much of it; names file and line.
    """
    if len(text) > MAX_BYTES:
        raise InvalidSpec(
            f"{len(text)} bytes are more than an apiserver takes ({MAX_BYTES})", where=name
        )
    try:
        loader = _Loader(plain_text(text) if isinstance(text, bytes) else text)
        found: list[Document] = []
        while loader.check_node():
            node = loader.get_node()
            maker = _Maker(name)
            value = maker.make(node, ()) if node else None
            if value is not None:
                found.append(Document(value, maker.lines))
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, name) from error
    except (ReaderError, UnicodeDecodeError) as error:
        raise InvalidSpec(
            "it is not text that YAML can hold (UTF-8 without control characters)",
            where=name,
            remedy="is this the right file?",
        ) from error
    except RecursionError as error:
        raise InvalidSpec("it is nested too deeply", where=name) from error
    return found


def _syntax(error: yaml.MarkedYAMLError, name: str) -> InvalidSpec:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = error.problem or "not YAML"
    remedy = ""
    if "'\\t'" in problem:
        problem, remedy = "a tab where YAML wants spaces", "indent with spaces"
    elif "mapping values are not allowed" in problem:
        problem = "a second ': ' on this line, or a wrong indentation"
        remedy = "put the text in quotes, or indent it like its neighbours"
    elif (
        error.context and error.context_mark and error.context_mark.line != getattr(mark, "line", 0)
    ):
        problem = f"{problem} ({error.context} in line {error.context_mark.line + 1})"
    return InvalidSpec(problem, where=where, remedy=remedy)


class _Maker:
    """Makes the values of one document and notes their lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self._made = 0
        self._open: set[int] = set()

    def make(self, node: Node, path: Path) -> Any:
        self._made += 1
        if self._made > MAX_VALUES:
            raise self._refuse(node, "its aliases grow into too large a document")
        if id(node) in self._open:
            raise self._refuse(node, "an alias stands inside what it stands for")
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
                return self._mapping(node, path)
            if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.make(item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, ScalarNode):
                return self._scalar(node)
        finally:
            self._open.discard(id(node))
        raise self._refuse(node, f"the tag {node.tag} has no meaning here")

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                for name, item in self._merged(value, path).items():
                    merged.setdefault(name, item)
                continue
            if not isinstance(key, ScalarNode) or key.tag != f"{_TAG}str":
                text = getattr(key, "value", "?")
                shown = text if isinstance(text, str) else "a list or mapping"
                raise self._refuse(
                    key, f"the name of a field must be text, not {shown}", "put it in quotes"
                )
            if key.value in found:
                first = self.lines[(*path, key.value)]
                raise self._refuse(
                    key, f"{key.value} stands twice (first in line {first})", "keep one of them"
                )
            self.lines[(*path, key.value)] = key.start_mark.line + 1
            found[key.value] = self.make(value, (*path, key.value))
        return {**merged, **found}

    def _merged(self, node: Node, path: Path) -> dict[str, Any]:
        """What `<<` brings in: a mapping, or a list of them of which earlier ones win."""
        parts = node.value if isinstance(node, SequenceNode) else [node]
        found: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, MappingNode):
                raise self._refuse(part, "<< takes a mapping or a list of mappings")
            value = self.make(part, path)
            for name, item in value.items():
                found.setdefault(name, item)
        return found

    def _scalar(self, node: ScalarNode) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return _BOOLS[text.lower()]
            if kind == "int":
                return int(text.replace("_", ""), 0)
            if kind == "float":
                plain = text.replace("_", "").lower()
                return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError) as error:
            raise self._refuse(node, f"{text!r} is no {kind}") from error
        raise self._refuse(node, f"the tag {node.tag} has no meaning here")

    def _refuse(self, node: Node, message: str, remedy: str = "") -> InvalidSpec:
        return InvalidSpec(message, where=f"{self.name}:{node.start_mark.line + 1}", remedy=remedy)
