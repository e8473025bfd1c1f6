"""Whether an adapter says that it was trained on another model than the one it is built for.

Models of one size look alike: an adapter of another one fits in every place and only spoils the
text. Names are all that tells, and names are not binding (a copy, a mirror, a path), so a name that
differs is worth a warning and no more.
"""

from __future__ import annotations

import re
from pathlib import Path

from genai_core.errors import GenAIError
from genai_core.files.foreign import read_json_object

__all__ = ["other_base"]

_NAMES = ("_name_or_path", "name_or_path")
_MOST_NAME = 120


def other_base(trained_on: str, config: Path) -> str | None:
    """The sentence for an adapter of another model; None where names agree or one is not known.

    Args:
        trained_on: The base model that the adapter names: a name on a hub or a folder.
        config: The model's config.json, which may be missing, or state no name.
    """
    try:
        stated = read_json_object(config) if config.is_file() else {}
    except GenAIError:
        return None  # it is the model's, and was read when that was
    given = (stated.get(name) for name in _NAMES)
    named = next((name for name in given if isinstance(name, str) and name.strip()), "")
    if not _word(named) or not _word(trained_on) or _word(named) == _word(trained_on):
        return None
    return (
        f"the adapter was trained on {trained_on[:_MOST_NAME]!r}, and this model's config.json "
        f"calls it {named[:_MOST_NAME]!r}: if they are two models, text with the adapter is wrong, "
        "though it fits"
    )


def _word(name: str) -> str:
    """What is compared: the last part of a path, letters and digits alone, of either case."""
    parts = [part for part in re.split(r"[/\\]+", name.strip()) if part not in ("", ".", "..")]
    return re.sub(r"[^a-z0-9]", "", parts[-1].lower()) if parts else ""
