"""`genai build --remote`: upload the model, apply the build, follow it to its end.

The same spec gives the same revision as on this machine: only where the model lies is rewritten,
and its digest pinned.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genai_cli.cluster.api_errors import NotAllowed, NotThere
from genai_cli.cluster.build_views import ClusterBuild
from genai_cli.cluster.builds import read_build
from genai_cli.cluster.connection import Access, Cluster, Json, connect
from genai_cli.cluster.followed_build import follow
from genai_cli.cluster.remote_result import RemoteResult, report_result
from genai_cli.cluster.stores import StoreOptions, StorePlace, reaching
from genai_cli.display.output import emit, say, tell
from genai_cli.display.render import busy
from genai_cli.display.words import counted, size
from genai_cli.engine.leases import claim_upload
from genai_cli.engine.work_folders import known_digests
from genai_cli.settings import ProgramSettings
from genai_core.errors import GenAIError, Interrupted, InvalidSpec, UnknownTarget
from genai_core.files.home import expanded
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.build import BuildSpec, GenAIBuild
from genai_core.kinds.problems import nearest
from genai_core.kinds.reading import is_local
from genai_core.names import (
    DRAFT,
    FORECAST,
    FORECAST_ROLE,
    MODEL,
    TOKEN_MAP_ROLE,
    SourceName,
    adapter_source,
    is_child,
)
from genai_core.sources.adapter_files import (
    ADAPTER_ENCODINGS_ROLE,
    ADAPTER_GRAPH_ROLE,
    ADAPTER_WEIGHTS_ROLE,
    inspect_adapter,
)
from genai_core.sources.build_sources import (
    BuildSource,
    child_of,
    is_built,
    model_spec,
    of_source,
    sources_of,
)
from genai_core.sources.forecast_files import inspect_forecast
from genai_core.sources.source_files import (
    SourceFacts,
    calibration_role,
    inspect_source,
    tokens_role,
)
from genai_core.store.address import StoreAddress
from genai_core.wire import REQUESTED_AT

__all__ = [
    "build_remotely",
    "manifest",
    "uploaded",
    "uploaded_adapter",
    "uploaded_child",
    "uploaded_draft",
]

_ADAPTER_FIELDS = {
    "weights": ADAPTER_WEIGHTS_ROLE,
    "encodings": ADAPTER_ENCODINGS_ROLE,
    "graph": ADAPTER_GRAPH_ROLE,
}
_ROLE_FIELDS = {"onnx": "model.onnx", "encodings": "model.encodings"}


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
        _upload(cluster, build, body, local, options=options)
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


def _upload(
    cluster: Cluster,
    build: GenAIBuild,
    body: Json,
    local: Sequence[BuildSource],
    *,
    options: StoreOptions,
) -> None:
    """Put sources of this machine beside the store and let the spec say where they are."""
    namespace = body["metadata"]["namespace"]
    found = {}
    with busy("reading the model and what goes with it" if len(local) > 1 else "reading the model"):
        for source in local:
            found[source] = _inspected(build.spec, source)
    with reaching(cluster, namespace, build.spec.store.name, options=options) as place:
        for source, facts in found.items():
            address = _sent(place, facts, build.metadata.name)
            if source.name == MODEL:
                body["spec"] = uploaded(build.spec, body["spec"], address, facts.digest)
            elif source.name in (DRAFT, FORECAST):
                body["spec"] = uploaded_draft(body["spec"], address, facts.digest)
            elif is_child(source.name):
                number = build.spec.children.index(child_of(build.spec, source.name))
                body["spec"] = uploaded_child(body["spec"], number, address, facts.digest)
            else:
                body["spec"] = uploaded_adapter(body["spec"], source.name, address, facts.digest)


def _inspected(spec: BuildSpec, source: BuildSource) -> SourceFacts:
    if is_built(source.name):
        try:
            return inspect_source(
                model_spec(spec, source.name),
                Path.cwd(),
                known_digests(),
                token_map=source.files.get(TOKEN_MAP_ROLE),
            )
        except GenAIError as error:
            raise of_source(error, source) from error
    folder = Path(expanded(source.address.removeprefix("file://"))).absolute()
    inspect = inspect_forecast if source.name == FORECAST else inspect_adapter
    return inspect(folder, known_digests(), where=source.field, pin=source.pin, **source.files)


def _sent(place: StorePlace, facts: SourceFacts, build: str) -> str:
    """Send what is not there yet; returns the address of the upload."""
    from genai_core.store.location import open_at, open_upload

    upload = open_upload(place.where, facts, credentials=place.credentials)
    with busy("looking up which files are there"):
        store = open_at(place.where, credentials=place.credentials)
        problem = claim_upload(store, upload.name, build)
        missing = upload.missing()
    if problem:
        tell(f"warning: {problem}")
    for role in missing:
        file = upload.files[role]
        tell(f"upload   {file.path.name} ({size(file.size)})")
        with busy(f"uploading {file.path.name} ({size(file.size)})"):
            upload.send(role)
    kept = len(upload.files) - len(missing)
    if kept:
        tell(f"upload   {counted(kept, 'file')} there already")
    return str(StoreAddress(place.public.bucket, upload.where.prefix))


def uploaded_adapter(written: Json, name: SourceName, address: str, digest: str) -> Json:
    """The spec with an uploaded adapter; see `uploaded`."""
    adapters = [
        # Without a Secret: the store's own credentials read it. Files have their roles as names.
        {"name": adapter["name"], "source": address, "digest": digest}
        | {field: role for field, role in _ADAPTER_FIELDS.items() if adapter.get(field)}
        if adapter_source(adapter["name"]) == name
        else adapter
        for adapter in written["lora"]["adapters"]
    ]
    return {**written, "lora": {**written["lora"], "adapters": adapters}}


def uploaded_child(written: Json, number: int, address: str, digest: str) -> Json:
    """The spec with a child uploaded; see `uploaded`."""
    children = list(written["children"])
    found = _beside(children[number], address, digest)
    if found.get("calibration"):
        found["calibration"] = calibration_role(found["calibration"])
    children[number] = found
    return {**written, "children": children}


def _beside(part: Json, address: str, digest: str) -> Json:
    """A model of the spec that lies beside the store: files are called by their roles there."""
    found = {**part, "source": address, "digest": digest}
    found.pop("secretRef", None)  # the store's own credentials read it
    return found | {field: role for field, role in _ROLE_FIELDS.items() if field in found}


def uploaded_draft(written: Json, address: str, digest: str) -> Json:
    """The spec with what guesses uploaded; see `uploaded`."""
    (part,) = written["speculation"]
    found = _beside(part, address, digest)
    if "draftTokenMap" in found:
        found["draftTokenMap"] = f"{TOKEN_MAP_ROLE}{Path(found['draftTokenMap']).suffix}"
    if "tensorFile" in found:
        found["tensorFile"] = FORECAST_ROLE
    return {**written, "speculation": [found]}


def uploaded(spec: BuildSpec, written: Json, address: str, digest: str) -> Json:
    """The spec with an uploaded model: files are called by their roles there.

    Args:
        spec: As validated.
        written: The same as it is to be applied.
        address: Of the folder; without an endpoint, it lies on the store's.
        digest: Of its content.
    """
    found = {**written, "model": _beside(written["model"], address, digest)}
    quantization = spec.quantization
    if quantization.fidelity.tokens or quantization.calibration:
        changed = dict(written.get("quantization", {}))
        if quantization.fidelity.tokens:
            role = tokens_role(quantization.fidelity.tokens)
            changed["fidelity"] = {**changed.get("fidelity", {}), "tokens": role}
        if quantization.calibration:
            changed["calibration"] = calibration_role(quantization.calibration)
        found["quantization"] = changed
    return found


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
