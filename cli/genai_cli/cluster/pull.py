"""`genai pull`: a build's container out of the cluster into a folder of this machine."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path

from genai_cli.cluster.api_errors import NotThere
from genai_cli.cluster.build_views import Artifact, ClusterBuild
from genai_cli.cluster.builds import read_build
from genai_cli.cluster.connection import Access, connect
from genai_cli.cluster.stores import StoreOptions, opened_store
from genai_cli.containers.device import steps
from genai_cli.display.output import emit, say
from genai_cli.display.render import busy
from genai_cli.display.words import size
from genai_cli.settings import DEFAULT_OUTPUT, ProgramSettings
from genai_core.container.report import own_report
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_core.names import Key
from genai_core.store.address import parse_address
from genai_core.store.delivery import Delivered, deliver, folder_name, refuse_foreign

__all__ = ["pull_container"]


def pull_container(
    access: Access,
    settings: ProgramSettings,
    *,
    name: str,
    target: str | None,
    output: Path | None,
    options: StoreOptions,
) -> int:
    """Put the container into its folder, verified, and say how it is used; returns the exit code.

    Raises:
        GenAIError: There is none, or the store cannot be read from here.
    """
    cluster = connect(access)
    view = read_build(cluster, name, cluster.namespace)
    artifact = _chosen(view, target)
    path = (output or DEFAULT_OUTPUT / name / folder_name(artifact.target)).absolute()
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not view.settled or view.ready[0] != "True":
        sys.stderr.write(
            f"note: {name} is {view.phase}; this is its last good container for {artifact.target}\n"
        )
    with (
        opened_store(
            cluster, view.namespace, view.store, options=options, near=artifact.url
        ) as store,
        busy(f"fetching {size(artifact.size_bytes)} into {path}"),
    ):
        key = Key(Path(parse_address(artifact.url).prefix).stem)
        stored = store.get_record("package", key)
        if stored is None:
            raise GenAIError(
                f"its record package/{key[:12]} is not in {store.location}",
                where=f"{view.namespace}/{name}",
                remedy="build it again, or name its store with --store",
            )
        report = partial(own_report, fidelity=artifact.fidelity)
        found = deliver(stored.record, store, path, target=artifact.target, report=report)
    if found.revision != artifact.revision:
        raise CorruptBlob(
            f"its revision is {found.revision}, not the {artifact.revision} of the build's status",
            where=str(path),
            remedy=f"run it again; if it stays so, see genai status {name} -n {view.namespace}",
        )
    _tell(settings, view, found)
    return 0


def _chosen(view: ClusterBuild, target: str | None) -> Artifact:
    by_target = {item.target: item for item in view.artifacts}
    where = f"{view.namespace}/{view.name}"
    if not by_target:
        raise NotThere(
            f"it has no container yet: it is {view.phase}",
            where=where,
            remedy=f"see genai status {view.name} -n {view.namespace}",
        )
    if target is None and len(by_target) == 1:
        return next(iter(by_target.values()))
    if target is None:
        raise BadInput(
            f"it has {len(by_target)} containers",
            where=where,
            remedy=f"choose one: --target {' or '.join(map(shlex.quote, by_target))}",
        )
    wanted = {name.lower(): item for name, item in by_target.items()}.get(target.lower())
    if wanted is None:
        state = "not built yet" if target in view.targets else "none of its targets"
        raise NotThere(
            f"{target} is {state}", where=where, remedy=f"there is {', '.join(by_target)}"
        )
    return wanted


def _tell(settings: ProgramSettings, view: ClusterBuild, found: Delivered) -> None:
    todo = steps(found.path, name=view.name)
    if settings.json:
        emit(
            {
                "name": view.name,
                "namespace": view.namespace,
                "target": found.target,
                **found.as_json(),
                "steps": [{"about": step.about, "commands": list(step.commands)} for step in todo],
            }
        )
        return
    state = "new" if found.changed else "unchanged"
    say(f"{found.path}")
    say(f"  {found.revision}  {size(found.size_bytes)}  {state}, every file verified")
    for step in todo:
        say(f"\n# {step.about}")
        for command in step.commands:
            say(command)
