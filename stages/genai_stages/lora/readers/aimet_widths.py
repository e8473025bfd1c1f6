"""How wide the branches of an adapter are, as its own encodings (AIMET's) have them.

An adapter's file is a bare object, name -> entry, without a version: an entry's form tells which of
AIMET's it is. The first tensor of a branch is x A, the last one what is added to the linear.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from genai_core.errors import BadAdapter, BadEncodings
from genai_core.facts import LoraBranch
from genai_stages.aimet.model import EncodingSet
from genai_stages.aimet.read import parse_encodings

__all__ = ["adapter_widths"]


def adapter_widths(
    entries: Mapping[str, object], branches: Sequence[LoraBranch], *, where: str
) -> dict[str, tuple[float, float]]:
    """The source's tensor of a linear -> largest absolute values of x A and of what is added.

    Args:
        entries: Of the file.
        branches: That the model had.
        where: The file, for messages.

    Raises:
        BadAdapter: An entry is none of AIMET's, or has more than one scale.
    """
    wanted = {
        branch.linear: (branch.tensors[0], branch.tensors[-1])
        for branch in branches
        if branch.tensors and {branch.tensors[0], branch.tensors[-1]} <= entries.keys()
    }
    names = {name for pair in wanted.values() for name in pair}
    if not names:
        return {}
    try:
        read = _read({name: entries[name] for name in sorted(names)}, where)
    except BadEncodings as error:
        raise BadAdapter(error.message, where=error.where, remedy=error.remedy) from error
    found = {}
    for linear, pair in wanted.items():
        both = [read[name] for name in pair]
        wrong = next((one.name for one in both if one.dtype == "int" and not one.per_tensor), None)
        if wrong is not None:
            raise BadAdapter(
                "several scales for an activation, which has one",
                where=f"{where}: {wrong}",
                remedy="export the adapter's encodings again",
            )
        if all(one.dtype == "int" for one in both):
            down, up = (max(-float(one.low), float(one.high)) for one in both)
            found[linear] = down, up
    return found


def _read(entries: Mapping[str, object], where: str) -> EncodingSet:
    """The entries as a file of the version whose form they have."""
    listed = [{"name": name, **entry} for name, entry in entries.items() if isinstance(entry, dict)]
    if len(listed) < len(entries):
        document: dict[str, object] = {
            "version": "0.6.1", "activation_encodings": dict(entries), "param_encodings": {},
        }  # fmt: skip
    elif any("y_scale" in entry for entry in listed):
        document = {"version": "2.0.0", "encodings": listed}
    else:
        document = {"version": "1.0.0", "activation_encodings": listed, "param_encodings": []}
    return parse_encodings(json.dumps(document), where)
