"""A pass over a GenAIDeployment: it is answered, though nothing is served yet."""

from __future__ import annotations

from datetime import UTC, datetime

from genai_core.reasons import Reason
from genai_operator.kube.client import Api
from genai_operator.kube.observed import Observed
from genai_operator.kube.status_writer import StatusWriter, plain_status
from genai_operator.steps import Stall

__all__ = ["DeploymentReconciler"]

_NOT_SERVED = "nothing serves containers in a cluster yet: genai pull fetches one for genai serve"


class DeploymentReconciler:
    """See the module's docstring."""

    def __init__(self, api: Api, observed: Observed) -> None:
        self._observed = observed
        self._writer = StatusWriter(api, "genaideployments", "GenAIDeployment")

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Say that nothing is served yet, rather than leave it unanswered."""
        value = self._observed.deployments.get(namespace, name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None
        result = Stall(Reason.NOT_SERVED_YET, _NOT_SERVED)
        await self._writer.write(
            value, plain_status(result, value, datetime.now(UTC)), warning=True
        )
        return None

    def tidy(self) -> None:
        """Nothing is remembered."""
