"""One pass over a GenAIDeployment: load, resolve, apply, look, report.

Level-triggered: what stands now (the spec, the build's status, the Deployment, its pods) decides,
and this object's own status only where nothing else can say it: which revision was good, which was
rejected, where they lie.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from genai_core.errors import GenAIError, InvalidSpec
from genai_core.kinds.deployment_status import ServedContainer
from genai_core.kinds.documents.reading import read_served
from genai_core.kinds.target import TargetSpec
from genai_core.reasons import Reason
from genai_operator.deployments import containers
from genai_operator.deployments.admin_objects import secret_name, token_of
from genai_operator.deployments.checks import (
    check_adapters,
    check_name,
    check_served,
    check_tls,
    serving_image,
)
from genai_operator.deployments.declared import PodReport, declaration, interchangeable
from genai_operator.deployments.deployment_pass import DeploymentPass, begin
from genai_operator.deployments.leases import DeploymentLeases
from genai_operator.deployments.objects import Objects
from genai_operator.deployments.pod_admin import Ask, PodAdmin
from genai_operator.deployments.rendering.manifests import manifests, rendering_of
from genai_operator.deployments.rendering.served_revision import Served
from genai_operator.deployments.speculation import AskCounts, PodCounts
from genai_operator.deployments.states import namesakes
from genai_operator.deployments.status import deployment_status, judged, kept_status
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.helper_jobs import HelperJobs
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.apiserver.projection import PARTIAL, lean
from genai_operator.kube.pod import PodView, WorkloadView
from genai_operator.kube.status.conditions import condition_of, ready_of, summary
from genai_operator.kube.status.status_writer import StatusWriter, Written
from genai_operator.kube.values import Json, asked_of
from genai_operator.kube.watch.observed import Observed
from genai_operator.steps import DONE, Result, Stall, run_steps
from genai_operator.stores.open_stores import OpenStore, Stores
from genai_operator.targets.build_targets import BuildTarget, build_target
from genai_operator.threads import in_thread

__all__ = ["DeploymentReconciler"]

log = logging.getLogger("genai_operator.deployments")


class DeploymentReconciler:
    """See the module's docstring.

    Args:
        api: The apiserver.
        observed: The watch cache.
        stores: Of all namespaces.
        namespace: The operator's own.
        ask: How pods are asked to serve adapters.
        ask_counts: How they are asked what speculation brings.
    """

    def __init__(
        self,
        api: Api,
        observed: Observed,
        stores: Stores,
        *,
        namespace: str = "default",
        ask: Ask | None = None,
        ask_counts: AskCounts | None = None,
    ) -> None:
        self._api = api
        self._observed = observed
        self._stores = stores
        self._writer = StatusWriter(
            api, "genaideployments", "GenAIDeployment", keep=self._keep, timing=observed.timing
        )
        self._objects = Objects(api, timing=observed.timing)
        self._revisions = containers.Revisions(timing=observed.timing)
        self._namespace = namespace
        self._admin = PodAdmin(ask, timing=observed.timing)
        self._counts = PodCounts(ask_counts, timing=observed.timing)
        helpers = HelperJobs(api, observed, Applier(api, observed))
        self._leases = DeploymentLeases(stores.cluster_name, helpers, timing=observed.timing)

    def tidy(self) -> None:
        """Forget what is known of deployments that are gone."""
        uids = {value["metadata"]["uid"] for value in self._observed.deployments}
        self._objects.keep(uids)
        self._leases.keep(uids)
        pods = {pod.uid for pod in self._observed.pods}
        self._admin.keep(pods)
        self._counts.keep(pods)

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """One pass; returns after how many seconds another one is wanted anyway."""
        known = self._observed.deployments.get(namespace, name)
        value = await self._whole("genaideployments", known)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None  # what it owns goes with it: the apiserver's garbage collector
        now = self._observed.timing.now()
        try:
            context = begin(value)
        except GenAIError as error:
            stall = Stall(error.code, str(error))
            wanted = summary(stall, generation=value["metadata"].get("generation", 0))
            await self._write(value, kept_status(value, stall, wanted, now))
            return None
        context.starts = self._starts(context)
        context.namesakes = namesakes(value, self._observed.deployments)
        result = await run_steps(context, (self._check, self._resolve, self._choose, self._apply))
        workload = self._workload(context)
        pods = self._observed.servers_of(namespace, name)
        await self._declare(context, pods)
        if context.spec.speculation is not None:
            asked = [pod for pod in pods if pod.ready and pod.ip and not pod.deleting]
            tls = context.spec.expose.tls_secret_ref is not None
            context.counts = await self._counts.of(asked, tls=tls)
        outcome = judged(context, result, workload, pods)
        status = deployment_status(context, outcome, workload, now)
        await self._write(value, status)
        await self._tell_of_namesakes(value, status)
        latest = self._observed.deployments.get(namespace, name)
        # The answer to our own write may be the first to tell of an edit: its event is no news.
        edited = latest is not None and asked_of(latest) != asked_of(value)
        return 0.0 if edited else outcome.after

    def _keep(self, value: Json) -> None:
        self._observed.deployments.put(value, lean("genaideployments", value))

    async def _whole(self, plural: str, value: Json | None) -> Json | None:
        """An object with its spec and status, which the mirror does not keep of a large one."""
        if value is None or PARTIAL not in value:
            return value
        meta = value["metadata"]
        objects, _ = await self._api.list(
            plural, namespace=meta.get("namespace", ""), name=meta["name"], fresh=True
        )
        return objects[0] if objects else None

    def _workload(self, context: DeploymentPass) -> WorkloadView | None:
        objects = self._observed.workloads.get(context.namespace, context.owner.name)
        return objects if objects is not None and context.owner.uid in objects.owners else None

    def _starts(self, context: DeploymentPass) -> list[str]:
        """The revisions that pods are started with now, and were that stand still."""
        workload = self._workload(context)
        pods = self._observed.servers_of(context.namespace, context.owner.name)
        stands = [] if workload is None else [workload.revision]
        return [*stands, *(pod.revision for pod in pods if not pod.deleting)]

    async def _write(self, value: Json, status: Json) -> None:
        ready, reason = ready_of(status)
        written = await self._writer.write(value, status, warning=ready == "False")
        if written is Written.OTHERWISE:
            meta = value["metadata"]
            place = f"{meta['namespace']}/{meta['name']}"
            log.info("deployment changed", extra={"deployment": place, "reason": reason})

    async def _tell_of_namesakes(self, value: Json, status: Json) -> None:
        """An Event, when others come to serve a model of its name."""
        shared = condition_of(status, Reason.MODEL_NAME_SHARED)
        before = condition_of(value.get("status") or {}, Reason.MODEL_NAME_SHARED)
        said = before["message"] if before is not None else ""
        if shared is not None and shared["message"] != said:
            reason, message = Reason.MODEL_NAME_SHARED, shared["message"]
            await self._writer.event(value, reason, message, warning=True)

    # The steps

    async def _check(self, context: DeploymentPass) -> Result:
        """What the spec says by itself, and its target."""
        check_name(context.owner.name)
        check_served(context.spec)
        self._stores.policy.check_run(context.spec.pods, "spec.pods")
        target = self._target(context)
        declared = _declared(context, target)
        image = serving_image(context.spec.from_.target, declared, context.spec)
        kept = "" if context.fresh else str(context.status.get("server") or "")
        context.server = kept or image
        context.outdated = context.server != image
        return DONE

    def _target(self, context: DeploymentPass) -> Mapping[str, Any]:
        name = context.spec.from_.target
        target = self._observed.targets.get("", name)
        if target is None:
            raise Waiting(Reason.TARGET_NOT_FOUND, f"there is no GenAITarget {name}", after=60.0)
        return target

    async def _resolve(self, context: DeploymentPass) -> Result:
        """Which revision spec and build ask for, and its store."""
        spec = context.spec
        build = self._observed.builds.get(context.namespace, spec.from_.build)
        value = await self._whole("genaibuilds", build.value if build is not None else None)
        context.offer = containers.offered(spec.from_, value, context.known, fresh=context.fresh)
        revision = context.offer.revision if context.offer is not None else spec.from_.revision
        assert revision is not None  # a pinned one, where nothing is offered
        context.following = revision
        if build is None:
            context.notes.append(f"GenAIBuild {spec.from_.build} is gone, what it built is served")
        elif build.store != spec.store.name:
            raise Stalled(
                InvalidSpec.code,
                f"spec.store: GenAIBuild {spec.from_.build} writes into {build.store}, and "
                f"{spec.store.name} is named here",
            )
        return DONE

    async def _choose(self, context: DeploymentPass) -> Result:
        """The container that is applied, claimed in its store; the Secrets that its pods get."""
        opened = await self._stores.tried(context.namespace, context.spec.store.name)
        chosen = await self._chosen(context, opened)
        check_adapters(context.spec, chosen, containers.find(context.good, context.known))
        await self._check_secrets(context, opened)
        context.access = _reading(opened)
        context.wanted = chosen.revision
        context.known = [chosen, *(c for c in context.known if c.revision != chosen.revision)]
        await self._leases.settle(
            context.namespace,
            context.owner,
            opened,
            containers.kept(
                [context.wanted, context.target, context.good, *context.starts], context.known
            ),
            target=_stages(context.spec.from_.target, self._target(context)),
        )
        return DONE

    async def _chosen(self, context: DeploymentPass, opened: OpenStore) -> ServedContainer:
        """What is followed, unless that was rejected."""
        revision = context.following
        if context.good and any(entry["revision"] == revision for entry in context.rejected):
            good = containers.find(context.good, context.known)
            if good is not None:
                return good
        known = containers.find(revision, context.known)
        if known is not None:
            return known
        if opened.store is not None:
            return await in_thread(
                containers.look_up, opened.store, revision, context.offer, self._revisions
            )
        if context.offer is None:
            raise Waiting(
                Reason.CONTAINER_NOT_FOUND,
                f"GenAIBuild {context.spec.from_.build} names no container {revision[:19]}, "
                "and only Jobs can look into its store",
                after=60.0,
            )
        return context.offer

    async def _check_secrets(self, context: DeploymentPass, opened: OpenStore) -> None:
        """Secrets that the pods are given must be there, and for that use."""
        spec = context.spec
        for reference in (
            opened.spec.read_secret_ref,
            spec.expose.api_key_secret_ref,
            spec.server.admin_token_secret_ref,
        ):
            if reference is not None:
                await self._stores.secrets.get(context.namespace, reference.name)
        if (tls := spec.expose.tls_secret_ref) is not None:
            check_tls(await self._stores.secrets.get(context.namespace, tls.name))
        first = context.fresh or not context.target
        if first and opened.spec.secret_ref and not opened.spec.read_secret_ref:
            message = (
                f"its pods hold Secret {opened.spec.secret_ref.name}, which may write "
                f"ArtifactStore {context.spec.store.name}: name one that reads in its readSecretRef"
            )
            await self._writer.event(context.value, Reason.STORE_WRITABLE, message, warning=True)

    async def _apply(self, context: DeploymentPass) -> Result:
        """Deployment, Service and PodDisruptionBudget."""
        chosen = containers.find(context.wanted, context.known)
        assert chosen is not None
        started = self._started(context, chosen)
        context.started = started.revision
        served = self._served(context, started, chosen)
        context.rendering = await self._objects.apply(served, anew=self._workload(context) is None)
        return DONE

    def _served(
        self, context: DeploymentPass, started: ServedContainer, chosen: ServedContainer
    ) -> Served:
        """What is to stand, for pods that are started with a container and serve another's."""
        assert context.access is not None
        return Served(
            namespace=context.namespace,
            name=context.owner.name,
            uid=context.owner.uid,
            spec=context.spec,
            revision=started.revision,
            record=started.record,
            size_bytes=started.size_bytes,
            image=context.server,
            access=context.access,
            node_selector=_declared(context, self._target(context)).node_selector,
            declared=declaration(context.spec, chosen, started.revision),
            operator=self._namespace,
            follows=interchangeable(started, started),
        )

    def _started(self, context: DeploymentPass, chosen: ServedContainer) -> ServedContainer:
        """The container that pods are started with: the one that stands, where it will do.

        It will, where pods can go over from it to what is chosen as they run, and where nothing
        else is to be changed: what rolls anyway rolls to what is chosen.
        """
        workload = self._workload(context)
        stands = containers.find(workload.revision, context.known) if workload is not None else None
        if workload is None or stands is None or not interchangeable(stands, chosen):
            return chosen
        pods = self._observed.servers_of(context.namespace, context.owner.name)
        answers = any(pod.ready and pod.rendering == workload.rendering for pod in pods)
        good = context.good in {stands.revision, chosen.revision}
        rejected = any(entry["revision"] == stands.revision for entry in context.rejected)
        if rejected or not (answers or good):
            return chosen
        if self._admin.refused(chosen.revision, {pod.uid for pod in pods}):
            return chosen
        rendering = rendering_of(manifests(self._served(context, stands, chosen)))
        return stands if rendering == workload.rendering else chosen

    async def _declare(self, context: DeploymentPass, pods: Sequence[PodView]) -> None:
        """Have the pods that answer serve what is declared, whatever the steps came to."""
        asked = []
        for pod in pods:
            if not pod.ready or pod.deleting:
                continue
            context.serving[pod.uid] = pod.revision
            container = _of_pod(context, pod)
            if pod.ip and container is not None:
                declared = declaration(context.spec, container, pod.revision)
                if declared is not None:
                    asked.append((pod, declared))
        if not asked:
            return
        given = context.spec.server.admin_token_secret_ref
        name = secret_name(context.owner.name) if given is None else given.name
        try:
            token = token_of(await self._stores.secrets.get(context.namespace, name))
        except (Stalled, Waiting) as error:
            context.reports = [PodReport({}, error.message) for _ in asked]
        else:
            context.reports = await self._admin.declare(asked, token)
        for (pod, _), report in zip(asked, context.reports, strict=True):
            context.serving[pod.uid] = report.revision or pod.revision


def _of_pod(context: DeploymentPass, pod: PodView) -> ServedContainer | None:
    """Whose adapters a pod is to serve: what is wanted, else what was good, as far as it can."""
    own = containers.find(pod.revision, context.known)
    if own is None:
        return None
    for revision in (context.wanted or context.target, context.good):
        container = containers.find(revision, context.known)
        if container is not None and (container == own or interchangeable(own, container)):
            return container
    return own


def _declared(context: DeploymentPass, target: Mapping[str, Any]) -> TargetSpec:
    return read_served(TargetSpec, target["spec"], where=f"GenAITarget {context.spec.from_.target}")


def _stages(name: str, value: Mapping[str, Any]) -> BuildTarget | None:
    try:
        return build_target(name, value)
    except (Stalled, GenAIError):
        return None


def _reading(opened: OpenStore) -> StoreAccess:
    """Access with the keys that only read, where the store names some."""
    reference = opened.spec.read_secret_ref
    return replace(opened.access, secret=reference.name) if reference else opened.access
