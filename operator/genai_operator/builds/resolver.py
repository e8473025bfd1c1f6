"""What a build's source consists of: found out once for each generation or request.

A bucket whose credentials the operator has is listed by it, and the key follows from sizes and
tags: a source that did not change needs no Job. Everything else is read by a pod of the tenant to
be known, unless its content is pinned; then too a record that stands is enough.
"""

from __future__ import annotations

from collections.abc import Iterable

from genai_core.errors import GenAIError, SourceNotFound, StoreUnavailable, StoreUnreadable
from genai_core.names import MODEL, Key, SourceName, TaskId, is_adapter
from genai_core.reasons import Reason
from genai_core.redaction import hidden_queries
from genai_core.sources.build_sources import BuildSource, of_source
from genai_core.sources.resolved import (
    RESOLVE,
    ResolvedSource,
    ResolveFile,
    content_key,
    pinned_content,
    resolve_file,
)
from genai_core.store.address import source_credentials
from genai_core.store.protocol import RecordRef
from genai_core.tasks.record import Record
from genai_operator.builds.build_pass import WATCHED_SECONDS, BuildPass
from genai_operator.builds.job_changes import JobWriter, changes_of, wait_of
from genai_operator.builds.references import SourceAccess
from genai_operator.builds.sources import list_source
from genai_operator.builds.status import ResolvedEntry
from genai_operator.errors import Stalled, Waiting, of_error
from genai_operator.jobs.attempts import group
from genai_operator.jobs.disk import UNKNOWN
from genai_operator.jobs.helper_jobs import HelperJobs, question_key
from genai_operator.jobs.job_manifest import JobRequest, given_memory, scope_of
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import (
    BackingOff,
    NextAttempt,
    PermanentFailure,
    Retry,
    Verdict,
    is_running,
    pause_of,
)
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.watch.observed import Observed
from genai_operator.steps import Wait
from genai_operator.stores.lookups import Unanswered
from genai_operator.stores.open_stores import OpenStore, Stores
from genai_operator.targets.build_targets import BuildTarget
from genai_operator.threads import in_thread

__all__ = ["Resolver"]

_RESOLVE_BYTES = 512 << 20


