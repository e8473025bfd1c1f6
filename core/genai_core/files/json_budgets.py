"""How much JSON of somebody else's is parsed, and no more.

A store, a bucket or a pod's log may belong to one who means harm: a few MiB of `[[],[],[],...` are
a GiB of objects. So the text is looked at before it is parsed: how long it is, how deep it is
nested, how many values it holds. Every reader of records, leases, sweeps, manifests and facts asks
here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from genai_core.canonical import canonical_json

__all__ = [
    "ANSWER",
    "CONFIG",
    "DOCUMENT",
    "FACTS",
    "LEASE",
    "MANIFEST",
    "RECORD",
    "RECORD_VIEW",
    "SWEEP",
    "Budget",
    "check_numbers",
]

# No backtracking: a string that does not end costs one pass as well.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(rb"[\[{\]}]")


@dataclass(frozen=True)
class Budget:
    """How much one document may hold.

    Attributes:
        what: The document's name.
        most_bytes: Of the text.
        depth: Of lists and mappings inside one another.
        items: Values, lists and mappings together.
    """

    what: str
    most_bytes: int
    depth: int
    items: int

    def within(self, data: bytes) -> bytes:
        """The text, unless it is beyond the budget.

        Raises:
            ValueError: Says which limit.
        """
        if len(data) > self.most_bytes:
            raise self._beyond(f"{len(data)} bytes", f"{self.most_bytes}")
        # Each value but the last has a comma behind it, and each string two quotes; texts hold
        # such characters as well, so whatever is few enough so is few enough.
        quotes = data.count(b'"') - data.count(b'\\"')
        if quotes > 4 * self.items:
            raise self._beyond("more texts", f"{self.items} values")
        opened = data.count(b"[") + data.count(b"{")
        if opened <= self.depth and opened + data.count(b",") < self.items:
            return data
        bare = _STRING.sub(b"", data)
        if bare.count(b"[") + bare.count(b"{") + bare.count(b",") >= self.items:
            raise self._beyond("more values", f"{self.items}")
        depth = 0
        for bracket in _BRACKET.findall(bare):
            depth += 1 if bracket in b"[{" else -1
            if depth > self.depth:
                raise self._beyond("lists and mappings deeper", f"{self.depth}")
        return data

    def read(self, data: bytes) -> Any:
        """The value of a JSON text.

        Raises:
            ValueError: It is beyond the budget, or no JSON; NaN and infinities are none.
        """
        value = json.loads(self.within(data), parse_constant=_no_number)
        check_numbers(value)
        return value

    def _beyond(self, found: str, allowed: str) -> ValueError:
        return ValueError(f"the {self.what} has {found}, and {allowed} are read")


def check_numbers(value: object) -> None:
    """Refuse numbers that have no canonical JSON: `1e999`, and integers that no double holds.

    Raises:
        ValueError: There is one.
    """
    kind = type(value)
    if kind is dict:
        for item in value.values():  # type: ignore[attr-defined]
            check_numbers(item)
    elif kind is list:
        for item in value:  # type: ignore[attr-defined]
            check_numbers(item)
    elif kind is float or kind is int:
        canonical_json(value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_KIB, _MIB = 1 << 10, 1 << 20

RECORD = Budget("record", 2 * _MIB, 32, 40_000)
"""The largest honest one, of a container of 500 files, has 60 KiB and 2,000 values."""
RECORD_VIEW = Budget("record's view", 5 * _MIB, 40, 100_000)
"""The file beside a folder of outputs, which holds the record and what people ask of it."""
LEASE = Budget("lease", 4 * _MIB, 8, 60_000)
"""A build of 10,000 tasks claims as many records, 75 bytes each."""
SWEEP = Budget("sweep", 256 * _KIB, 8, 4_000)
"""A gc names at most 200 things at once."""
MANIFEST = Budget("manifest", 4 * _MIB, 32, 80_000)
ADAPTERS = Budget("index of adapters", 256 * _KIB, 8, 8_000)
"""64 adapters and as many use cases of 16 are 3,500 values."""
DOCUMENT = Budget("file", 16 * _MIB, 32, 400_000)
"""Any other file of a container."""
FACTS = Budget("facts", 8 * _MIB, 32, 250_000)
"""What ingest found out: some 200 values a layer."""
CONFIG = Budget("configuration", 4 * _MIB, 64, 100_000)
"""A model's config.json."""
ANSWER = Budget("answer", 16 * _MIB, 40, 300_000)
"""What a pod tells of the records that it looked up."""
