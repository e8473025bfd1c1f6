"""How an htp container is cut into context binaries.

A binary is at most 2 GB for the runtimes that load it. The embedding table is often as large as
many layers and is only looked up, so from three parts on it is a part of its own, as in the
bundles that are published for phones; lm_head stays with the last layers unless that part would
become too large or the spec says otherwise. Layers are dealt out so that the largest part is as
small as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import Placement, Splits
from genai_core.operations import SplitConfig
from genai_planner.sizing import BinarySizes, bytes_text

__all__ = ["SplitPlan", "balanced", "derive_splits"]

MOST_BYTES = 2_000_000_000
"""What a part may hold: runtimes refuse binaries of more than 2 GB."""

_EMBEDDING_APART_FROM = 3


@dataclass(frozen=True)
class SplitPlan:
    """The parts.

    Attributes:
        splits: In order.
        sizes: Predicted bytes of each.
        notes: How many, and why.
        warnings: Parts that are likely to be too large.
    """

    splits: tuple[SplitConfig, ...]
    sizes: tuple[int, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def derive_splits(wanted: Splits, sizes: BinarySizes) -> SplitPlan:
    """Cut the model as the spec asks, or into the least number of parts that fit.

    Raises:
        InvalidSpec: More parts than the model has, naming the maximum; or fewer than Apart needs.
    """
    layers = len(sizes.layers)
    apart = [p for p in (wanted.embedding, wanted.lm_head) if p is Placement.APART]
    least = 1 + len(apart)
    most = layers + sum(p is not Placement.JOINED for p in (wanted.embedding, wanted.lm_head))
    if wanted.count == "auto":
        # Fewer cannot do: no part holds more than the most, but for one that cannot be cut.
        items = (sizes.embedding, *sizes.layers, sizes.head)
        first = max(least, min(most, sum(min(item, MOST_BYTES) for item in items) // MOST_BYTES))
        plans = (_arrange(wanted, sizes, count) for count in range(first, most + 1))
        found = next((p for p in plans if _fits(p, wanted)), None)
        found = found or _arrange(wanted, sizes, most)
        why = f"the least that keeps every part below 2 GB at {sizes.assumed}"
        if max(found.sizes) >= MOST_BYTES:
            why = f"the least that leaves only what cannot be cut above 2 GB at {sizes.assumed}"
    else:
        _check_count(wanted.count, least, most, layers=layers)
        found = _arrange(wanted, sizes, wanted.count)
        why = "as given"
    noun = "split" if len(found.splits) == 1 else "splits"
    parts = "; ".join(_describe(split) for split in found.splits)
    return SplitPlan(
        found.splits,
        found.sizes,
        notes=(
            f"{len(found.splits)} {noun}, {why} (predicted {bytes_text(found.sizes)}): {parts}",
        ),
        warnings=tuple(
            f"split {split.index} of {split.count} is predicted to hold {size / 1e9:.2f} GB; "
            "runtimes refuse binaries of more than 2 GB"
            for split, size in zip(found.splits, found.sizes, strict=True)
            if size >= MOST_BYTES
        ),
    )


def _check_count(count: int, least: int, most: int, *, layers: int) -> None:
    if count > most:
        raise InvalidSpec(
            f"{count} splits are more than the model can be cut into: it has {layers} layers, "
            f"so the maximum is {most}",
            where="spec.splits.count",
            remedy=f"use at most {most}, or auto",
        )
    if count < least:
        raise InvalidSpec(
            f"{count} splits are too few for the parts that are to stand apart",
            where="spec.splits.count",
            remedy=f"use at least {least}, or auto",
        )


def _arrange(wanted: Splits, sizes: BinarySizes, count: int) -> SplitPlan:
    """The first arrangement in order of preference whose parts fit; else the first of all."""
    habit = count >= _EMBEDDING_APART_FROM
    plans = [
        _cut(sizes, count, embedding_apart=embedding, head_apart=head)
        for embedding, head in (
            (habit, False),
            (not habit, False),
            (habit, True),
            (not habit, True),
        )
        if _allowed(wanted.embedding, apart=embedding)
        and _allowed(wanted.lm_head, apart=head)
        and 1 <= count - embedding - head <= len(sizes.layers)
    ]
    return next((p for p in plans if _fits(p, wanted)), plans[0])


def _fits(plan: SplitPlan, wanted: Splits) -> bool:
    """No part is too large that could be cut further."""
    return not any(
        size >= MOST_BYTES and _can_be_cut(split, wanted)
        for split, size in zip(plan.splits, plan.sizes, strict=True)
    )


def _can_be_cut(split: SplitConfig, wanted: Splits) -> bool:
    layers = split.last - split.first
    embedding = split.embedding and wanted.embedding is not Placement.JOINED
    head = split.lm_head and wanted.lm_head is not Placement.JOINED
    return layers + embedding + head > 1


def _allowed(placement: Placement, *, apart: bool) -> bool:
    return placement is Placement.AUTO or (placement is Placement.APART) == apart


def _cut(sizes: BinarySizes, count: int, *, embedding_apart: bool, head_apart: bool) -> SplitPlan:
    layers = len(sizes.layers)
    ranges = balanced(
        sizes.layers,
        count - embedding_apart - head_apart,
        first=0 if embedding_apart else sizes.embedding,
        last=0 if head_apart else sizes.head,
    )
    parts = [(first, last, False, False) for first, last in ranges]
    if embedding_apart:
        parts.insert(0, (0, 0, True, False))
    else:
        parts[0] = (*parts[0][:2], True, False)
    if head_apart:
        parts.append((layers, layers, False, True))
    else:
        parts[-1] = (*parts[-1][:3], True)
    splits = tuple(
        SplitConfig(index=i, count=count, first=first, last=last, embedding=embedding, lm_head=head)
        for i, (first, last, embedding, head) in enumerate(parts, 1)
    )
    return SplitPlan(
        splits,
        tuple(
            sum(sizes.layers[s.first : s.last])
            + (sizes.embedding if s.embedding else 0)
            + (sizes.head if s.lm_head else 0)
            for s in splits
        ),
        notes=(),
    )


def balanced(
    weights: Sequence[int], parts: int, *, first: int = 0, last: int = 0
) -> list[tuple[int, int]]:
    """Cut a sequence into contiguous, non-empty parts whose largest sum is smallest.

    Of equally good cuts, the one with the smallest sum of squares, so that equal layers give
    parts of equal length as far as possible.

    Args:
        weights: Bytes of each item.
        parts: 1 to len(weights).
        first: Bytes that the first part holds besides.
        last: Bytes that the last part holds besides.

    Returns:
        [start, stop) of each part.
    """
    count = len(weights)
    sums = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    # best[i]: the best cut of the first i items into the parts so far, as (largest, squares).
    start = (0, 0)
    best: list[tuple[int, int] | None] = [start, *[None] * count]
    choice: list[list[int]] = []
    for part in range(parts):
        extra = (first if part == 0 else 0) + (last if part == parts - 1 else 0)
        row: list[tuple[int, int] | None] = [None] * (count + 1)
        chosen = [0] * (count + 1)
        for stop in range(part + 1, count - (parts - part - 1) + 1):
            for begin in range(stop - 1, part - 1, -1):
                previous = best[begin]
                if previous is None:
                    continue
                size = sums[stop] - sums[begin] + extra
                candidate = (max(previous[0], size), previous[1] + (stop - begin) ** 2)
                known = row[stop]
                if known is not None and size > known[0]:
                    break  # it only grows from here
                if known is None or candidate < known:
                    row[stop], chosen[stop] = candidate, begin
        best = row
        choice.append(chosen)
    cuts, stop = [], count
    for chosen in reversed(choice):
        cuts.append((chosen[stop], stop))
        stop = chosen[stop]
    return cuts[::-1]


def _describe(split: SplitConfig) -> str:
    names = []
    if split.embedding:
        names.append("embedding")
    if split.last - split.first == 1:
        names.append(f"layer {split.first}")
    elif split.last > split.first:
        names.append(f"layers {split.first}-{split.last - 1}")
    if split.lm_head:
        names.append("lm_head")
    return " + ".join(names)
