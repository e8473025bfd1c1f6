"""A deployment's objects at the apiserver: applied where they changed, never taken from others."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection

from genai_core.canonical import digest_json
from genai_core.reasons import Reason
from genai_operator.deployments.admin_objects import token_secret
from genai_operator.deployments.rendering.manifests import manifests, rendering_of
from genai_operator.deployments.rendering.served_revision import Served, meta_of
from genai_operator.errors import Stalled, Waiting, not_enabled
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.values import Json
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Objects"]

log = logging.getLogger("genai_operator.deployments")

_KINDS = {
    "configmaps": "ConfigMap",
    "deployments": "Deployment",
    "networkpolicies": "NetworkPolicy",
    "poddisruptionbudgets": "PodDisruptionBudget",
    "secrets": "Secret",
    "services": "Service",
}
_AGAIN_SECONDS = 60.0
"""So often they are applied anew all the same: of Services and budgets no watch tells."""

_GOING_SECONDS = 2.0
"""What a deleted deployment owned goes seconds after it; a new one of its name may come sooner."""


class Objects:
    """See the module's docstring."""

    def __init__(self, api: Api, *, timing: Timing = SYSTEM) -> None:
        self._api = api
        self._timing = timing
        self._applied: dict[str, tuple[str, float]] = {}

    def keep(self, uids: Collection[str]) -> None:
        """Forget deployments that are gone."""
        for uid in self._applied.keys() - set(uids):
            del self._applied[uid]

    async def apply(self, served: Served, *, anew: bool) -> str:
        """Make them stand as the spec says; how their pods are rendered.

        Args:
            served: What is to stand.
            anew: Something of it is known to be missing: all of it is applied.

        Raises:
            Stalled: An object of that name is somebody else's, or the apiserver finds it wrong.
            Waiting: The namespace is not enabled, a quota is used up, a policy refuses it, or
                an object of that name is still being removed.
        """
        wanted = manifests(served)
        digest = digest_json([manifest for _, manifest in wanted])
        known = self._applied.get(served.uid)
        fresh = known is not None and known[0] == digest and known[1] > self._timing.monotonic()
        if fresh and not anew:
            return rendering_of(wanted)
        plural = ""
        try:
            for plural, manifest in wanted:
                await self._check_ours(plural, manifest, served)
            plural = "secrets"
            await self._make_token(served)
            for plural, manifest in wanted:
                await self._apply(plural, manifest, served.namespace)
        except ApiError as error:
            raise _refusal(error, plural, served) from error
        if known is None or known[0] != digest:
            log.info(
                "deployment applied",
                extra={"deployment": served.name, "revision": served.revision},
            )
        self._applied[served.uid] = (digest, self._timing.monotonic() + _AGAIN_SECONDS)
        return rendering_of(wanted)

    async def _make_token(self, served: Served) -> None:
        """The Secret with the admin port's token, unless the spec names one."""
        if served.spec.server.admin_token_secret_ref is not None:
            return
        name = served.admin_secret
        there = await self._api.get("secrets", name, namespace=served.namespace)
        if there is None:
            made = token_secret(meta_of(served), served.name, secrets.token_urlsafe(32))
            await self._api.create("secrets", made, namespace=served.namespace)
        elif not _is_of(there, served):
            _wait_for_earlier("secrets", there)
            raise Stalled(
                Reason.NAME_TAKEN,
                f"there is a Secret {name} that is not this deployment's: remove it, or name it in "
                "spec.server.adminTokenSecretRef",
            )

    async def _check_ours(self, plural: str, manifest: Json, served: Served) -> None:
        name = manifest["metadata"]["name"]
        there = await self._there(plural, name, served.namespace)
        if there is None or _is_of(there, served):
            return
        _wait_for_earlier(plural, there)
        raise Stalled(
            Reason.NAME_TAKEN,
            f"there is a {manifest_kind(plural)} {name} that is not this deployment's: "
            "remove it, or give the deployment another name",
        )

    # Each kind by its name: tests/delivery reads here which rights the operator needs.

    async def _there(self, plural: str, name: str, namespace: str) -> Json | None:
        if plural == "deployments":
            return await self._api.get("deployments", name, namespace=namespace)
        if plural == "services":
            return await self._api.get("services", name, namespace=namespace)
        if plural == "configmaps":
            return await self._api.get("configmaps", name, namespace=namespace)
        if plural == "networkpolicies":
            return await self._api.get("networkpolicies", name, namespace=namespace)
        return await self._api.get("poddisruptionbudgets", name, namespace=namespace)

    async def _apply(self, plural: str, manifest: Json, namespace: str) -> None:
        if plural == "deployments":
            await self._api.apply("deployments", manifest, namespace=namespace)
        elif plural == "services":
            await self._api.apply("services", manifest, namespace=namespace)
        elif plural == "configmaps":
            await self._api.apply("configmaps", manifest, namespace=namespace)
        elif plural == "networkpolicies":
            await self._api.apply("networkpolicies", manifest, namespace=namespace)
        else:
            await self._api.apply("poddisruptionbudgets", manifest, namespace=namespace)


def _is_of(value: Json, served: Served) -> bool:
    owners = value["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == served.uid for owner in owners)


def _wait_for_earlier(plural: str, there: Json) -> None:
    """What an earlier deployment of the name leaves goes by itself.

    Raises:
        Waiting: It does.
    """
    meta = there["metadata"]
    owners = meta.get("ownerReferences") or ()
    earlier = any(owner["kind"] == "GenAIDeployment" for owner in owners)
    if earlier or "deletionTimestamp" in meta:
        raise Waiting(
            Reason.NAME_TAKEN,
            f"the {manifest_kind(plural)} {meta['name']} of an earlier deployment is not removed "
            "yet",
            after=_GOING_SECONDS,
        )


def manifest_kind(plural: str) -> str:
    """The kind's name, as people write it."""
    return _KINDS[plural]


def _refusal(error: ApiError, plural: str, served: Served) -> Exception:
    what = manifest_kind(plural)
    if error.code == 403 and "quota" in error.message:
        return Waiting(Reason.QUOTA_EXCEEDED, error.message, after=15.0)
    if error.code == 403 and "cannot " in error.message:  # RBAC's words
        return not_enabled(f"manage {what}s", served.namespace)
    denied = "admission webhook" in error.message or "denied request" in error.message
    if error.code == 422 and error.fields and not denied:
        return Stalled(Reason.REFUSED, f"{what}: {error.message}")
    if error.code == 409:  # a Secret of that name has come this moment
        return Waiting(Reason.PROGRESSING, f"{what}: {error.message}", after=1.0)
    if error.code in {400, 403, 422} or (error.code >= 500 and error.reason):
        message = f"the cluster does not admit the {what}: {error.message}"
        return Waiting(Reason.NOT_ADMITTED, message, after=15.0, most=60.0)
    return error
