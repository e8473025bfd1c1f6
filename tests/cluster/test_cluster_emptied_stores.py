"""A store that is emptied under a running operator: builds go on by themselves."""

from __future__ import annotations

import pytest
from laptop import SMALL, Laptop
from tenant import Tenant, wait


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


@pytest.mark.usefixtures("operator")
def test_builds_end_right_when_the_store_is_emptied_during_one_and_after_it(
    tenant: Tenant, expected: dict[str, str]
) -> None:
    tenant.small("during")
    wait(lambda: len(tenant.objects("records/")) >= 3, 180)
    tenant.empty_store()
    tenant.sound("during", expected, seconds=300)
    tenant.empty_store()
    tenant.small("after")
    tenant.sound("after", expected, seconds=300)
    assert tenant.objects("records/package/"), "Ready of what is there"
    tenant.ran_apart()
