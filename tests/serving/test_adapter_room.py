"""What adapters take, before anything is opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from genai_core.container.adapters import AdapterEntry, AdapterIndex, UseCaseEntry, WornEntry
from genai_runtime.executor.adapter_weights import AdapterShape, NoRoom
from genai_serving.adapters.start import AdapterRoom, plan_room

MIB = 1 << 20
LINEARS = {f"linear.{number}": (96, 160) for number in range(64)}
"""A rank of all of them takes 64 KiB."""


def shape(rank: int, linears: int = 64) -> AdapterShape:
    sizes = dict(list(LINEARS.items())[:linears])
    return AdapterShape(rank, sizes, linears * (96 + 160) * rank * 4)


def index_of(
    shapes: Mapping[str, AdapterShape], use_cases: Collection[tuple[str, ...]] = ()
) -> AdapterIndex:
    entries = {
        name: AdapterEntry(file=name, sha256="0" * 64, rank=one.rank, linears=1)
        for name, one in shapes.items()
    }
    cases = {
        "+".join(names): UseCaseEntry(adapters=tuple(WornEntry(name=name) for name in names))
        for names in use_cases
    }
    return AdapterIndex(adapters=entries, use_cases=cases)


def plan(
    shapes: Mapping[str, AdapterShape],
    *,
    use_cases: Collection[tuple[str, ...]] = (),
    branches: Sequence[AdapterShape] | None = None,
    **given: Any,
) -> AdapterRoom:
    options = {"columns": None, "cache_mib": None, "coming": False, "left": 1 << 40} | given
    every = list(shapes.values()) if branches is None else branches
    return plan_room(index_of(shapes, use_cases), shapes, every, **options)


@pytest.mark.parametrize(
    ("ranks", "use_cases", "given", "columns"),
    [
        ([8], [], {}, 16),
        ([8, 16], [], {}, 32),
        ([16] * 9, [], {}, 64),
        ([100], [], {}, 112),
        ([40, 50], [("a0", "a1")], {}, 96),
        ([8], [], {"coming": True}, 64),
        ([8], [], {"columns": 20}, 32),
        ([8], [], {"columns": 8, "coming": True}, 16),
    ],
)
def test_plan_room_gives_a_pass_what_was_asked_for_or_what_the_largest_needs(
    ranks: list[int], use_cases: Collection[tuple[str, ...]], given: dict[str, Any], columns: int
) -> None:
    shapes = {f"a{number}": shape(rank) for number, rank in enumerate(ranks)}
    room = plan(shapes, use_cases=use_cases, **given)
    assert room.columns == columns
    assert room.bank_bytes == columns * 64 * 1024
    assert room.own_bytes == sum(ranks) * 64 * 1024


def test_plan_room_counts_linears_of_adapters_that_may_come_by_name() -> None:
    room = plan({"a": shape(16, 8)}, branches=[shape(16, 8), shape(4)])
    assert (room.bank_bytes, room.own_bytes) == (MIB, MIB // 8)


def test_plan_room_leaves_memory_for_adapters_that_come_within_what_is_left() -> None:
    own = {"a": shape(16)}
    assert plan(own).most_bytes == 2 * MIB
    assert plan(own, coming=True, columns=16).most_bytes == 1026 * MIB
    assert plan(own, coming=True, columns=16, left=402 * MIB).most_bytes == 102 * MIB
    room = plan(own, coming=True, columns=16, cache_mib=7)
    assert (room.most_bytes, room.cache_bytes) == (7 * MIB, 6 * MIB)


def test_plan_room_refuses_what_does_not_fit_with_the_arithmetic() -> None:
    own = {"a": shape(16), "b": shape(32)}
    with pytest.raises(NoRoom, match="b has rank 32, and a pass is to hold 16; raise it"):
        plan(own, columns=16)
    with pytest.raises(NoRoom, match=r"a\+b has rank 48, and a pass is to hold 32"):
        plan(own, columns=32, use_cases=[("a", "b")])
    arithmetic = "48 ranks at 64 linears take 3.0 MiB, and 2 adapters 3.0 MiB; "
    with pytest.raises(NoRoom, match=f"--adapter-cache-mib: {arithmetic}it is 5 MiB"):
        plan(own, cache_mib=5)
    assert plan(own, cache_mib=6).cache_bytes == 3 * MIB
    with pytest.raises(NoRoom, match=f"adapters: {arithmetic}the memory limit, .* leaves 5.0 MiB"):
        plan(own, left=5 * MIB)
