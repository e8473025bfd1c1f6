"""What is remembered of stores, within bounds: records without what nobody reads, small files.

Whoever writes a store decides how much its records hold, and a build of a thousand tasks reads a
thousand. So each is stripped as soon as it is there, what is kept is weighed, and a build whose
records weigh more than any honest one's is not looked at any further.
"""

from __future__ import annotations

from genai_core.errors import StoreUnavailable
from genai_core.tasks.record import Record

__all__ = ["MOST_WEIGHT", "BlobCache", "check_weight", "stripped", "weight_of"]

MOST_WEIGHT = 1_000_000
"""Values, about 100 bytes each; ten thousand tasks have a third of that."""
_MOST_BLOBS_BYTES = 64 << 20
_MOST_WARNINGS = 32
_OUTPUT = 8
_RECORD = 20


def stripped(record: Record) -> Record:
    """A record with what is read of it: outputs, facts, warnings."""
    measured = record.measurements
    return record.model_copy(
        update={
            "config": {},
            "inputs": {},
            "source": "",
            "measurements": measured.model_copy(
                update={"notes": {}, "warnings": measured.warnings[:_MOST_WARNINGS]}
            ),
        }
    )


def weight_of(record: Record) -> int:
    """How many values it keeps in memory, about."""
    count = _RECORD + _OUTPUT * len(record.outputs) + len(record.measurements.warnings)
    stack: list[object] = [record.facts]
    while stack:
        value = stack.pop()
        count += 1
        if isinstance(value, dict):
            count += len(value)
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str):
            count += len(value) // 100
    return count


def check_weight(weight: int, location: str) -> None:
    """Refuse records of one question that weigh too much together.

    Raises:
        StoreUnavailable: They do.
    """
    if weight > MOST_WEIGHT:
        raise StoreUnavailable(
            f"the records that a build asks for hold more than {MOST_WEIGHT:,} values",
            where=location,
            remedy="remove from the store what no genai-operator wrote",
        )


class BlobCache:
    """Small files by their digests; of several threads none minds what another drops."""

    def __init__(self, most: int = _MOST_BLOBS_BYTES) -> None:
        self._most = most
        self._kept: dict[str, bytes] = {}
        self._bytes = 0

    def get(self, digest: str) -> bytes | None:
        """What is kept of it."""
        return self._kept.get(digest)

    def keep(self, digest: str, data: bytes) -> None:
        """Keep one instead of the oldest."""
        if len(data) > self._most // 4 or digest in self._kept:
            return
        self._kept[digest] = data
        self._bytes += len(data)
        while self._bytes > self._most:
            oldest = next(iter(list(self._kept)), None)
            dropped = self._kept.pop(oldest, b"") if oldest is not None else b""
            self._bytes -= len(dropped)
            if oldest is None:
                self._bytes = 0
