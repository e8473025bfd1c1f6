"""Declares adapters to serving pods at their admin port, and reads back what they hold.

A pod that has answered is asked again when the declaration changed, when a container of it started
anew, when it could not do all of it, and else every half minute.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from genai_core.canonical import digest_json
from genai_core.files.json_budgets import ADAPTERS
from genai_operator.deployments.admin_objects import ADMIN_PORT
from genai_operator.deployments.declared import Declaration, PodReport, read_report
from genai_operator.kube.pod import PodView
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Ask", "PodAdmin", "ask_pod"]

_AGAIN_SECONDS = 30.0
_ANSWER_SECONDS = 10.0
_MOST_AT_ONCE = 32


class Ask(Protocol):
    """How a pod is asked."""

    async def __call__(self, pod: PodView, declared: Declaration, token: str) -> PodReport:
        """See `ask_pod`."""
        ...


@dataclass(frozen=True)
class _Answer:
    """A pod's last report.

    Attributes:
        digest: Of what it was asked: declaration, restarts, address.
        due: When it is asked again, by the monotonic clock.
        report: What it said.
        revision: The revision that it was to go over to; empty: none.
    """

    digest: str
    due: float
    report: PodReport
    revision: str


class PodAdmin:
    """See the module's docstring.

    Args:
        ask: How a pod is asked.
        timing: Clocks.
    """

    def __init__(self, ask: Ask | None = None, *, timing: Timing = SYSTEM) -> None:
        self._ask = ask or ask_pod
        self._timing = timing
        self._answers: dict[str, _Answer] = {}
        self._requests = asyncio.Semaphore(_MOST_AT_ONCE)

    def keep(self, uids: Collection[str]) -> None:
        """Forget pods that are gone."""
        for uid in self._answers.keys() - set(uids):
            del self._answers[uid]

    def refused(self, revision: str, uids: Collection[str]) -> bool:
        """Whether one of these pods cannot go over to a revision as it runs.

        An adapter touches other linears than the pod has made room for, or has more ranks, or what
        lies in the store is broken.
        """
        answers = [self._answers[uid] for uid in uids if uid in self._answers]
        return any(
            answer.revision == revision
            and any(adapter.reason for adapter in answer.report.adapters.values())
            for answer in answers
        )

    async def declare(
        self, pods: Sequence[tuple[PodView, Declaration]], token: str
    ) -> list[PodReport]:
        """Return the report of each pod; a pod is asked where that is due.

        Args:
            pods: Those that answer, with what they are to serve.
            token: That their admin port asks for.
        """
        return list(await asyncio.gather(*(self._of(pod, wanted, token) for pod, wanted in pods)))

    async def _of(self, pod: PodView, wanted: Declaration, token: str) -> PodReport:
        digest = digest_json([wanted.body, pod.restarts, pod.ip])
        known = self._answers.get(pod.uid)
        if known is not None and known.digest == digest and self._timing.monotonic() < known.due:
            return known.report
        async with self._requests:
            report = await self._ask(pod, wanted, token)
        adapters = map(report.adapters.get, wanted.paths)
        whole = not report.problem and all(a is not None and a.loaded for a in adapters)
        due = self._timing.monotonic() + (_AGAIN_SECONDS if whole else 0.0)
        revision = wanted.follows.revision if wanted.follows is not None else ""
        self._answers[pod.uid] = _Answer(digest, due, report, revision)
        return report


async def ask_pod(pod: PodView, declared: Declaration, token: str) -> PodReport:
    """Declare adapters to a pod; what keeps it from answering is in the report's `problem`."""
    host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
    limits = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, connect=2.0)
    try:
        async with (
            aiohttp.ClientSession(timeout=limits) as session,
            session.put(
                f"http://{host}:{ADMIN_PORT}/v1/adapters",
                json=declared.body,
                headers={"Authorization": f"Bearer {token}"},
                allow_redirects=False,
            ) as answer,
        ):
            data = await answer.content.read(ADAPTERS.most_bytes + 1)
            if answer.status != 200:
                return _problem(pod, f"its admin port answers {answer.status}")
            while not answer.content.at_eof() and len(data) <= ADAPTERS.most_bytes:
                data += await answer.content.read(ADAPTERS.most_bytes + 1)
        return read_report(json.loads(ADAPTERS.within(data)))
    except TimeoutError:
        return _problem(pod, "its admin port does not answer")
    except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
        return _problem(pod, f"its admin port: {type(error).__name__}: {error}")


def _problem(pod: PodView, why: str) -> PodReport:
    return PodReport({}, f"pod {pod.name}: {why}"[:300])
