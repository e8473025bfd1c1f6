"""What was looked up in a store, remembered for a while; builds on several threads share it.

A record that was found stands for a while: builds look at the same keys at every step. What is
forgotten, is looked up again; a worker finds out for itself if something was wrong after all.

A store of a service account is not the operator's to read. What a Job of that account told is
remembered just so, and what nobody has told yet has to be asked for (`Unanswered`).
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from typing import Protocol

from genai_core.errors import CorruptBlob
from genai_core.helper_jobs import HelperAnswer, ref_of
from genai_core.names import Key
from genai_core.store.lookup import lookup_all
from genai_core.store.protocol import Hit, Lookup, RecordRef, Store
from genai_core.tasks.record import Blob, Record
from genai_operator.stores.remembered import (
    MOST_WEIGHT,
    BlobCache,
    check_weight,
    stripped,
    weight_of,
)
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Answers", "Lookups", "ToldLookups", "Unanswered"]

_FOUND_SECONDS = 300.0
_MISSED_SECONDS = 15.0
_FRESH_SECONDS = 15.0
"""A container that was found so lately is there when its build is said to be built."""
_THREADS = 16
_MOST_RECORDS = 20_000
_AT_ONCE = 16
"""Records that are read before they are weighed."""
_CONTAINER = "package"
"""The one task whose record must stand in the build's own store, and all that it names."""


class Unanswered(Exception):
    """Records must be looked up by a Job.

    Args:
        refs: Which.
        known: Digests of files that further records may have been made of.
    """

    def __init__(self, refs: Collection[RecordRef], known: Collection[str] = ()) -> None:
        super().__init__(f"{len(refs)} records are to be looked up")
        self.refs = tuple(refs)
        self.known = frozenset(known)


class Answers(Protocol):
    """What a survey asks."""

    @property
    def location(self) -> str:
        """Of the store."""
        ...

    def look(
        self, refs: Collection[RecordRef], *, anew: Iterable[Key] = ()
    ) -> dict[RecordRef, Record | str]:
        """Return a record, or why there is none, for each.

        Args:
            refs: What to look up.
            anew: Keys whose misses do not count any more.

        Raises:
            Unanswered: A Job has to look.
        """
        ...

    def read_blob(self, blob: Blob) -> bytes:
        """Return a small blob's bytes.

        Raises:
            CorruptBlob: They are not there.
        """
        ...

    def forget(self) -> None:
        """Nothing found so far is to be relied on."""
        ...


class Lookups:
    """Of a store that the operator may read."""

    def __init__(self, store: Store, *, timing: Timing = SYSTEM) -> None:
        self._store = store
        self._timing = timing
        self._found: dict[RecordRef, tuple[Record, float]] = {}
        self._missed: dict[RecordRef, tuple[str, float]] = {}
        self._weights: dict[RecordRef, int] = {}
        self._blobs = BlobCache()

    @property
    def location(self) -> str:
        """Where it is written."""
        return self._store.location

    def look(
        self, refs: Collection[RecordRef], *, anew: Iterable[Key] = ()
    ) -> dict[RecordRef, Record | str]:
        """See `Answers`; from the store where nothing is remembered."""
        now, again = self._timing.monotonic(), set(anew)
        answers: dict[RecordRef, Record | str] = {}
        for ref in refs:
            found = self._found.get(ref)
            missed = None if ref.key in again else self._missed.get(ref)
            entry = found if found and found[1] > now else missed
            if entry is not None and entry[1] > now:
                answers[ref] = entry[0]
        wanted = [ref for ref in dict.fromkeys(refs) if ref not in answers]
        many = len(self._found) + len(self._missed) > _MOST_RECORDS
        if many or sum(list(self._weights.values())) > MOST_WEIGHT:
            self.forget()
        weight = sum(self._weights.get(ref, 0) for ref in answers)
        for start in range(0, len(wanted), _AT_ONCE):
            looked = lookup_all(self._store, wanted[start : start + _AT_ONCE], threads=_THREADS)
            for ref, answer in looked.items():
                answers[ref] = self._take(ref, self._usable(ref, answer), now)
                weight += self._weights.get(ref, 0)
            check_weight(weight, self.location)
        return answers

    def still_stand(self, refs: Collection[RecordRef]) -> bool:
        """Ask the store again whether what was found a while ago is there.

        Where it is not, nothing that was found so far is relied on: who removes one thing, or
        empties a bucket, may have removed the rest.
        """
        fresh = self._timing.monotonic() + _FOUND_SECONDS - _FRESH_SECONDS
        old = [ref for ref in refs if (found := self._found.get(ref)) and found[1] <= fresh]
        for ref in old:
            self._found.pop(ref, None)
            self._weights.pop(ref, None)
        if all(isinstance(answer, Record) for answer in self.look(old).values()):
            return True
        self.forget()
        return False

    def _take(self, ref: RecordRef, record: Record | str, now: float) -> Record | str:
        if not isinstance(record, Record):
            self._found.pop(ref, None)
            self._weights.pop(ref, None)
            self._missed[ref] = (record, now + _MISSED_SECONDS)
            return record
        self._missed.pop(ref, None)
        record = stripped(record)
        self._weights[ref] = weight_of(record)
        self._found[ref] = (record, now + _FOUND_SECONDS)
        return record

    def _usable(self, ref: RecordRef, answer: Lookup) -> Record | str:
        """A hit of another store serves as an input; a container is brought into one's own."""
        if not isinstance(answer, Hit):
            return answer.reason
        if ref.operation == _CONTAINER and answer.origin != self._store.writable.location:
            return f"it is copied from {answer.origin}"
        return answer.record

    def read_blob(self, blob: Blob) -> bytes:
        """See `Answers`."""
        data = self._blobs.get(blob.sha256)
        if data is None:
            data = self._store.read_blob(blob)
            self._blobs.keep(blob.sha256, data)
        return data

    def forget(self) -> None:
        """See `Answers`."""
        self._found.clear()
        self._missed.clear()
        self._weights.clear()


