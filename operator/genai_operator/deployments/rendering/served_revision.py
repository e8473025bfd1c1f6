"""What a GenAIDeployment serves, and the names and labels of what serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from genai_core.kinds.base import API_VERSION
from genai_core.kinds.deployment import DeploymentSpec
from genai_core.wire import DEPLOYMENT, MANAGED
from genai_operator.deployments.admin_objects import secret_name
from genai_operator.deployments.declared import Declaration
from genai_operator.jobs.access import StoreAccess
from genai_operator.kube.values import Json

SERVER = "genai-server"
MANAGER = "genai-operator"


@dataclass(frozen=True)
class Served:
    """What is to be served, and how.

    Attributes:
        uid: Of the GenAIDeployment, which owns what is made.
        revision: Of the container.
        record: `package/<key>` in the store.
        size_bytes: Of all its files.
        image: Of the server, by digest.
        node_selector: Of the target.
        access: To the store, with credentials that should only read.
        declared: Adapters that the pods serve; None: all of the container's.
        follows: Pods go over to other revisions of the same base as they run.
        operator: Namespace of the operator.
    """

    namespace: str
    name: str
    uid: str
    spec: DeploymentSpec
    revision: str
    record: str
    size_bytes: int
    image: str
    access: StoreAccess
    node_selector: Mapping[str, str] = field(default_factory=dict)
    declared: Declaration | None = None
    operator: str = "default"
    follows: bool = False

    @property
    def admin_secret(self) -> str:
        """The Secret with the token of the pods' admin port."""
        given = self.spec.server.admin_token_secret_ref
        return secret_name(self.name) if given is None else given.name


def selector(name: str) -> dict[str, str]:
    """Labels of a deployment's pods."""
    return {"app.kubernetes.io/name": SERVER, DEPLOYMENT: name}


def meta_of(served: Served) -> Json:
    """Metadata of what belongs to a deployment and has its name."""
    return {
        "name": served.name,
        "namespace": served.namespace,
        "labels": {MANAGED: MANAGER, **selector(served.name)},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "GenAIDeployment",
                "name": served.name,
                "uid": served.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
