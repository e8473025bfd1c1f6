"""The version rule of a container's JSON files.

Each file says its `schema_version`; without one it is 1. A program reads every version up to the
newest it knows:

- a newer file is refused by its version, before any field is looked at;
- an older file is read as it is. A field that a later version added is optional, and left out
  where it has its default, so an older file's digest (a container's revision) stays the same;
- a writer states the oldest version that has all the fields it writes.
"""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from genai_core.errors import BadInput
from genai_core.files.json_budgets import DOCUMENT, Budget

_M = TypeVar("_M", bound=BaseModel)
_MOST_FAULTS = 1000


def read_versioned(
    model: type[_M], data: bytes | str, *, newest: int, where: str, budget: Budget = DOCUMENT
) -> _M:
    """A JSON file as its model.

    Args:
        model: Has a field `schema_version`.
        data: The file's content.
        newest: The newest version that this program reads.
        where: The file, for messages.
        budget: How much it may hold.

    Raises:
        BadInput: The file is newer, is not JSON, or lacks the model's form.
    """
    try:
        data = budget.within(data if isinstance(data, bytes) else data.encode())
        content = json.loads(data)
    except ValueError as error:
        raise BadInput(f"not JSON: {error}", where=where) from error
    version = content.get("schema_version", 1) if isinstance(content, dict) else None
    if isinstance(version, int) and version > newest:
        raise BadInput(
            f"has schema_version {version}, made by a newer genai; this one reads up to {newest}",
            where=where,
            remedy="upgrade genai-operator",
        )
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        if error.error_count() > _MOST_FAULTS:  # each that is told is a kilobyte
            raise BadInput(f"{error.error_count()} values are wrong", where=where) from error
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = str(problem["msg"])
        raise BadInput(f"{place}: {message}" if place else message, where=where) from error
