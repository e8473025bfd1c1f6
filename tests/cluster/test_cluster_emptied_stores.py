"""A store that is emptied under a running operator: a build goes on by itself."""

from __future__ import annotations

import pytest
from laptop import SMALL, Laptop
from tenant import Tenant, wait


@pytest.fixture
def expected(laptop: Laptop) -> dict[str, str]:
    return laptop.revisions(SMALL)


@pytest.mark.usefixtures("operator")
def test_a_build_ends_right_when_the_store_is_emptied_during_it(
    tenant: Tenant, expected: dict[str, str]
) -> None:
    tenant.small("during")
    wait(lambda: len(tenant.objects("records/")) >= 2, 180)
    tenant.empty_store()
    tenant.sound("during", expected, seconds=300)
