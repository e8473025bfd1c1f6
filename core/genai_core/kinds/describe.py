"""Descriptions of fields, read from the string literals below them in the source.

One text serves `kubectl explain`, the reference page and the reader of the code. Parsing the source
costs milliseconds a class, so it happens when a schema is generated, not when a kind is imported.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap

from pydantic import BaseModel


def describe_fields(model: type[BaseModel]) -> dict[str, str]:
    """Return {field name: description} of a model, inherited fields included.

    A field without a text is absent. Line breaks are folded.
    """
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind.__module__ != "pydantic.main":
            found.update(_own_fields(kind))
    return {name: text for name, text in found.items() if name in model.model_fields}


def describe_kind(model: type[BaseModel]) -> str:
    """What a kind is: the first paragraph of its module, without the name that stands before it."""
    text = inspect.getdoc(inspect.getmodule(model)) or ""
    said = " ".join(text.split("\n\n")[0].split()).split(": ", 1)[1]
    return said[:1].upper() + said[1:]


def _own_fields(kind: type[BaseModel]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[statement.target.id] = " ".join(after.value.value.split())
    return found
