"""A pass over a GenAITarget: can anything be built for it?"""

from __future__ import annotations

from datetime import UTC, datetime

from genai_core.errors import GenAIError
from genai_core.kinds.reading import read_served
from genai_core.kinds.target import TargetSpec
from genai_operator.kube.client import Api
from genai_operator.kube.observed import Observed
from genai_operator.kube.status_writer import StatusWriter, plain_status
from genai_operator.steps import Done, Stall
from genai_operator.targets.build_targets import target_problem

__all__ = ["TargetReconciler"]

_DECLARED = "its image is declared; whether it can be pulled, pods show (ImagePullFailed)"


class TargetReconciler:
    """See the module's docstring."""

    def __init__(self, api: Api, observed: Observed) -> None:
        self._observed = observed
        self._writer = StatusWriter(api, "genaitargets", "GenAITarget")

    async def reconcile(self, _namespace: str, name: str) -> float | None:
        """Say whether anything can be built for a target."""
        value = self._observed.targets.get("", name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None
        try:
            problem = target_problem(read_served(TargetSpec, value["spec"], where="spec"))
        except GenAIError as error:
            problem = (error.code, str(error))
        result = Stall(*problem) if problem else Done(message=_DECLARED)
        status = plain_status(result, value, datetime.now(UTC))
        await self._writer.write(value, status, warning=problem is not None)
        return None

    def tidy(self) -> None:
        """Nothing is remembered."""
