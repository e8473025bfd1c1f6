"""What is known about a deployment -> its conditions and status. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from genai_core.kinds.deployment import GoldenTokens
from genai_core.kinds.deployment_status import AdapterState, AdapterStatus
from genai_core.reasons import Reason
from genai_core.wire import GROUP
from genai_operator.deployments import containers, rollout
from genai_operator.deployments.declared import adapter_statuses, declaration
from genai_operator.deployments.deployment_pass import DeploymentPass
from genai_operator.deployments.rendering.served_revision import selector
from genai_operator.deployments.speculation import speculation_status
from genai_operator.deployments.states import model_name
from genai_operator.kube.pod import PodView, WorkloadView
from genai_operator.kube.status.conditions import condition, conditions
from genai_operator.kube.values import Json
from genai_operator.steps import Done, Result, Stall, Wait

__all__ = ["DeploymentOutcome", "deployment_status", "judged", "kept_status"]

_MOST_REJECTED = 8
_MOST_REASON = 1000
_WATCHED_SECONDS = 10.0
_REST_SECONDS = 300.0
_STALLED_SECONDS = 60.0
_AGAIN_SECONDS = 0.5
_ADAPTERS_SECONDS = 1.0


@dataclass(frozen=True)
class DeploymentOutcome:
    """What a pass came to.

    Attributes:
        ready: Of the condition Ready.
        waits: It may change by itself; else, where it is not Ready, the user must act.
        good: The revision whose rollout came to its end last.
        after: Seconds until another pass; None: something wakes it.
    """

    ready: str
    reason: str
    message: str
    waits: bool
    good: str
    after: float | None


def judged(
    context: DeploymentPass,
    result: Result,
    workload: WorkloadView | None,
    pods: Sequence[PodView],
) -> DeploymentOutcome:
    """How a deployment stands; notes on the pass what is rejected.

    Args:
        context: What the pass has come to know.
        result: What its steps came to.
        workload: The Deployment, once it was seen.
        pods: That serve for it.
    """
    wanted = context.wanted or context.target
    rendering = context.rendering or (workload.rendering if workload is not None else "")
    stands = rollout.standing(
        rendering, workload, pods, revision=wanted, settled=_settled(context, wanted)
    )
    behind = [uid for uid, revision in context.serving.items() if revision != wanted]
    good = wanted if stands.complete and wanted and not behind else context.good
    if isinstance(result, Stall):
        # Nothing tells of a Service that is removed, or of a limit of the namespace that is raised.
        return DeploymentOutcome(
            "False", result.reason, result.message, waits=False, good=good, after=_STALLED_SECONDS
        )
    if isinstance(result, Wait):
        if workload is None or stands.ready != "True":
            return DeploymentOutcome(
                "Unknown", result.reason, result.message, waits=True, good=good, after=result.after
            )
        context.notes.append(f"nothing can be changed now: {result.message}")
        return _noted(context, stands, good, result.after)
    if why := rollout.failure(rendering, workload, pods):
        return _failed(context, workload, why, good)
    if context.following and context.following != wanted:
        return _rolled_back(context, stands, good)
    if stands.ready == "True" and workload is not None and workload.wanted:
        adapters = _adapters(context, wanted, workload)
        if (lacking := _lacking(adapters, stands.message, good)) is not None:
            return lacking
        if behind:
            count = f"{len(context.serving) - len(behind)}/{len(context.serving)}"
            message = f"{count} pods have gone over to {wanted[:19]}"
            return DeploymentOutcome(
                *("Unknown", Reason.ADAPTERS_LOADING, message), waits=True, good=good,
                after=_ADAPTERS_SECONDS,
            )  # fmt: skip
    return _noted(
        context, stands, good, _REST_SECONDS if stands.ready == "True" else _WATCHED_SECONDS
    )


def _settled(context: DeploymentPass, wanted: str) -> bool:
    """What pods are started with was rolled out before."""
    return bool(context.good) and context.good in {wanted, context.started}


def _adapters(
    context: DeploymentPass, revision: str, workload: WorkloadView
) -> list[AdapterStatus]:
    container = containers.find(revision, context.known)
    if container is None:
        return []
    return adapter_statuses(declaration(context.spec, container), context.reports, workload.wanted)


def _lacking(
    adapters: Sequence[AdapterStatus], serving: str, good: str
) -> DeploymentOutcome | None:
    """What is said while pods serve, and not all that is declared; None where they do."""
    failed = [adapter for adapter in adapters if adapter.state is AdapterState.FAILED]
    if failed:
        words = "; ".join(
            f"adapter {adapter.name} is not served: {adapter.reason}" for adapter in failed[:3]
        )
        message = f"{words}; {serving}"
        return DeploymentOutcome(
            *("False", Reason.ADAPTER_FAILED, message), waits=False, good=good, after=_REST_SECONDS
        )
    loading = [adapter for adapter in adapters if adapter.state is AdapterState.LOADING]
    if not loading:
        return None
    words = ", ".join(f"{adapter.name} {adapter.loaded}" for adapter in loading[:5])
    why = next((f" ({adapter.reason})" for adapter in loading if adapter.reason), "")
    message = f"adapters that pods hold: {words}{why}; {serving}"
    return DeploymentOutcome(
        *("Unknown", Reason.ADAPTERS_LOADING, message), waits=True, good=good,
        after=_ADAPTERS_SECONDS,
    )  # fmt: skip


def _noted(
    context: DeploymentPass, stands: rollout.DeploymentStanding, good: str, after: float | None
) -> DeploymentOutcome:
    said = [stands.message, *context.notes, *_remarks(context)] if stands.ready == "True" else []
    message = "; ".join(said) or stands.message
    return DeploymentOutcome(stands.ready, stands.reason, message, stands.waits, good, after)


def _failed(
    context: DeploymentPass, workload: WorkloadView | None, why: str, good: str
) -> DeploymentOutcome:
    """What never became ready is taken back where another revision is good."""
    after = _WATCHED_SECONDS
    if context.spec.rollout.auto_rollback and context.good and context.good != context.wanted:
        entry = {"revision": context.wanted, "reason": why[:_MOST_REASON]}
        context.rejected = [entry, *context.rejected][:_MOST_REJECTED]
        after = _AGAIN_SECONDS
    ready = workload.ready if workload is not None else 0
    old = f"; {ready} pods of an earlier one go on answering" if ready else ""
    message = f"{context.wanted[:19]} cannot be rolled out: {why}{old}"
    return DeploymentOutcome("False", rollout.FAILED, message, waits=False, good=good, after=after)


def _rolled_back(
    context: DeploymentPass, stands: rollout.DeploymentStanding, good: str
) -> DeploymentOutcome:
    why = next(e["reason"] for e in context.rejected if e["revision"] == context.following)
    message = (
        f"{context.following[:19]} was rolled back: {why}; {stands.message}; it is tried again "
        f"when the build makes another, spec changes or {GROUP}/requestedAt is set"
    )
    return DeploymentOutcome(
        "False", rollout.FAILED, message, waits=False, good=good, after=_WATCHED_SECONDS
    )


def _remarks(context: DeploymentPass) -> list[str]:
    container = containers.find(context.wanted, context.known)
    skipped = context.spec.rollout.golden_tokens is GoldenTokens.SKIP
    if container is None or container.golden or skipped:
        return []
    return ["nothing was replayed: its build records no golden prompts"]


def deployment_status(
    context: DeploymentPass,
    outcome: DeploymentOutcome,
    workload: WorkloadView | None,
    now: datetime,
) -> Json:
    """The whole status; what is not in it is removed."""
    generation = context.value["metadata"].get("generation", 0)

    def make(kind: str, status: str) -> Json:
        return condition(
            kind, status, outcome.reason, message=outcome.message, generation=generation
        )

    wanted = [make("Ready", outcome.ready)]
    if outcome.ready != "True":
        wanted.append(make("Reconciling" if outcome.waits else "Stalled", "True"))
    wanted += _beside(context, workload, generation)
    members: Json = {
        "observedGeneration": generation,
        "conditions": conditions(wanted, context.status.get("conditions") or (), now),
        **_members(context, outcome, workload),
    }
    return {name: value for name, value in members.items() if value not in (None, "", [])}


def kept_status(
    value: Mapping[str, Any], result: Result, wanted: Sequence[Json], now: datetime
) -> Json:
    """The status of a deployment whose spec cannot be read: what it served stays said."""
    assert not isinstance(result, Done)
    status = value.get("status") or {}
    names = ("revision", "containers", "server", "url", "replicas", "readyReplicas", "selector")
    return {
        "observedGeneration": value["metadata"].get("generation", 0),
        "conditions": conditions(wanted, status.get("conditions") or (), now),
        **{name: status[name] for name in names if name in status},
    }


def _members(
    context: DeploymentPass,
    outcome: DeploymentOutcome,
    workload: WorkloadView | None,
) -> Json:
    wanted = context.wanted or context.target
    current = _current(context.serving, wanted)
    revisions = {"current": current, "target": wanted, "lastGood": outcome.good}
    kept = containers.kept([wanted, current, outcome.good, *context.starts], context.known)
    members: Json = {
        "requestedAt": context.requested,
        "asked": context.asked,
        "server": context.server or context.status.get("server"),
        "revision": {name: text for name, text in revisions.items() if text},
        "rejected": context.rejected,
        "containers": [entry.canonical() for entry in kept],
    }
    speculation = speculation_status(context.counts)
    if speculation is not None:
        members["speculation"] = speculation.canonical()
    if workload is None:
        return members
    name, port = context.owner.name, context.spec.expose.port
    scheme = "http" if context.spec.expose.tls_secret_ref is None else "https"
    members |= {
        "url": f"{scheme}://{name}.{context.namespace}.svc:{port}/v1",
        "replicas": workload.replicas,
        "readyReplicas": workload.ready,
        "selector": ",".join(f"{key}={text}" for key, text in selector(name).items()),
    }
    serving = containers.find(current or wanted, kept)
    if serving is not None:
        adapters = _adapters(context, serving.revision, workload)
        members["adapters"] = [
            {
                name: value
                for name, value in adapter.model_dump(mode="json", by_alias=True).items()
                if value not in (None, "")
            }
            for adapter in adapters
        ]
    return members


def _current(serving: Mapping[str, str], wanted: str) -> str:
    """The revision that most of the pods serve that answer."""
    counts = Counter(serving.values())
    return max(counts, key=lambda text: (counts[text], text == wanted), default="")


def _beside(context: DeploymentPass, workload: WorkloadView | None, generation: int) -> list[Json]:
    further = []
    if workload is not None:
        able = workload.ready > 0
        further.append(
            condition(
                "Available",
                "True" if able else "False",
                Reason.PODS_READY if able else Reason.NO_POD_READY,
                message=f"{workload.ready} pods answer",
                generation=generation,
            )
        )
    if context.namesakes:
        others = ", ".join(context.namesakes[:5]) + (
            " and more" if len(context.namesakes) > 5 else ""
        )
        further.append(
            condition(
                Reason.MODEL_NAME_SHARED,
                "True",
                Reason.MODEL_NAME_SHARED,
                message=f"GenAIDeployment {others} calls its model {model_name(context.value)} "
                "too: whoever routes by that name cannot tell them apart; set "
                "spec.server.modelName",
                generation=generation,
            )
        )
    if context.outdated:
        further.append(
            condition(
                "ServerOutdated",
                "True",
                Reason.NEWER_SERVER,
                message="the target names another image of the server; set the annotation "
                f"{GROUP}/requestedAt to roll it out",
                generation=generation,
            )
        )
    return further
