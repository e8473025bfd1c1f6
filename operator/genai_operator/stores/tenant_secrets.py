"""Secrets that tenants name: got by name, judged, remembered for a moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genai_core.reasons import Reason
from genai_operator.errors import Waiting, not_enabled
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.status.events import post_event
from genai_operator.policy import Policy
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Secrets"]

_SECONDS = 5.0
_MOST_TOLD = 10_000


class Secrets:
    """See the module's docstring."""

    def __init__(self, api: Api, policy: Policy, *, timing: Timing = SYSTEM) -> None:
        self._api = api
        self._timing = timing
        self._policy = policy
        self._known: dict[tuple[str, str], tuple[float, Mapping[str, Any]]] = {}
        self._told: dict[str, None] = {}

    async def get(self, namespace: str, name: str) -> Mapping[str, Any]:
        """A Secret that may be used.

        Raises:
            Waiting: It is not there, may not be read, or is not for use by builds.
        """
        known = self._known.get((namespace, name))
        if known is not None and known[0] > self._timing.monotonic():
            return known[1]
        try:
            secret = await self._api.get("secrets", name, namespace=namespace)
        except ApiError as error:
            if error.code != 403:
                raise
            raise not_enabled(f"read Secret {name}", namespace) from error
        if secret is None:
            raise Waiting(Reason.SECRET_NOT_FOUND, f"there is no Secret {name}")
        secret = {**secret, "metadata": {**secret["metadata"], "namespace": namespace}}
        advice = self._policy.judge_secret(secret)
        if advice is not None:
            await self._tell(secret, advice)
        self._known[namespace, name] = (self._timing.monotonic() + _SECONDS, secret)
        return secret

    def tidy(self) -> None:
        """Forget what Secrets said a while ago."""
        now = self._timing.monotonic()
        self._known = {name: kept for name, kept in self._known.items() if kept[0] > now}

    async def _tell(self, secret: Mapping[str, Any], advice: str) -> None:
        """An Event of the Secret, once in this process."""
        uid = secret["metadata"].get("uid", "")
        if uid in self._told:
            return
        self._told[uid] = None
        if len(self._told) > _MOST_TOLD:
            del self._told[next(iter(self._told))]
        await post_event(
            self._api,
            secret,
            "Secret",
            reason=Reason.SECRET_NOT_LABELLED,
            message=advice,
            now=self._timing.now(),
            warning=True,
            version="v1",
        )
