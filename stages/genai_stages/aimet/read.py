"""Reads an encodings file of any supported version into one form.

The version is what the file says; the shape of its sections must agree, so that a file whose
version line was edited is refused rather than misread.

Block encodings of a large model hold a hundred million numbers. Lists become arrays as soon as
their entry is read, and who needs the grids of some weights only names those.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genai_core.errors import BadEncodings
from genai_core.files.foreign import boundary, decoded, refuse_pointer
from genai_stages.aimet import fields, v0_6_1, v1_0_0, v2_0_0
from genai_stages.aimet.model import Encoding, EncodingSet, Outline


class _Reader(NamedTuple):
    sections: tuple[str, ...]
    container: type
    entries: Callable[[object, str], Iterator[Encoding]]


_READERS = {
    "0.6.1": _Reader(v0_6_1.SECTIONS, dict, v0_6_1.entries),
    "1.0.0": _Reader(v1_0_0.SECTIONS, list, v1_0_0.entries),
    "2.0.0": _Reader(v2_0_0.SECTIONS, list, v2_0_0.entries),
    "2.1.0": _Reader(v2_0_0.SECTIONS, list, v2_0_0.entries),
}
VERSIONS = tuple(_READERS)


_LONG = 64
"""Numbers from which on a list is kept as an array."""


def read_encodings(path: Path, *, of: Collection[str] | None = None) -> EncodingSet:
    """Read a `.encodings` file.

    Args:
        path: The file.
        of: Keep entries of several scales for these tensors alone; the others are checked and
            known by name. None = all.

    Raises:
        BadEncodings: Not JSON, an unknown version, a shape that is not the version's, an entry
            with nonsense in it, or a name twice.
    """
    try:
        refuse_pointer(path)
        text = decoded(path.read_bytes())
    except OSError as error:
        raise BadEncodings(
            f"cannot be read ({error.strerror})", where=str(path), remedy="name an existing file"
        ) from None
    except UnicodeDecodeError:
        raise BadEncodings(
            "is not UTF-8 text", where=path.name, remedy="name AIMET's .encodings file"
        ) from None
    with boundary(path.name, kind=BadEncodings, remedy=fields.REMEDY):
        return parse_encodings(text, path.name, of=of)


def parse_encodings(text: str, where: str, *, of: Collection[str] | None = None) -> EncodingSet:
    """The same from the file's text; `where` is the file's name for messages."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise BadEncodings("is listed twice", where=f"{where}: {twice}",
                               remedy=fields.REMEDY)  # fmt: skip
        return {
            name: _compact(value) if isinstance(value, list) and len(value) >= _LONG else value
            for name, value in found.items()
        }

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise BadEncodings(
            f"is not complete JSON: {error.msg} at line {error.lineno} column {error.colno}",
            where=where,
            remedy="copy the file again from where AIMET wrote it",
        ) from None
    except RecursionError:
        raise BadEncodings("is nested too deeply", where=where, remedy=fields.REMEDY) from None
    return _assemble(document, where, of)


def _compact(values: list[object]) -> object:
    """A list of numbers as an array, integers as narrow as they are; anything else as it is."""
    if not isinstance(values[0], int | float | list):
        return values
    try:
        found = np.asarray(values)
    except (ValueError, OverflowError):
        return values
    if found.dtype.kind == "f":
        return found
    if found.dtype.kind != "i":
        return values
    return found.astype(np.promote_types(np.min_scalar_type(found.min()),
                                         np.min_scalar_type(found.max())))  # fmt: skip


def _assemble(document: object, where: str, of: Collection[str] | None) -> EncodingSet:
    if not isinstance(document, Mapping):
        raise BadEncodings(
            f"an object was expected, not {fields.kind(document)}", where=where,
            remedy="name AIMET's .encodings file",
        )  # fmt: skip
    version = document.get("version")
    reader = _READERS.get(version) if isinstance(version, str) else None
    if reader is None:
        raise BadEncodings(
            "no version is stated" if version is None else f"version {version} is not known",
            where=f"{where}: version",
            remedy=f"export as one of {', '.join(VERSIONS)}",
        )
    entries: dict[str, Encoding] = {}
    names: dict[str, None] = {}
    outlines: dict[str, Outline] = {}
    parameters: set[str] = set()
    for section in reader.sections:
        content = document.get(section, reader.container() if len(reader.sections) > 1 else None)
        if not isinstance(content, reader.container):
            expected = "an object" if reader.container is dict else "a list"
            raise BadEncodings(
                f"version {version} has {expected} here, not {fields.kind(content)}",
                where=f"{where}: {section}",
                remedy="state the version that the file was written in",
            )
        for encoding in reader.entries(content, where):
            if encoding.name in names:
                raise BadEncodings("is listed twice", where=f"{where}: {encoding.name}",
                                   remedy=fields.REMEDY)  # fmt: skip
            names[encoding.name] = None
            if encoding.dtype == "int":
                outlines[encoding.name] = Outline(
                    encoding.scale.shape, encoding.axis, encoding.block_size
                )
            if of is None or encoding.scale.size < 2 or encoding.name in of:
                entries[encoding.name] = encoding
            if section == "param_encodings":
                parameters.add(encoding.name)
    if not names:
        raise BadEncodings("holds no encodings", where=where, remedy=fields.REMEDY)
    return EncodingSet(str(version), where, entries, frozenset(parameters), tuple(names), outlines)
