"""No pod of a stage may take all of its node's disk, and none is set aside more than it needs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.kinds.build import Run
from genai_core.quantity import amount
from genai_operator.jobs.disk import LEAST, disk_for, storage_of, volume_limit

NAME = "ephemeral-storage"
GIB = 1 << 30

sizes = st.sampled_from(["100Mi", "2Gi", "300Gi", "1Ti", "5000000000"])


def run(size: str | None, limit: str | None, request: str | None) -> Run:
    resources: dict[str, Any] = {
        "limits": {NAME: limit} if limit else {},
        "requests": {NAME: request} if request else {},
    }
    return Run.model_validate({"scratch": {"size": size}, "resources": resources})


@given(st.none() | sizes, st.none() | sizes, st.integers(0, 2 * 10**12))
def test_storage_of_is_bounded_and_sets_aside_no_more_than_the_limit(
    size: str | None, limit: str | None, read: int
) -> None:
    asked = run(size, limit, None)
    requests, limits = storage_of(asked, disk_for(read))
    assert 0 < amount(requests[NAME]) <= amount(limits[NAME])
    assert amount(requests[NAME]) <= amount("256Mi")
    if limit is not None:
        assert limits[NAME] == limit
    else:
        assert amount(limits[NAME]) > amount(volume_limit(asked, disk_for(read)))


@given(sizes, st.none() | sizes)
def test_storage_of_keeps_what_the_user_sets_aside(request: str, size: str | None) -> None:
    requests, limits = storage_of(run(size, None, request), LEAST)
    assert requests[NAME] == request
    assert amount(limits[NAME]) >= amount(request)


@pytest.mark.parametrize(
    ("read", "gib"), [(0, 20), (1, 21), (GIB, 36), (140 * 10**9, 2107), (16 * GIB, 276)]
)
def test_disk_for_leaves_room_for_weights_of_four_bits_in_float(read: int, gib: int) -> None:
    assert disk_for(read) == gib * GIB
    assert disk_for(read) > 8 * read + read
