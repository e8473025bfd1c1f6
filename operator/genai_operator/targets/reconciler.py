"""A pass over a GenAITarget: can anything be built for it?

Whether its image is there at all, pods show: where a registry has answered one of them that it has
no such image, and no pod that is known has ever run it, the target is not Ready. That stands until
a pod runs it, or the spec changes. It holds no build back: what they wait for, their own Jobs say,
and so no tenant can keep others from a target.
"""

from __future__ import annotations

from genai_core.errors import GenAIError
from genai_core.kinds.documents.reading import read_served
from genai_core.kinds.target import TargetSpec
from genai_core.reasons import Reason
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.status.conditions import condition_of
from genai_operator.kube.status.status_writer import StatusWriter, plain_status
from genai_operator.kube.values import Json
from genai_operator.kube.watch.observed import Observed
from genai_operator.steps import Done, Result, Stall
from genai_operator.targets.build_targets import target_problem

__all__ = ["TargetReconciler"]

_REMEDY = "push it, or correct spec.image"
_DECLARED = "its image is declared; whether it can be pulled, pods show (ImagePullFailed)"


class TargetReconciler:
    """See the module's docstring."""

    def __init__(self, api: Api, observed: Observed) -> None:
        self._observed = observed
        self._writer = StatusWriter(api, "genaitargets", "GenAITarget", timing=observed.timing)

    async def reconcile(self, _namespace: str, name: str) -> float | None:
        """Say whether anything can be built for a target."""
        value = self._observed.targets.get("", name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None
        try:
            problem = target_problem(read_served(TargetSpec, value["spec"], where="spec"))
        except GenAIError as error:
            problem = (error.code, str(error))
        result: Result = Stall(*problem) if problem else self._pulled(value)
        status = plain_status(result, value, self._observed.timing.now())
        await self._writer.write(value, status, warning=isinstance(result, Stall))
        return None

    def _pulled(self, value: Json) -> Result:
        """What pods of its image show."""
        pods = [pod for pod in self._observed.pods if pod.image == value["spec"]["image"]]
        if any(pod.ran for pod in pods):
            return Done(message=_DECLARED)
        absent = [pod for pod in pods if pod.image_absent]
        if absent:
            words = max(absent, key=lambda pod: pod.created_at).waiting
            return Stall(Reason.IMAGE_PULL_FAILED, f"{words}; {_REMEDY}")
        status = value.get("status") or {}
        ready = condition_of(status, "Ready")
        same = status.get("observedGeneration") == value["metadata"].get("generation")
        if ready is not None and same and ready["reason"] == Reason.IMAGE_PULL_FAILED:
            return Stall(ready["reason"], ready["message"])  # nobody has shown otherwise since
        return Done(message=_DECLARED)

    def tidy(self) -> None:
        """Nothing is remembered."""
