"""Every field of a GenAIDeployment changes what runs, or what the operator does, as named here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from test_golden_deployments import FULL, SPECS, served_of

from genai_operator.deployments.rendering.manifests import manifests

NEEDS: dict[str, dict[str, Any]] = {
    "speculation.numSpeculativeTokens": {"speculation": {"method": "DraftModel"}},
    "speculation.adaptive": {"speculation": {"method": "DraftModel"}},
}
"""What a value does not go without; the other spec has it too."""
DECIDES = {
    "from.build": "test_deployment_follows.py",
    "from.target": "test_deployment_follows.py",
    "from.revision": "test_deployment_passes.py",
    "store.name": "test_deployment_passes.py",
    "server.emulate": "test_deployment_manifests.py",
    "rollout.autoRollback": "test_deployment_passes.py",
}
"""What no object bears, since it decides which container is served, whether, and what follows a
failure -> the test of the operator that shows it."""
OTHER = {"rollout.strategy": "Recreate"}
"""Where FULL has what is so anyway."""


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Path and value of each field that FULL sets; a list and Kubernetes' own types are one."""
    if isinstance(value, dict) and path not in {"pods.nodeSelector", "pods.affinity", "resources"}:
        return [
            leaf
            for name, inner in value.items()
            for leaf in leaves(inner, f"{path}.{name}" if path else name)
        ]
    return [(path, value)]


LEAVES = dict(leaves(FULL)) | OTHER


def rendered(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = copy.deepcopy(SPECS["plain"])
    for path, value in changes.items():
        *folders, last = path.split(".")
        here = spec
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = copy.deepcopy(value)
    monkeypatch.setitem(SPECS, "plain", spec)
    return manifests(served_of("plain"))


def test_what_decides_is_a_field_of_the_spec() -> None:
    assert DECIDES.keys() <= LEAVES.keys()


@pytest.mark.parametrize("field", sorted(LEAVES.keys() - DECIDES))
def test_objects_change_when_a_field_does(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = NEEDS.get(field, {})
    before = rendered(needed, monkeypatch)
    assert rendered({**needed, field: LEAVES[field]}, monkeypatch) != before
