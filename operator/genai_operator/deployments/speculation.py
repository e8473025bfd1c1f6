"""What speculation brings, summed over what pods count (`/metrics` of each)."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import aiohttp

from genai_core.kinds.deployment_status import SpeculationStatus
from genai_operator.kube.pod import PodView
from genai_operator.timing import SYSTEM, Timing

__all__ = ["AskCounts", "PodCounts", "ask_counts", "read_counts", "speculation_status"]

_PORT = 8000
_AGAIN_SECONDS = 60.0
_ANSWER_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_MOST_AT_ONCE = 32
_LINE = re.compile(
    r"^(?:vllm:spec_decode_num_|genai_spec_decode_)"
    r"(drafts|draft_tokens|accepted_tokens|seconds|plain_seconds)_total\{[^}]{0,500}\} (\S{1,32})$",
    re.MULTILINE,
)

Counts = Mapping[str, float]
"""drafts, draft_tokens, accepted_tokens, seconds, plain_seconds."""


class AskCounts(Protocol):
    """How a pod is asked."""

    async def __call__(self, pod: PodView, *, tls: bool) -> Counts:
        """See `ask_counts`."""
        ...


class PodCounts:
    """Counts of pods, each asked for once a minute.

    Args:
        ask: How a pod is asked.
        timing: Clocks.
    """

    def __init__(self, ask: AskCounts | None = None, *, timing: Timing = SYSTEM) -> None:
        self._ask = ask or ask_counts
        self._timing = timing
        self._known: dict[str, tuple[float, Counts]] = {}
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)

    def keep(self, uids: Collection[str]) -> None:
        """Forget pods that are gone."""
        for uid in self._known.keys() - set(uids):
            del self._known[uid]

    async def of(self, pods: Sequence[PodView], *, tls: bool = False) -> list[Counts]:
        """What these pods have counted; of one that does not answer what it said last.

        Args:
            pods: That answer.
            tls: They speak it.
        """
        return list(await asyncio.gather(*(self._of(pod, tls=tls) for pod in pods)))

    async def _of(self, pod: PodView, *, tls: bool) -> Counts:
        known = self._known.get(pod.uid)
        if known is not None and self._timing.monotonic() < known[0]:
            return known[1]
        async with self._room:
            counts = await self._ask(pod, tls=tls) or (known[1] if known is not None else {})
        self._known[pod.uid] = (self._timing.monotonic() + _AGAIN_SECONDS, counts)
        return counts


def read_counts(text: str) -> Counts:
    """The counts in a scrape of a server; what is no number is passed over."""
    counts: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        with suppress(ValueError):
            number = float(value)
            if math.isfinite(number) and number >= 0:
                counts[name] = number
    return counts


def speculation_status(counts: Sequence[Counts]) -> SpeculationStatus | None:
    """What pods have counted together; None where nothing was guessed yet.

    The speed-up is the time that plain passes would have taken for the same tokens, by those that
    were run to compare with, over the time that passes took.
    """
    drafts, guessed, accepted, seconds, plain = (
        sum(of_pod.get(name, 0.0) for of_pod in counts)
        for name in ("drafts", "draft_tokens", "accepted_tokens", "seconds", "plain_seconds")
    )
    if not drafts or not guessed:
        return None
    return SpeculationStatus(
        acceptance=f"{accepted / guessed:.2f}",
        tokens_per_pass=f"{1 + accepted / drafts:.2f}",
        speedup=f"{plain / seconds:.2f}" if seconds and plain else "",
    )


async def ask_counts(pod: PodView, *, tls: bool = False) -> Counts:
    """Scrape a pod; nothing where it does not answer as a server does.

    Its certificate is for the Service's name, and nothing secret is told: it is not checked.
    """
    host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
    limits = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, connect=2.0)
    data = bytearray()
    try:
        async with (
            aiohttp.ClientSession(timeout=limits) as session,
            session.get(
                f"{'https' if tls else 'http'}://{host}:{_PORT}/metrics",
                allow_redirects=False,
                ssl=False,
            ) as answer,
        ):
            if answer.status != 200:
                return {}
            async for piece in answer.content.iter_chunked(1 << 16):
                data += piece
                if len(data) > _MOST_BYTES:
                    return {}
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        return {}
    return read_counts(data.decode("utf-8", "replace"))
