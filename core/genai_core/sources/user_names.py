"""Errors in the names of the user's files.

A stage sees a folder of roles (`model.onnx`, `model.encodings`, `tokens.npy`), whatever the user
calls the files, since keys must not depend on their names. Its errors speak of roles; here they get
the user's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from genai_core.errors import GenAIError

__all__ = ["with_user_names"]


def with_user_names(error: GenAIError, names: Mapping[str, str]) -> GenAIError:
    """The same error with files as the user calls them.

    Args:
        error: Names roles, in `where` and in its message.
        names: Role -> the file's own name.

    Returns:
        The error itself where no name differs.
    """
    changed = {role: name for role, name in names.items() if role != name}
    if not changed:
        return error
    longest_first = sorted(changed, key=len, reverse=True)
    # Not inside a path or a longer name, and not the field `model.onnx` of a spec.
    whole = re.compile(
        r"(?<![\w./-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w/-]|\.\w)"
    )

    def own(text: str) -> str:
        return whole.sub(lambda match: changed[match[1]], text)

    return type(error)(own(error.message), where=own(error.where), remedy=error.remedy)
