"""The fake that other tests stand on keeps the rules of an apiserver."""

from __future__ import annotations

import asyncio

import pytest
from apiserver_rules import RULES, Rule, job
from fake_apiserver import FakeApiserver

from genai_operator.kube.apiserver.api import ApiError


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_fake_apiserver_keeps_the_rule(rule: Rule) -> None:
    asyncio.run(rule(FakeApiserver(), "n"))


def test_watchers_hear_of_each_change_and_of_no_write_that_changes_nothing() -> None:
    api, heard = FakeApiserver(), []
    api.watchers.append(lambda plural, kind, value: heard.append((kind, value["metadata"]["name"])))

    async def story() -> None:
        made = await api.create("jobs", job("j"), namespace="n")
        patch = {"metadata": {"annotations": {"a": "1"}}}
        for _ in range(2):
            await api.merge_lists("jobs", "j", patch, namespace="n")
        await api.delete("jobs", "j", namespace="n", uid=made["metadata"]["uid"])

    asyncio.run(story())
    assert heard == [("ADDED", "j"), ("MODIFIED", "j"), ("DELETED", "j")]


def test_refuse_answers_with_an_error_until_it_is_allowed() -> None:
    api = FakeApiserver()
    api.refuse(ApiError(403, "Forbidden", "no"), verb="create", plural="jobs")

    async def story() -> None:
        with pytest.raises(ApiError, match="no"):
            await api.create("jobs", job("j"), namespace="n")
        assert await api.get("jobs", "j", namespace="n") is None
        api.allow()
        await api.create("jobs", job("j"), namespace="n")

    asyncio.run(story())
    assert [call.verb for call in api.calls] == ["create", "get", "create"]
