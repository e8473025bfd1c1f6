"""Which linears of a build's static graphs take adapters, and what the inputs are called.

All adapters share the graphs: a branch at every linear that one of them touches, or that the spec
reserves, and one rank, the largest. A smaller adapter is padded with zeros, which add nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from safetensors import safe_open

from genai_core.errors import BadModel, InvalidSpec
from genai_core.facts import AdapterInputs, AdapterRanges, BranchTensors
from genai_stages.lora.modules import LinearPlace, stands_for

__all__ = [
    "INPUTS_FILE",
    "RANGES_FILE",
    "branch_inputs",
    "ranks_of",
    "read_inputs",
    "read_ranges",
]

INPUTS_FILE = "adapter_inputs.json"
"""An `AdapterInputs`."""
RANGES_FILE = "adapter_ranges.json"
"""An `AdapterRanges`."""

_M = TypeVar("_M", bound=BaseModel)
_HALVES = ("A", "B")
_INNER = ("plain", "down", "scaled", "up")


def read_inputs(folder: Path) -> AdapterInputs:
    """What `lora_graph` wrote.

    Raises:
        BadModel: It is not there, or something else.
    """
    return _read(AdapterInputs, folder / INPUTS_FILE, "run lora_graph first")


def read_ranges(folder: Path) -> AdapterRanges:
    """What `lora_ranges` wrote.

    Raises:
        BadModel: It is not there, or something else.
    """
    return _read(AdapterRanges, folder / RANGES_FILE, "run lora_ranges first")


def _read(kind: type[_M], path: Path, remedy: str) -> _M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadModel(f"cannot be read: {error}", where=path.name, remedy=remedy) from error


def ranks_of(path: Path) -> dict[str, int]:
    """Linear -> rank of its branch in an adapter of the core graph's layout."""
    with safe_open(path, framework="np") as opened:
        return {
            name.removesuffix(".A"): int(opened.get_slice(name).get_shape()[1])
            for name in list(opened.keys())
            if name.endswith(".A")
        }


def branch_inputs(
    places: Sequence[LinearPlace],
    adapters: Sequence[Mapping[str, int]],
    *,
    alpha: str,
    together: Sequence[Sequence[int]] = (),
    max_rank: int | None = None,
    target_modules: Collection[str] = (),
    taken: Collection[str] = (),
    every: bool = False,
) -> AdapterInputs:
    """Decide for a build.

    Args:
        places: Linears of the core graph.
        adapters: Of each, linear -> rank.
        alpha: Name of the input that scales all branches.
        together: Numbers of adapters that are used at once: they lie beside one another.
        max_rank: That is reserved.
        target_modules: Last names of modules that are reserved.
        taken: Names of the core graph's tensors.
        every: All linears take adapters, at rank 1: what becomes of it knows their real ones.

    Raises:
        InvalidSpec: The input's name is one of the graph's, or no linear takes an adapter.
    """
    if alpha in taken:
        raise InvalidSpec(
            f"the model has a tensor {alpha} already",
            where="spec.lora.alphaTensorName",
            remedy="give another name",
        )
    names = _Names({*taken, alpha})
    branches = []
    for place in places:
        output = place.site.output
        reserved = any(stands_for(module, place) for module in target_modules)
        if not every and not reserved and all(output not in adapter for adapter in adapters):
            continue
        layer = "" if place.layer is None else f"_l{place.layer}"
        own = names.free(f"lora{layer}_{place.kind or _last_name(place)}", _HALVES, "_")
        inner = names.free(output, _INNER, ".lora_")
        branches.append(
            BranchTensors(
                linear=output,
                inputs=place.site.inputs,
                outputs=place.site.outputs,
                **dict(zip(("a", "b"), own, strict=True)),
                **dict(zip(_INNER, inner, strict=True)),
            )
        )
    if not branches:
        raise InvalidSpec(
            "no linear of the model is one of them",
            where="spec.lora.targetModules",
            remedy="name modules of the model, e.g. q_proj",
        )
    return AdapterInputs(
        rank=_rank([one.linear for one in branches], adapters, together, max_rank or 1),
        alpha=alpha,
        branches=tuple(branches),
    )


def _rank(
    linears: Sequence[str],
    adapters: Sequence[Mapping[str, int]],
    together: Sequence[Sequence[int]],
    least: int,
) -> int:
    """The most columns that a branch needs, of one adapter or of all of a use case."""
    groups = [*((number,) for number in range(len(adapters))), *together]
    sums = [
        sum(adapters[number].get(linear, 0) for number in group)
        for linear in linears
        for group in groups
    ]
    return max([least, *sums])


def _last_name(place: LinearPlace) -> str:
    """What a linear is called whose place tells nothing."""
    path = min(place.paths, default="linear")
    return path.rpartition(".")[2]


class _Names:
    """Names that are free."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def free(self, stem: str, ends: Sequence[str], between: str) -> list[str]:
        """`<stem><between><end>` for all ends, with a number behind the stem where needed."""
        number = 1
        while True:
            numbered = stem if number == 1 else f"{stem}_{number}"
            found = [f"{numbered}{between}{end}" for end in ends]
            if self._taken.isdisjoint(found):
                self._taken.update(found)
                return found
            number += 1
