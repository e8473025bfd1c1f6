"""A build from its spec to its containers: plan, run, deliver, report."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from genai_cli.build.report import write_report
from genai_cli.build.summary import as_json, print_summary
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, tell
from genai_cli.display.render import busy, progress
from genai_cli.engine.events import BuildResult
from genai_cli.engine.leases import Claim, working
from genai_cli.engine.local_engine import PlannedBuild, plan_build, run_plan
from genai_cli.engine.work_folders import known_digests
from genai_cli.option_words import in_options
from genai_cli.settings import ProgramSettings
from genai_core.container.report import own_report
from genai_core.errors import BadInput, CorruptBlob
from genai_core.kinds.build import GenAIBuild
from genai_core.sources.build_sources import sources_of
from genai_core.store.address import bucket_of
from genai_core.store.delivery import (
    Delivered,
    UntrueRecord,
    deliver,
    folder_name,
    refuse_foreign,
)
from genai_core.store.location import open_store
from genai_core.store.protocol import RecordRef, Store
from genai_core.store.upload_names import uploads_among

__all__ = ["Made", "make_containers", "run_build"]

_ROUNDS = 4
"""How often a build starts over because the store had a wrong blob in its container."""


@dataclass(frozen=True)
class Made:
    """What a build came to.

    Attributes:
        result: Of its tasks.
        containers: Target -> its container, of those that were built.
        problem: What could not be noted in the store; empty = nothing.
    """

    result: BuildResult
    containers: Mapping[str, Delivered]
    problem: str

    def raise_failure(self) -> None:
        """Raise the error of the first task that failed, where one did."""
        for failure in self.result.failures:
            raise failure.error


def make_containers(
    build: GenAIBuild, *, store: str, read_from: Sequence[str], output: Path, jobs: int | None
) -> Made:
    """Run what is not cached and put the containers of all targets into `<output>/<build>/`.

    Args:
        build: What to build; its source is absolute.
        store: Address of the store.
        read_from: Further stores, only read.
        output: Gets `<build>/<target>/`.
        jobs: Tasks at once; None = what the machine bears.

    Raises:
        GenAIError: Nothing could be planned, or the store or the disk failed; what is wrong with
            a task is in the result.
    """
    began = time.monotonic()
    name = build.metadata.name
    folder = _writable(output / name)
    artifacts = open_store(store, read_from=read_from)
    uploads = _uploads(build, store)
    with working(artifacts, name) as held:
        if uploads:
            held.claim((), uploads)
        planned, result, containers = _built(build, artifacts, folder, claim=held.claim, jobs=jobs)
        tasks = planned.local.ready().tasks
        problem = Claim(artifacts, name, folder, uploads).renew(tasks, result.containers)
    result = replace(result, seconds=time.monotonic() - began)
    write_report(folder, name, planned.local.ready(), result, containers)
    return Made(result, containers, problem or "")


def run_build(
    build: GenAIBuild,
    settings: ProgramSettings,
    *,
    store: str | None,
    read_from: Sequence[str],
    output: Path,
    jobs: int | None,
) -> int:
    """Run a build and print what came of it; returns the exit code. See `make_containers`."""
    made = make_containers(
        build, store=store or settings.store, read_from=read_from, output=output, jobs=jobs
    )
    name, result = build.metadata.name, made.result
    if made.problem:
        tell(f"warning: {made.problem}")
    if settings.json:
        emit(as_json(name, result, made.containers))
    else:
        console = PlainConsole(highlight=False)
        print_summary(console, name, result=result, containers=made.containers)
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    for failure in result.failures:
        error = in_options(failure.error) if settings.in_options else failure.error
        tell(f"error: {failure.id}: {error}")
    return result.failures[0].error.exit_code if result.failures else 0


def _built(
    build: GenAIBuild,
    artifacts: Store,
    folder: Path,
    *,
    claim: Callable[[Iterable[RecordRef]], None],
    jobs: int | None,
) -> tuple[PlannedBuild, BuildResult, dict[str, Delivered]]:
    for _ in range(_ROUNDS - 1):
        try:
            return _build_once(build, artifacts, folder, claim=claim, jobs=jobs)
        except CorruptBlob as error:
            # Found wrong when it was read, blob or record is gone: the task is a miss now.
            tell(f"warning: {error}")
    return _build_once(build, artifacts, folder, claim=claim, jobs=jobs)


def _build_once(
    build: GenAIBuild,
    artifacts: Store,
    folder: Path,
    *,
    claim: Callable[[Iterable[RecordRef]], None],
    jobs: int | None,
) -> tuple[PlannedBuild, BuildResult, dict[str, Delivered]]:
    name = build.metadata.name
    with busy("reading the model and looking up what is there"):
        planned = plan_build(build.spec, Path.cwd(), artifacts, name=name, claim=claim)
    # Rather now than when everything has been built.
    for target in planned.local.planner.request.targets:
        refuse_foreign(folder / folder_name(target.name))
    with progress(f"{name} → {', '.join(build.spec.targets)}") as report:
        result = run_plan(planned, on_event=report, jobs=jobs)
    return planned, result, _delivered(result, artifacts, folder)


def _delivered(result: BuildResult, artifacts: Store, folder: Path) -> dict[str, Delivered]:
    containers: dict[str, Delivered] = {}
    digests = known_digests()
    for target, record in result.containers.items():
        path = folder / folder_name(target)
        with busy(f"writing {path}"):
            try:
                containers[target] = deliver(
                    record,
                    artifacts,
                    path,
                    target=target,
                    digest_of=digests.digest,
                    report=partial(
                        own_report,
                        fidelity=result.fidelity.get(target),
                        records=result.made_of.get(target),
                    ),
                )
            except UntrueRecord:
                artifacts.writable.delete_record(RecordRef(record.operation, record.key))
                raise
    return containers


def _uploads(build: GenAIBuild, address: str) -> frozenset[str]:
    """Uploaded sources beside the store that the build reads."""
    store = bucket_of(address)
    if store is None:
        return frozenset()
    return uploads_among([source.address for source in sources_of(build.spec)], store)


def _writable(folder: Path) -> Path:
    """The folder, made; refused now rather than when everything has been built."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(
            f"containers cannot be written there: {reason}",
            where=str(folder),
            remedy="name another folder with --output",
        ) from error
    return folder.absolute()
