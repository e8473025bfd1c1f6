"""Names of static graphs, and which pairs of AR and CL make sense.

A static graph computes AR tokens (auto-regression length) in one pass within a context of CL
tokens, past and new together. Its name says both, and after splitting also the part:

    ar32_cl256 · ar32_cl256_2_of_3 · in a container prompt_ar32_cl256_2_of_3, token_ar1_cl256_2_of_3

The planner refuses a combination before anything runs, the stages refuse it again; both ask here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from genai_core.errors import InvalidSpec
from genai_core.names import GraphName

NATIVE_KV_ARS = (32, 64, 128, 256)
"""The ARs for which the vendor's native KV layout exists."""

SAFE_FACTOR = 4
"""Passes of the largest AR from which on contexts were tested with Genie."""

_NAME = re.compile(r"(?:(prompt|token)_)?ar([1-9]\d*)_cl([1-9]\d*)(?:_([1-9]\d*)_of_([1-9]\d*))?")


@dataclass(frozen=True)
class ParsedName:
    """What the name of a graph says.

    Attributes:
        ar: Tokens in one pass.
        cl: Context length.
        index: Part, from 1; 0 when the graph is not split.
        count: Number of parts; 0 when the graph is not split.
        role: `prompt` or `token` in a container, else empty.
    """

    ar: int
    cl: int
    index: int = 0
    count: int = 0
    role: str = ""


def graph_name(ar: int, cl: int) -> GraphName:
    """The name of a whole static graph."""
    return GraphName(f"ar{ar}_cl{cl}")


def split_name(ar: int, cl: int, *, index: int, count: int) -> GraphName:
    """The name of part `index` (from 1) of `count`."""
    return GraphName(f"ar{ar}_cl{cl}_{index}_of_{count}")


def container_name(ar: int, cl: int, *, index: int, count: int, token_ar: int) -> GraphName:
    """The name in a container, where the runtime tells decoding from reading the prompt by it.

    Args:
        ar: Tokens in one pass.
        cl: Context length.
        index: Part, from 1.
        count: Number of parts.
        token_ar: The container's smallest AR: that graph decodes, all others read prompts.
    """
    role = "token" if ar == token_ar else "prompt"
    return GraphName(f"{role}_{split_name(ar, cl, index=index, count=count)}")


def parse_name(name: str) -> ParsedName:
    """Read a graph's name.

    Raises:
        ValueError: It is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a graph")
    role, ar, cl, index, count = match.groups()
    found = ParsedName(int(ar), int(cl), int(index or 0), int(count or 0), role or "")
    if found.index > found.count:
        raise ValueError(f"{name!r}: part {found.index} of {found.count}")
    return found


def check_graph(ar: int, cl: int) -> None:
    """Refuse a graph that cannot exist.

    Raises:
        InvalidSpec: More new tokens than the context holds.
    """
    if ar > cl:
        raise InvalidSpec(
            f"AR {ar} is larger than CL {cl}: a pass cannot hold more tokens than the context",
            where="graphs",
            remedy=f"use context lengths of at least {ar}, or a smaller autoRegression",
        )


def fits_htp(ar: int, cl: int) -> bool:
    """Whether a context holds a pass and more than one beside it, as Genie needs."""
    return cl > 2 * ar


def check_htp_graphs(ars: Iterable[int], cls: Iterable[int]) -> tuple[str, ...]:
    """Check every AR x CL of an htp container and return warnings.

    Genie hands an empty cache to the first decoding pass when the past of its largest graph is as
    short as one pass (measured with CL 64 and AR 32); twice the largest AR is therefore refused,
    and below four times one is told.

    Raises:
        InvalidSpec: A pair that cannot exist, or a CL of at most twice the largest AR.
    """
    ars, cls = sorted(set(ars)), sorted(set(cls))
    for cl in cls:
        for ar in ars:
            check_graph(ar, cl)
    largest = ars[-1]
    warnings: list[str] = []
    for cl in cls:
        if not fits_htp(largest, cl):
            raise InvalidSpec(
                f"CL {cl} is at most twice the largest AR {largest}: Genie loses the cache there",
                where="graphs.contextLengths",
                remedy=f"use more than {2 * largest} (it is tested with Genie from "
                f"{SAFE_FACTOR * largest} on), or a smaller autoRegression",
            )
        if cl < SAFE_FACTOR * largest:
            warnings.append(
                f"CL {cl} is less than four times the largest AR {largest}: tested with Genie "
                f"only from {SAFE_FACTOR * largest} on"
            )
    return tuple(warnings)


def check_native_kv(ars: Iterable[int]) -> None:
    """Refuse ARs for which the native KV layout does not exist.

    Raises:
        InvalidSpec: An AR other than 32, 64, 128, 256.
    """
    wrong = sorted(set(ars) - set(NATIVE_KV_ARS))
    if wrong:
        allowed = ", ".join(map(str, NATIVE_KV_ARS))
        raise InvalidSpec(
            f"nativeKV does not exist for AR {', '.join(map(str, wrong))}",
            where="graphs.autoRegression",
            remedy=f"use ARs out of {allowed}",
        )
