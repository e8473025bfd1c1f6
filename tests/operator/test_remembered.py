"""What a store's records hold is theirs who write them; what the operator remembers is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import StoreUnavailable
from genai_core.helper_jobs import HelperAnswer
from genai_core.names import Key
from genai_core.store.protocol import Hit, RecordRef
from genai_core.tasks.record import Record
from genai_operator.stores import lookups as lookups_module
from genai_operator.stores import remembered
from genai_operator.stores.lookups import Lookups, ToldLookups
from genai_operator.stores.remembered import BlobCache, stripped, weight_of


def record(number: int = 0, **fields: Any) -> Record:
    return Record.model_validate(
        {
            "operation": "convert",
            "key": f"{number:064x}",
            "toolchain": {"id": "b" * 64},
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
            **fields,
        }
    )


class Heavy:
    """A store whose every record holds so many values; counts how many are parsed at once."""

    location = "s3://b/heavy"

    def __init__(self, values: int) -> None:
        self.values = values
        self.looked = 0
        self._lock = threading.Lock()

    @property
    def writable(self) -> Heavy:
        return self

    def head_blob(self, _digest: str) -> None:
        return None

    def lookup(self, _operation: str, key: Key, *, head: Callable[[str], None]) -> Hit:
        del head
        with self._lock:
            self.looked += 1
        facts: dict[str, Any] = {"x": [[] for _ in range(self.values)]}
        return Hit(record(int(key, 16), facts=facts), "etag", self.location)


REFS = [RecordRef("convert", Key(f"{number:064x}")) for number in range(200)]


def test_look_ends_early_when_records_hold_more_than_any_build_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remembered, "MOST_WEIGHT", 50_000)
    store = Heavy(1000)
    with pytest.raises(StoreUnavailable, match=r"more than 50,000 values.*s3://b/heavy|values"):
        Lookups(store).look(REFS)  # type: ignore[arg-type]
    assert store.looked <= 50_000 // 1000 + lookups_module._AT_ONCE
    honest = Heavy(10)
    assert len(Lookups(honest).look(REFS)) == 200  # type: ignore[arg-type]


def test_look_forgets_what_weighs_too_much_and_looks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookups_module, "MOST_WEIGHT", 5000)
    store = Heavy(100)
    lookups = Lookups(store)  # type: ignore[arg-type]
    for start in range(0, 200, 20):
        lookups.look(REFS[start : start + 20])
        assert sum(lookups._weights.values()) <= 5000 + 20 * 150
    assert store.looked == 200
    lookups.look(REFS[180:])
    assert store.looked <= 220


def test_told_records_are_stripped_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups_module, "MOST_WEIGHT", 1000)
    told = ToldLookups("s3://b/n")
    for number in range(50):
        told.take(HelperAnswer(records=(record(number, facts={"x": list(range(200))}),)))
    assert len(told._found) < 10


def test_stripped_keeps_outputs_facts_and_a_few_warnings() -> None:
    whole = record(
        config={"a": [1] * 1000},
        inputs={"i": {"f": "a" * 64}},
        outputs={"o": {"sha256": "c" * 64, "size": 3}},
        facts={"revision": "r"},
        source="s3://x",
        measurements={"notes": {"n": [1] * 1000}, "warnings": ["w"] * 100},
    )
    kept = stripped(whole)
    assert (kept.outputs, kept.facts, kept.created_at) == (
        whole.outputs,
        whole.facts,
        whole.created_at,
    )
    assert kept.measurements.warnings == ("w",) * 32
    assert (kept.config, kept.inputs, kept.measurements.notes) == ({}, {}, {})


@given(
    st.recursive(
        st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=5)
        ),
        max_leaves=30,
    )
)
def test_weight_of_counts_every_value(value: Any) -> None:
    def count(node: Any) -> int:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return 1 + sum(map(count, inner))

    least = count(value)
    found = weight_of(record(facts={"x": value})) - weight_of(record())
    assert least <= found <= 3 * least + 3


def test_blobs_keep_so_many_bytes_and_the_newest() -> None:
    blobs = BlobCache(most=1000)
    for number in range(100):
        blobs.keep(str(number), b"x" * 100)
        assert sum(map(len, blobs._kept.values())) == blobs._bytes <= 1000
    assert blobs.get("99") is not None
    assert blobs.get("0") is None
    blobs.keep("large", b"x" * 900)
    assert blobs.get("large") is None, "it would drive out all others"
    blobs.keep("99", b"y")
    assert blobs.get("99") == b"x" * 100
