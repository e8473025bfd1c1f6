"""What kopf asks the apiserver for, and what it makes of an object between two events."""

from __future__ import annotations

from typing import Any

import kopf
from fake_apiserver import FakeApiserver
from kopf._cogs.structs.bodies import Body
from kopf._cogs.structs.references import Resource
from kopf._core.intents.causes import Activity

from genai_operator.manager.controller import Controller
from genai_operator.manager.handlers import registry_of
from genai_operator.settings import Settings

BODY: Any = {"metadata": {"name": "a", "annotations": {"x": "y"}}, "spec": {"parallelism": 1}}


def configured() -> kopf.OperatorSettings:
    registry = registry_of(Controller(FakeApiserver(), Settings()))
    settings = kopf.OperatorSettings()
    for handler in registry._activities.get_handlers(activity=Activity.STARTUP):
        configure: Any = handler.fn
        configure(settings=settings)
    return settings


def test_jobs_and_pods_of_others_are_left_out_by_the_apiserver_and_our_kinds_are_not() -> None:
    selectors = configured().watching.label_selectors
    for group, version, plural in (("batch", "v1", "jobs"), ("", "v1", "pods")):
        found = set(selectors.collect(Resource(group, version, plural)))
        assert found == {"app.kubernetes.io/managed-by=genai-operator"}, plural
    for plural in ("genaibuilds", "artifactstores", "genaitargets", "genaideployments"):
        ours = Resource("genai-operator.dev", "v1alpha1", plural)
        assert not list(selectors.collect(ours)), plural


def test_nothing_is_worked_out_of_an_object_nor_written_onto_it() -> None:
    kept = configured().persistence
    body, patch = Body(BODY), kopf.Patch()
    essence = kept.diffbase_storage.build(body=body)
    assert essence == {}
    assert kept.diffbase_storage.fetch(body=body) is None
    assert kept.progress_storage.clear(essence=essence) is essence
    kept.diffbase_storage.store(body=body, patch=patch, essence=essence)
    kept.progress_storage.touch(body=body, patch=patch, value="now")
    assert not patch
