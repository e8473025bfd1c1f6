"""Why a task will run: which part of its key differs from the nearest record in the store.

A key that is not in the store says nothing by itself. The parts that it was made of do, when they
are laid beside those of a record of the same operation: a config field, a library, an input's file.
Where all parts agree, the operation's code has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from genai_core.tasks.record import flat_strings

__all__ = ["KeyParts", "differences", "nearest", "why_it_runs"]

_MOST_SHOWN = 3
_WORDS = {
    "encodings": "the encodings",
    "source": "the source model",
    "model": "the graph or its weights",
    "core": "the core graph",
    "tokens": "the tokens",
    "calibration": "the calibration text",
    "assets": "the tokenizer or configuration",
    "fidelity": "the fidelity report",
}


@dataclass(frozen=True)
class KeyParts:
    """What a key is made of.

    Attributes:
        config: JSON values.
        inputs: Input name -> relative path -> digest.
        versions: Library -> version.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str] = field(default_factory=dict)


def nearest(wanted: KeyParts, records: Iterable[KeyParts]) -> KeyParts | None:
    """The record that differs least; None where there are none.

    Config counts most: a record of another graph or split is a neighbour, not an earlier version.
    """
    best: tuple[tuple[int, int, int], KeyParts] | None = None
    flat = flat_strings(dict(wanted.config))
    for record in records:
        other = flat_strings(dict(record.config))
        score = (
            sum(flat.get(name) != other.get(name) for name in flat.keys() | other.keys()),
            len(_changed_files(wanted, record)),
            sum(
                wanted.versions.get(name) != record.versions.get(name)
                for name in wanted.versions.keys() | record.versions.keys()
            ),
        )
        if best is None or score < best[0]:
            best = (score, record)
    return best[1] if best else None


def differences(wanted: KeyParts, record: KeyParts) -> list[str]:
    """Sentences' parts about what differs, the most telling first."""
    found: list[str] = []
    flat, other = flat_strings(dict(wanted.config)), flat_strings(dict(record.config))
    for name in sorted(flat.keys() | other.keys()):
        now, before = flat.get(name), other.get(name)
        if now != before and {now, before} != {None, "{}"}:  # an empty mapping's own place
            found.append(f"{name} is {_shown(now)}, not {_shown(before)}")
    for name in sorted(wanted.versions.keys() | record.versions.keys()):
        now, before = wanted.versions.get(name), record.versions.get(name)
        if now != before:
            found.append(f"{name} is {_shown(now)}, not {_shown(before)}")
    by_input: dict[str, list[str]] = {}
    for name, path in _changed_files(wanted, record):
        by_input.setdefault(name, []).append(path)
    for name, paths in by_input.items():
        word = _WORDS.get(name, f"the input {name}")
        listed = ", ".join(paths[:_MOST_SHOWN]) + (" ..." if len(paths) > _MOST_SHOWN else "")
        found.append(f"{word} changed ({listed})")
    return found


def why_it_runs(wanted: KeyParts, records: Sequence[KeyParts], *, miss: str = "") -> str:
    """One sentence for people.

    Args:
        wanted: Of the task.
        records: Of the same operation, from the store.
        miss: What the store said.
    """
    if miss and miss != "no record":
        return miss
    record = nearest(wanted, records)
    if record is None:
        return "nothing like it is in the store"
    found = differences(wanted, record)
    if not found:
        return "the operation's code changed since it was cached"
    config = {part.partition(" is ")[0] for part in found if " is " in part}
    if config & {"graph.ar", "graph.cl"} and not _same_graph(wanted, record):
        return f"new graph: {'; '.join(found[:_MOST_SHOWN])}"
    more = len(found) - _MOST_SHOWN
    return "; ".join(found[:_MOST_SHOWN]) + (f"; and {more} more differences" if more > 0 else "")


def _same_graph(wanted: KeyParts, record: KeyParts) -> bool:
    return wanted.config.get("graph") == record.config.get("graph")


def _changed_files(wanted: KeyParts, record: KeyParts) -> list[tuple[str, str]]:
    return [
        (name, path)
        for name in sorted(wanted.inputs.keys() | record.inputs.keys())
        for path in sorted(wanted.inputs.get(name, {}).keys() | record.inputs.get(name, {}).keys())
        if wanted.inputs.get(name, {}).get(path) != record.inputs.get(name, {}).get(path)
    ]


def _shown(value: str | None) -> str:
    return "absent" if value is None else value or "empty"
