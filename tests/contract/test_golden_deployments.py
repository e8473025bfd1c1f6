"""What the operator renders for a GenAIDeployment stays what it is, byte for byte.

An upgrade of the operator must restart no server: a pod template that differs by one value does.
`deployment_*.json` holds every object of a deployment, the Secret with the admin port's token
included. `full` sets every field of the spec; a field that is added is set there too, and leaves
`plain` as it is.

    GENAI_WRITE_GOLDEN=1 python -m pytest tests/contract      # after a change that was meant
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from test_golden_keys import check

from genai_core.kinds.artifact_store import WebIdentity
from genai_core.kinds.deployment import DeploymentSpec
from genai_core.kinds.deployment_status import ServedContainer
from genai_operator.deployments.admin_objects import token_secret
from genai_operator.deployments.declared import declaration
from genai_operator.deployments.rendering.manifests import manifests
from genai_operator.deployments.rendering.served_revision import Served, meta_of
from genai_operator.jobs.access import ReadAccess, StoreAccess

FULL: dict[str, Any] = {
    "from": {"build": "tiny", "target": "cpu", "revision": f"sha256:{'a' * 64}"},
    "replicas": 3,
    "server": {
        "modelName": "team/$tiny",
        "exact": False,
        "maxConcurrency": 4,
        "contextLength": 1024,
        "kvCacheMiB": 512,
        "prefixCacheMiB": 64,
        "maxAdapterRank": 32,
        "adapterCacheMiB": 128,
        "threads": 2,
        "systemPrompts": ["Answer in one line."],
        "adminTokenSecretRef": {"name": "admin-token"},
        "emulate": True,
    },
    "speculation": {"method": "DraftModel", "numSpeculativeTokens": 5, "adaptive": False},
    "adapters": [
        {"name": "headers"},
        {
            "name": "tests",
            "source": "s3://models/tests",
            "secretRef": {"name": "adapters"},
            "disabled": True,
        },
    ],
    "rollout": {
        "strategy": "RollingUpdate",
        "maxSurge": 2,
        "maxUnavailable": 1,
        "progressDeadlineSeconds": 120,
        "goldenTokens": "Skip",
        "autoRollback": False,
    },
    "expose": {
        "port": 8080,
        "apiKeySecretRef": {"name": "keys"},
        "tlsSecretRef": {"name": "tls"},
        "networkPolicy": False,
    },
    "store": {"name": "other"},
    "pods": {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "serving", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "labelSelector": {"matchLabels": {"app": "noisy"}},
                        "topologyKey": "kubernetes.io/hostname",
                    }
                ]
            }
        },
        "topologySpread": False,
        "priorityClassName": "high",
        "serviceAccountName": "server",
        "imagePullSecrets": [{"name": "registry"}],
        "disruptionBudget": {"maxUnavailable": 2},
        "drainSeconds": 90,
    },
    "resources": {
        "limits": {"memory": "4Gi", "cpu": "2"},
        "requests": {"memory": "3Gi", "cpu": "1"},
    },
}
SPECS: dict[str, dict[str, Any]] = {
    "plain": {"from": {"build": "tiny", "target": "cpu"}},
    "full": FULL,
}
ACCESS = {
    "plain": StoreAccess("s3://artifacts/team-a?endpoint=http://s3:7070", secret="reads"),
    "full": StoreAccess(
        "s3://artifacts/team-a",
        service_account="builder",
        ca="PEM",
        web_identity=WebIdentity(role_arn="arn:aws:iam::1:role/reads", audience="sts"),
        read_from=(
            ReadAccess("s3://shared/a", secret="shared", ca="OTHER PEM"),
            ReadAccess("s3://shared/b"),
        ),
    ),
}


def served_of(name: str) -> Served:
    spec = DeploymentSpec.model_validate(SPECS[name])
    container = ServedContainer(
        revision=f"sha256:{'a' * 64}",
        record=f"package/{'b' * 64}",
        size_bytes=1 << 30,
        adapters={"headers": f"sha256:{'c' * 64}", "tests": f"sha256:{'d' * 64}"},
    )
    return Served(
        namespace="team-a",
        name="chat",
        uid="uid-1",
        spec=spec,
        revision=container.revision,
        record=container.record,
        size_bytes=container.size_bytes,
        image=f"registry/serving@sha256:{'1' * 64}",
        access=ACCESS[name],
        node_selector={"pool": "serving"},
        declared=declaration(spec, container),
        operator="genai-system",
    )


@pytest.mark.parametrize("name", SPECS)
def test_objects_stay_when_a_deployment_uses_nothing_new(name: str) -> None:
    served = served_of(name)
    rendered = dict(manifests(served))
    rendered["secrets"] = token_secret(meta_of(served), served.name, "a-token")
    check(f"deployment_{name}.json", rendered)


def unset_fields(value: BaseModel, prefix: str = "") -> list[str]:
    """Fields that a value leaves at their default, its inner values' included."""
    unset = []
    for field, info in type(value).model_fields.items():
        path = f"{prefix}{info.alias or field}"
        inner = getattr(value, field)
        if field not in value.model_fields_set:
            unset.append(path)
        elif isinstance(inner, BaseModel):
            unset += unset_fields(inner, f"{path}.")
    return unset


def test_full_deployment_sets_every_field() -> None:
    # A pod's affinity is Kubernetes' own: its fields go through as they are.
    unset = unset_fields(DeploymentSpec.model_validate(FULL))
    assert [path for path in unset if not path.startswith("pods.affinity.")] == []