class Resolver:
    """See the module's docstring."""

    def __init__(
        self,
        observed: Observed,
        stores: Stores,
        *,
        helpers: HelperJobs,
        writer: JobWriter,
    ) -> None:
        self._observed = observed
        self._stores = stores
        self._helpers = helpers
        self._writer = writer

    async def resolved(
        self,
        build: BuildPass,
        opened: OpenStore,
        accesses: Iterable[SourceAccess],
        *,
        target: BuildTarget,
    ) -> dict[SourceName, ResolvedSource] | Wait:
        """What each source consists of; what it waits for while some of them are asked.

        All that are not known are asked at once.

        Raises:
            Stalled: A source cannot be used.
            Unanswered: A Job has to look a record up.
        """
        found: dict[SourceName, ResolvedSource] = {}
        waits_for: Wait | None = None
        for access in accesses:
            answer = await self._one(build, opened, access, target=target)
            if isinstance(answer, Wait):
                waits_for = waits_for or answer
            else:
                found[access.source.name] = answer
        return found if waits_for is None else waits_for

    async def _one(
        self, build: BuildPass, opened: OpenStore, access: SourceAccess, *, target: BuildTarget
    ) -> ResolvedSource | Wait:
        source, place = access.source, access.place
        if place.bucket is not None:
            await self._stores.check_endpoint(place.bucket.endpoint)
        if source.secret:  # pods are given it, whoever lists the source
            await self._stores.secrets.get(build.namespace, source.secret)
        ref = _known_source(build, access)
        record = await _look(opened, ref) if ref is not None else None
        if ref is None or record is None:
            asked = await self._asked(build, opened, access, target=target)
            if isinstance(asked, Wait):
                return asked
            ref, record = asked
        found = ResolvedSource.model_validate(record.facts)
        if source.pin not in {None, found.digest}:
            raise Stalled(
                "BadAdapter" if is_adapter(source.name) else "BadModel",
                f"the content of {place.uri} is {found.digest}, not the {source.pin} that "
                f"{source.pin_field} pins",
            )
        build.sources[source.name] = ResolvedEntry(place.uri, found.digest, ref.key)
        return found

    async def _asked(
        self,
        build: BuildPass,
        opened: OpenStore,
        access: SourceAccess,
        *,
        target: BuildTarget,
    ) -> tuple[RecordRef, Record] | Wait:
        key, question, exact = await self._question(build, opened, access)
        scope = scope_of(access.access.address, build.spec.run)
        attempts = group(self._observed.jobs_of(build.namespace, scope)).get(key, [])
        ref = RecordRef(RESOLVE, key) if exact else self._told_ref(attempts)
        if ref is not None:
            record = await self._record(opened, ref, attempts)
            if record is not None:
                return ref, record
        request = JobRequest(
            namespace=build.namespace,
            key=key,
            operation=RESOLVE,
            task=RESOLVE,
            document=question,
            image=target.image,
            memory_bytes=given_memory(build.spec.run) or _RESOLVE_BYTES,
            node_selector=target.node_selector,
            reads_source=True,
            source=access.source.name,
            disk_bytes=UNKNOWN,
        )
        return await self._send(build, request, attempts, access)

    async def _question(
        self, build: BuildPass, opened: OpenStore, access: SourceAccess
    ) -> tuple[Key, ResolveFile, bool]:
        """Key and question, and whether the key is the record's: else its Job will tell that."""
        source, place = access.source, access.place
        if place.bucket is not None and opened.credentials is not None:
            own = None
            if source.secret:
                own = await self._stores.credentials(build.namespace, source.secret)
            keys = source_credentials(
                place.bucket, own=own, store=opened.where, of_store=opened.credentials
            )
            assert keys is not None
            try:
                listed = await in_thread(
                    list_source,
                    build.spec,
                    source,
                    place.bucket,
                    keys,
                    store=opened.where,
                    refuse=self._stores.peers.refuse,
                )
            except (StoreUnreadable, StoreUnavailable) as error:
                raise _of_source(source, error) from error
            return *listed, True
        pin = source.pin if place.bucket is None else None
        question = resolve_file(build.spec, place.uri, source=source.name, pin=pin)
        pinned = pinned_content(question) if place.bucket is None else None
        if pinned is not None:
            return content_key(question, pinned), question, True
        asked = question.model_dump_json(exclude_none=True)
        return (
            question_key(RESOLVE, asked, build.owner.uid, build.generation, build.requested),
            question,
            False,
        )

    def _told_ref(self, attempts: list[JobView]) -> RecordRef | None:
        """The record that the last Job left, by its own word.

        Raises:
            Waiting: That word has not come yet.
        """
        if not attempts or attempts[-1].state is not JobState.SUCCEEDED:
            return None
        if self._helpers.may_yet_tell(attempts[-1]):
            raise Waiting(Reason.PROGRESSING, f"{attempts[-1].task} has ended", after=0.5)
        ending = self._helpers.ending(attempts[-1])
        key = ending.message.get("record") if ending is not None else None
        return RecordRef(RESOLVE, Key(key)) if isinstance(key, str) else None

    async def _record(
        self, opened: OpenStore, ref: RecordRef, attempts: list[JobView]
    ) -> Record | None:
        if opened.told is None:
            return await _look(opened, ref, anew=bool(attempts))
        for job in self._helpers.unheard(attempts[-1:]):
            answer = await self._helpers.hear(job)
            if answer is not None:
                opened.told.take(answer)
        try:
            return await _look(opened, ref)
        except Unanswered:
            if attempts and attempts[-1].state is JobState.SUCCEEDED:
                raise  # its log is gone; another Job reads the record
            return None  # the Job that resolves finds it where it stands

    async def _send(
        self, build: BuildPass, request: JobRequest, attempts: list[JobView], access: SourceAccess
    ) -> Wait:
        verdict: Verdict = NextAttempt()
        if attempts:
            pods = self._observed.pods_of(build.namespace)
            verdict = judge(
                attempts,
                pods,
                retries=build.spec.run.retries,
                now=self._observed.timing.now(),
                owner=build.owner.uid,
                wanted=request.wanted(build.owner, run=build.spec.run, access=access.access),
                task_seconds=build.spec.run.active_deadline_seconds,
            )
        if isinstance(verdict, PermanentFailure):
            error = of_source(verdict.error, access.source)
            problem = of_error(error)
            reason = problem.reason if isinstance(problem, Stalled) else error.code
            failure = (TaskId(RESOLVE), error, verdict.log)
            raise Stalled(reason, str(error), failure=failure)
        changes = changes_of(verdict, request, attempts, access=access.access)
        await self._writer.apply(build, changes)
        build.look_after(pause_of(verdict) or WATCHED_SECONDS)
        queued = not is_running(verdict) and bool(build.spec.run.queue_name)
        stands = await self._helpers.standings.of(build.namespace, attempts, queued=queued)
        build.look_after(stands.after)
        match verdict:
            case BackingOff(retry=Retry(error=SourceNotFound() as error)):
                return Wait(error.code, str(error))
            case _:
                return wait_of(stands, f"resolving {access.source.address}")


def _of_source(source: BuildSource, error: GenAIError) -> Waiting:
    """The store may be well all the same; whether it is, is tried."""
    denied = isinstance(error, StoreUnreadable)
    reason = Reason.SOURCE_UNREADABLE if denied else Reason.SOURCE_NOT_READY
    return Waiting(reason, f"{source.field}: {error}", after=5.0, most=60.0)


def _known_source(build: BuildPass, access: SourceAccess) -> RecordRef | None:
    if build.fresh:
        return None
    name, uri = access.source.name, access.place.uri
    for entry in build.status.get("sources") or ():
        same = entry.get("name", MODEL) == name and entry["uri"] in {uri, hidden_queries(uri)}
        if same and "record" in entry:
            key = entry["record"].removeprefix("sha256:")
            build.sources[name] = ResolvedEntry(entry["uri"], entry["digest"], key)
            return RecordRef(RESOLVE, Key(key))
    return None


async def _look(opened: OpenStore, ref: RecordRef, *, anew: bool = False) -> Record | None:
    answers = await in_thread(opened.lookups.look, [ref], anew=[ref.key] if anew else [])
    answer = answers[ref]
    return answer if isinstance(answer, Record) else None
