"""Small questions about a store, asked by a Job where the asker has no credentials of its own.

A store that is reached by a service account can only be read by that account's pods. So a pod tries
the store, looks records up, writes leases or cleans it, and says what it found: a few numbers in
its termination message, records as lines of its log. The lines are plain JSON, packed, in pieces
that a kubelet does not split; whatever else stands in a log is passed over.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from genai_core.files.json_budgets import ANSWER
from genai_core.names import Key
from genai_core.store.protocol import RecordRef
from genai_core.tasks.record import Record

__all__ = [
    "CollectFile",
    "HelperAnswer",
    "LeaseFile",
    "LookFile",
    "ProbeFile",
    "answer_lines",
    "read_answer",
    "ref_of",
]

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_MARK = "genai-answer"
_PIECE = 6000
_LINE = re.compile(rf"{_MARK} ([0-9]{{1,6}})/([0-9]{{1,6}}) ([A-Za-z0-9+/=]+)")

RefText = Annotated[str, Field(pattern=r"^[a-z_]{1,64}/[0-9a-f]{64}$")]


class LeaseFile(BaseModel):
    """A lease that is to be written.

    Attributes:
        records: What is claimed beside what the lease claims already.
        containers: Target -> record of what was built: the build is done, and only this and the
            last revisions stay claimed. None: it is at work, or, without records, at rest.
        uploads: Names of uploaded models that the build reads; left out where there are none, so
            that images which do not know the field go on working.
    """

    model_config = _FROZEN

    kind: Literal["lease"] = "lease"
    name: str
    holder: str
    records: tuple[RefText, ...] = ()
    containers: dict[str, RefText] | None = None
    keep: int = 3
    uploads: tuple[str, ...] | None = None


class LookFile(BaseModel):
    """Records that are looked up, and all that were made of them.

    Attributes:
        known: Digests of files that records may have been made of, beside those found.
        read: Names of small outputs whose bytes are wanted as well.
        lease: Written before anything is looked up.
    """

    model_config = _FROZEN

    kind: Literal["look"] = "look"
    refs: tuple[RefText, ...]
    known: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    lease: LeaseFile | None = None


class ProbeFile(BaseModel):
    """The store is tried; see `Store.probe`."""

    model_config = _FROZEN

    kind: Literal["probe"] = "probe"


class CollectFile(BaseModel):
    """The store is cleaned; see `collect`."""

    model_config = _FROZEN

    kind: Literal["collect"] = "collect"
    grace_days: float


class HelperAnswer(BaseModel):
    """What was found.

    Attributes:
        asked: What was looked up; what is not among `records` is not there.
        blobs: Digest -> base64 of the small outputs that were wanted.
    """

    model_config = _FROZEN

    asked: tuple[RefText, ...] = ()
    records: tuple[Record, ...] = ()
    blobs: dict[str, str] = Field(default_factory=dict)


def ref_of(text: str) -> RecordRef:
    """A record's place from `<operation>/<key>`."""
    operation, _, key = text.partition("/")
    return RecordRef(operation, Key(key))


def answer_lines(answer: HelperAnswer) -> Iterator[str]:
    """The lines of a log that carry an answer."""
    packed = base64.b64encode(zlib.compress(answer.model_dump_json(exclude_none=True).encode()))
    pieces = [packed[start : start + _PIECE] for start in range(0, len(packed), _PIECE)]
    for number, piece in enumerate(pieces, 1):
        yield f"{_MARK} {number}/{len(pieces)} {piece.decode()}"


def read_answer(log: str) -> HelperAnswer | None:
    """The last whole answer in a log; None where there is none."""
    pieces: list[str] = []
    whole = ""
    for match in _LINE.finditer(log):
        number, count = int(match[1]), int(match[2])
        if number != len(pieces) + 1:
            pieces.clear()
        if number == len(pieces) + 1:
            pieces.append(match[3])
        if number == count == len(pieces):
            whole = "".join(pieces)
            pieces.clear()
    if not whole:
        return None
    try:
        # What a pod says is not believed to be small.
        data = zlib.decompressobj().decompress(base64.b64decode(whole), ANSWER.most_bytes + 1)
        return HelperAnswer.model_validate_json(ANSWER.within(data))
    except (ValueError, zlib.error):
        return None
