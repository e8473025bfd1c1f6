"""What pydantic found wrong with a spec, in the words of whoever wrote it.

A problem names the field as it stands in the YAML, says what was expected in terms of YAML rather
than of Python, and where a name or value is nearly right, which one was probably meant.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from genai_core.kinds.documents.wording import words_of
from genai_core.kinds.documents.yaml_documents import Path

__all__ = ["Problem", "distance", "nearest", "problems", "show_path"]


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        path: The field, or the one that is missing.
        message: What is wrong.
        remedy: What to do, where that is not plain from the message.
    """

    path: Path
    message: str
    remedy: str = ""


def problems(error: ValidationError, model: type[BaseModel], value: object) -> list[Problem]:
    """Every problem once, in the order of the model's fields.

    Args:
        error: What validating `value` against `model` raised.
        model: One of the kinds.
        value: Plain values as they were read.
    """
    found: dict[Path, Problem] = {}
    branches: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = _real_path(detail["loc"], value, missing=detail["type"] == "missing")
        branches.setdefault(path, []).append(detail)
    for path, details in branches.items():
        found[path] = (
            _of_union(path, details) if len(details) > 1 else _of_detail(path, details[0], model)
        )
    return list(found.values())


def show_path(path: Path) -> str:
    """A path as people write it: `spec.targets[0]`, `options["graphs.O"]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that was probably meant, None where none is near.

    Near is one edit for each three letters, at least two, without regard to case and underscores.
    """
    plain = word.lower().replace("_", "").replace("-", "")
    limit = max(2, len(plain) // 3)
    best: tuple[int, str] | None = None
    for choice in choices:
        far = distance(plain, choice.lower())
        if far <= min(limit, max(1, len(choice) - 1)) and (best is None or far < best[0]):
            best = (far, choice)
    return best[1] if best else None


def distance(one: str, other: str) -> int:
    """Edits between two words: insert, delete, replace, swap two neighbours.

    The restricted Damerau-Levenshtein distance.
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        after = [i]
        for j, b in enumerate(other, 1):
            cost = min(row[j] + 1, after[j - 1] + 1, row[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            after.append(cost)
        before, row = row, after
    return row[-1]


def field_names(model: type[BaseModel]) -> list[str]:
    """The fields of a model as they stand in YAML."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _real_path(loc: tuple[int | str, ...], value: object, *, missing: bool) -> Path:
    """Leave out what pydantic adds to a place: branches of unions, `[key]`."""
    path: list[int | str] = []
    here = value
    for n, part in enumerate(loc):
        inside = part in here if isinstance(here, Mapping) else isinstance(part, int)
        if inside and isinstance(here, Mapping | list):
            here = here[part]  # type: ignore[index]
        elif not (missing and n == len(loc) - 1):
            break
        path.append(part)
    return tuple(path)


def _of_union(path: Path, details: list[ErrorDetails]) -> Problem:
    wanted = [text for detail in details if (text := _wanted(detail))]
    got = _got(details[0]["input"])
    return Problem(path, f"expected {' or '.join(dict.fromkeys(wanted))}, got {got}")


def _of_detail(path: Path, detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    kind, given = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(path, model)
    if kind == "missing":
        return Problem(path, "is missing", "add it")
    if kind == "value_error":
        return Problem(path, str(context.get("error", detail["msg"])))
    if kind in {"enum", "literal_error", "is_instance_of"}:
        words = _choices(detail, path, model)
        near = nearest(given, words) if isinstance(given, str) else None
        message = f"expected {_either(words)}, got {_got(given)}"
        return Problem(path, message, f"did you mean {near}?" if near else "")
    if kind == "string_type" and isinstance(given, int | float):
        text = json.dumps(given)
        return Problem(path, f"expected text, got {_got(given)}", f'put it in quotes: "{text}"')
    wanted = _wanted(detail)
    if wanted:
        return Problem(path, f"expected {wanted}, got {_got(given)}")
    return Problem(path, detail["msg"][:1].lower() + detail["msg"][1:])


def _unknown(path: Path, model: type[BaseModel]) -> Problem:
    name = str(path[-1])
    holder = _model_at(model, path[:-1])
    if holder is None:
        return Problem(path, "unknown field", "leave it out")
    allowed = field_names(holder)
    if near := nearest(name, allowed):
        return Problem(path, "unknown field", f"did you mean {near}?")
    elsewhere = [at for at in _all_fields(model, ()) if at[-1] == name and at[0] == path[0]]
    if elsewhere:
        return Problem(path, "unknown field", f"did you mean {show_path(elsewhere[0])}?")
    return Problem(path, "unknown field", f"fields here: {', '.join(allowed)}")


def _wanted(detail: ErrorDetails) -> str:
    """What a type or limit asks for, in words; empty where no rule knows it."""
    kind = detail["type"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind in _LIMITS:
        text, name = _LIMITS[kind]
        return text.format(context[name])
    if kind == "string_pattern_mismatch":
        return words_of(context["pattern"])
    if kind in {"literal_error", "enum"}:
        return _either(_quoted(detail))
    return _TYPES.get(kind, "")


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}

_LIMITS = {
    "greater_than_equal": ("at least {}", "ge"),
    "greater_than": ("more than {}", "gt"),
    "less_than_equal": ("at most {}", "le"),
    "less_than": ("less than {}", "lt"),
    "string_too_short": ("at least {} characters", "min_length"),
    "string_too_long": ("at most {} characters", "max_length"),
    "too_short": ("a list of at least {}", "min_length"),
    "too_long": ("a list of at most {}", "max_length"),
}


def _quoted(detail: ErrorDetails) -> list[str]:
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return [text or number for text, number in re.findall(r"'([^']*)'|(-?\d+)", expected)]


def _choices(detail: ErrorDetails, path: Path, model: type[BaseModel]) -> list[str]:
    """The values that a closed field takes."""
    if detail["type"] != "is_instance_of":
        return _quoted(detail)
    holder = _model_at(model, path[:-1])
    for name, field in holder.model_fields.items() if holder else ():
        kind = field.annotation
        if (field.alias or name) == path[-1] and isinstance(kind, type) and issubclass(kind, Enum):
            return [str(member.value) for member in kind]
    return []


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _got(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f'{text[:56]}..."'


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that holds the fields at a path."""
    here: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue
        if here is None:
            return None
        field = next(
            (f for name, f in here.model_fields.items() if (f.alias or name) == part), None
        )
        here = next(_models_of(field.annotation), None) if field else None
    return here


def _models_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as `list[Annotated[X, ...]] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for inner in typing.get_args(annotation):
            yield from _models_of(inner)


def _all_fields(model: type[BaseModel], path: Path) -> Iterator[Path]:
    """Every field below a model, lists left out: nobody misplaces a field into one."""
    for name, field in model.model_fields.items():
        at = (*path, field.alias or name)
        yield at
        if typing.get_origin(field.annotation) is not list:
            for inner in _models_of(field.annotation):
                yield from _all_fields(inner, at)
