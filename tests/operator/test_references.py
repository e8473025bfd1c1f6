"""What is wrong with what a build refers to is waited for, and said by its name."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.kinds.build import BuildSpec
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.references import Loader
from genai_operator.errors import Waiting
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.watch.observed import Observed
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import Stores

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = BuildSpec.model_validate({"model": {"source": "s3://models/x"}, "targets": ["cpu"]})


def loader(kind: str, name: str, spec: dict[str, Any]) -> Loader:
    observed, api = Observed(), FakeApiserver()
    namespace = "n" if kind == "stores" else ""
    value = {"metadata": {"namespace": namespace, "name": name, "uid": name}, "spec": spec}
    getattr(observed, kind).put(value, value)
    return Loader(observed, Stores(api, Settings(), observed.stores.get))


ONE = BuildPass({}, SPEC, Owner("b", "build"), "n", 1, "", {}, BEGAN)


@pytest.mark.parametrize(
    ("name", "spec", "reason", "words"),
    [
        ("sm8750", {}, "TargetNotFound", "there is no GenAITarget cpu"),
        ("cpu", {"backend": "Cpu"}, "TargetNotReady", "ImageNotConfigured"),
        ("cpu", {"backend": "Abacus"}, "TargetNotReady", "GenAITarget cpu"),
    ],
)
def test_a_target_is_mended_in_the_target(
    name: str, spec: dict[str, Any], reason: str, words: str
) -> None:
    with pytest.raises(Waiting, match=words) as raised:
        loader("targets", name, spec).targets(ONE)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("other", {}, "there is no ArtifactStore default"),
        ("default", {"bucket": 3}, "ArtifactStore default"),
        (
            "default",
            {"bucket": "abc", "endpoint": "ftp://x", "secretRef": {"name": "s"}},
            "ArtifactStore default: ftp://x is not an http",
        ),
    ],
)
def test_a_store_is_mended_in_the_store(name: str, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(Waiting, match=words) as raised:
        asyncio.run(loader("stores", name, spec).store(ONE))
    assert raised.value.reason == "StoreNotReady"