class ToldLookups:
    """Of a store that only a service account's Jobs may read."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._found: dict[RecordRef, Record] = {}
        self._missed: set[RecordRef] = set()
        self._weight = 0
        self._blobs = BlobCache()
        self._gone_through: set[str] = set()

    @property
    def location(self) -> str:
        """Where it is."""
        return self._location

    def take(self, answer: HelperAnswer, known: Collection[str] = ()) -> None:
        """Remember what a Job told.

        Args:
            answer: Its words.
            known: Digests of a source whose whole offspring it was asked for.
        """
        self._gone_through |= set(known)
        many = len(self._found) + len(self._missed) > _MOST_RECORDS
        if many or self._weight > MOST_WEIGHT:
            self.forget()
        for digest, text in answer.blobs.items():
            self._blobs.keep(digest, base64.b64decode(text))
        records = {RecordRef(r.operation, r.key): stripped(r) for r in answer.records}
        self._weight += sum(map(weight_of, records.values()))
        self._found |= records
        self._missed -= records.keys()
        self._missed |= {ref for text in answer.asked if (ref := ref_of(text)) not in records}

    def assume_missing(self, asked: Unanswered) -> bool:
        """Spare another question where all that was made of a source has been told.

        What is asked for now follows from a result that came since. Should it stand all the same,
        the Job that is to make it finds it.
        """
        if not asked.known or not self._gone_through.issuperset(asked.known):
            return False
        self._missed |= set(asked.refs)
        return True

    def doubt(self, ref: RecordRef) -> None:
        """A Job was there since: that it was missing says nothing any more."""
        self._missed.discard(ref)

    def look(
        self, refs: Collection[RecordRef], *, anew: Iterable[Key] = ()
    ) -> dict[RecordRef, Record | str]:
        """See `Answers`; what a Job wrote, it told at its end."""
        del anew
        unknown = [ref for ref in refs if ref not in self._found and ref not in self._missed]
        if unknown:
            raise Unanswered(unknown)
        return {ref: self._found.get(ref, "no record") for ref in refs}

    def read_blob(self, blob: Blob) -> bytes:
        """See `Answers`."""
        data = self._blobs.get(blob.sha256)
        if data is None:
            raise CorruptBlob(f"blob {blob.sha256[:12]} was not told", where=self._location)
        return data

    def forget(self) -> None:
        """See `Answers`."""
        self._found.clear()
        self._missed.clear()
        self._weight = 0
        self._gone_through.clear()
