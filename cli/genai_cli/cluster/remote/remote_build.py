"""`genai build --remote`: upload the model, apply the build, follow it to its end.

The same spec gives the same revision as on this machine: only where the model lies is rewritten,
and its digest pinned.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from genai_cli.cluster.api_errors import NotAllowed, NotThere
from genai_cli.cluster.build_views import ClusterBuild
from genai_cli.cluster.builds import read_build
from genai_cli.cluster.connection import Access, Cluster, Json, connect
from genai_cli.cluster.remote.followed_build import follow
from genai_cli.cluster.remote.remote_result import RemoteResult, report_result
from genai_cli.cluster.remote.uploads import with_uploads
from genai_cli.cluster.stores import StoreOptions
from genai_cli.display.output import emit, say
from genai_cli.display.render import busy
from genai_cli.settings import ProgramSettings
from genai_core.errors import Interrupted, InvalidSpec, UnknownTarget
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import GenAIBuild
from genai_core.kinds.documents.problems import nearest
from genai_core.kinds.documents.reading import is_local
from genai_core.sources.build_sources import (
    sources_of,
)
from genai_core.wire import REQUESTED_AT

__all__ = ["build_remotely", "manifest"]


def build_remotely(
    build: GenAIBuild,
    access: Access,
    settings: ProgramSettings,
    *,
    options: StoreOptions,
    detach: bool,
    force: bool,
) -> int:
    """Returns the exit code: that of the first failed task, 1 where a build cannot go on.

    Args:
        build: What to build; a local source is absolute.
        access: Which cluster and namespace; one that the file names counts otherwise.
        settings: Of the program.
        options: How to reach the store.
        detach: Do not wait for its end.
        force: Take over fields that another tool applied.
    """
    began = time.monotonic()
    cluster = connect(access)
    namespace = _namespace(build, cluster, access)
    _check_targets(cluster, build.spec.targets)
    standing = _standing(cluster, build.metadata.name, namespace)
    body = manifest(build, namespace, standing)
    local = [source for source in sources_of(build.spec) if is_local(source.address)]
    if local:
        body["spec"] = with_uploads(cluster, build, body, local, options=options)
    with busy(f"applying {namespace}/{build.metadata.name}"):
        applied = cluster.apply("genaibuilds", body, namespace=namespace, force=force)
        if _stuck(applied):  # nothing changed, so say that it is to be tried again
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            body["metadata"].setdefault("annotations", {})[REQUESTED_AT] = stamp
            applied = cluster.apply("genaibuilds", body, namespace=namespace, force=force)
    first = read_build(cluster, build.metadata.name, namespace)
    before = {item.target: item.revision for item in first.artifacts}
    if detach:
        _detached(settings, first)
        return 0
    title = f"{namespace}/{first.name} → {', '.join(first.targets)}"
    try:
        followed = follow(title, first, lambda: read_build(cluster, first.name, namespace))
    except KeyboardInterrupt:
        sys.stderr.write(_back(first))
        raise Interrupted(
            "detached; it goes on in the cluster",
            where=f"{namespace}/{first.name}",
            remedy="the same command follows it again",
        ) from None
    stood = first.settled and first.ready[0] == "True"
    seconds = time.monotonic() - began
    result = RemoteResult(followed, seconds, before if standing else {}, stood)
    return report_result(settings, result)


def _namespace(build: GenAIBuild, cluster: Cluster, access: Access) -> str:
    written = build.metadata.namespace
    if written and access.namespace and written != access.namespace:
        raise InvalidSpec(
            f"the file says {written}, -n says {access.namespace}",
            where="metadata.namespace",
            remedy="leave one of them out",
        )
    return access.namespace or written or cluster.namespace


def _check_targets(cluster: Cluster, targets: list[str]) -> None:
    """Refuse names that the cluster does not know; who may not look, learns it from the status."""
    try:
        known = {value["metadata"]["name"] for value in cluster.list("genaitargets")}
    except NotAllowed:
        return
    for name in targets:
        if name in known:
            continue
        near = nearest(name, sorted(known))
        raise UnknownTarget(
            f"there is no GenAITarget {name} in this cluster",
            where="spec.targets",
            remedy=f"did you mean {near}?"
            if near
            else f"it has {', '.join(sorted(known)) or 'none'}",
        )


def _standing(cluster: Cluster, name: str, namespace: str) -> Json | None:
    try:
        return cluster.get("genaibuilds", name, namespace=namespace)
    except NotThere as error:
        if not error.where.startswith("genaibuilds"):
            raise
        return None


def manifest(build: GenAIBuild, namespace: str, standing: Json | None) -> Json:
    """What is applied: what the user wrote, without defaults.

    A request to build again that stands is kept: without it a finished build would start anew.
    """
    spec = build.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    meta: Json = {"name": build.metadata.name, "namespace": namespace}
    annotations = dict(build.metadata.annotations)
    asked = ((standing or {}).get("metadata", {}).get("annotations") or {}).get(REQUESTED_AT)
    if asked is not None:
        annotations.setdefault(REQUESTED_AT, asked)
    if annotations:
        meta["annotations"] = annotations
    if build.metadata.labels:
        meta["labels"] = dict(build.metadata.labels)
    return {"apiVersion": API_VERSION, "kind": "GenAIBuild", "metadata": meta, "spec": spec}


def _stuck(value: Mapping[str, Any]) -> bool:
    """This very spec was given up before: applying it again changes nothing by itself."""
    meta, status = value["metadata"], value.get("status") or {}
    return status.get("observedGeneration") == meta["generation"] and any(
        c["type"] == "Stalled" and c["status"] == "True" for c in status.get("conditions") or ()
    )


def _back(view: ClusterBuild) -> str:
    namespace = shlex.quote(view.namespace)
    place = f"{shlex.quote(view.name)} -n {namespace}"
    return (
        f"  genai status {place} --watch\n  genai logs {place} --follow\n"
        f"  kubectl delete -n {namespace} genaibuild {shlex.quote(view.name)}     # stops it\n"
    )


def _detached(settings: ProgramSettings, view: ClusterBuild) -> None:
    if settings.json:
        emit({"name": view.name, "namespace": view.namespace, "phase": view.phase})
        return
    say(f"{view.namespace}/{view.name} is applied")
    sys.stdout.write(_back(view))
