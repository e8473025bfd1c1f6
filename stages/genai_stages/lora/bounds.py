"""What a build allows of its adapters, those that come later included: a rank, and modules."""

from __future__ import annotations

from collections.abc import Sequence

from genai_core.errors import BadAdapter
from genai_stages.lora.adapter import Adapter
from genai_stages.lora.modules import path_of

__all__ = ["check_bounds"]

_SHOWN = 3


def check_bounds(adapter: Adapter, *, max_rank: int | None, target_modules: Sequence[str]) -> None:
    """Refuse an adapter beyond what its container was built for.

    Args:
        adapter: As it was read.
        max_rank: Of any branch; None = any.
        target_modules: Last names of modules, e.g. q_proj; empty = all.

    Raises:
        BadAdapter: With both ranks, or with how many modules are others.
    """
    wide = next(
        (name for name, one in adapter.branches.items() if max_rank and one.rank > max_rank), None
    )
    if wide is not None:
        raise BadAdapter(
            f"its rank is {adapter.branches[wide].rank}, lora.maxRank allows {max_rank}",
            where=f"{adapter.name}: {wide}",
            remedy="train it with a smaller rank, or build with a larger maxRank",
        )
    if not target_modules:
        return
    other = [
        name
        for name in adapter.branches
        if (path_of(name) or name).rpartition(".")[2] not in target_modules
    ]
    if other:
        more = " ..." if len(other) > _SHOWN else ""
        raise BadAdapter(
            f"{len(other)} of its {len(adapter.branches)} modules are none of lora.targetModules "
            f"({', '.join(target_modules)}): {', '.join(other[:_SHOWN])}{more}",
            where=adapter.name,
            remedy="train it on these modules alone, or build with more targetModules",
        )
