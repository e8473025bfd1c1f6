"""Puts the sources of a build that lie on this machine beside the namespace's store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genai_cli.cluster.connection import Cluster, Json
from genai_cli.cluster.remote.uploaded_spec import with_upload
from genai_cli.cluster.stores import StoreOptions, StorePlace, reaching
from genai_cli.display.output import tell
from genai_cli.display.render import busy
from genai_cli.display.words import counted, size
from genai_cli.engine.leases import claim_upload
from genai_cli.engine.work_folders import known_digests
from genai_core.errors import GenAIError
from genai_core.files.home import expanded
from genai_core.kinds.build import BuildSpec, GenAIBuild
from genai_core.names import TOKEN_MAP_ROLE
from genai_core.sources.build_sources import BuildSource, is_built, model_spec, of_source
from genai_core.sources.part_files import inspect_part, part_kind
from genai_core.sources.source_files import SourceFacts, inspect_source
from genai_core.store.address import StoreAddress

__all__ = ["inspected", "with_uploads"]


def with_uploads(
    cluster: Cluster,
    build: GenAIBuild,
    body: Json,
    local: Sequence[BuildSource],
    *,
    options: StoreOptions,
) -> Json:
    """Send what is not there yet; returns the spec that says where it lies.

    Args:
        cluster: Whose store.
        build: As it was read, with absolute paths.
        body: The same as it is to be applied.
        local: Its sources on this machine.
        options: How to reach the store.
    """
    namespace = body["metadata"]["namespace"]
    with busy("reading the model and what goes with it" if len(local) > 1 else "reading the model"):
        facts = {source: inspected(build.spec, source) for source in local}
    spec: Json = body["spec"]
    with reaching(cluster, namespace, build.spec.store.name, options=options) as place:
        for source in local:
            address = _sent(place, facts[source], build.metadata.name)
            spec = with_upload(build.spec, spec, source, address, digest=facts[source].digest)
    return spec


def inspected(spec: BuildSpec, source: BuildSource) -> SourceFacts:
    """What a source on this machine consists of.

    Raises:
        GenAIError: It cannot be read, or is not what it should be.
    """
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
    return inspect_part(
        part_kind(source.name),
        folder,
        known_digests(),
        where=source.field,
        pin=source.pin,
        **source.files,
    )


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
