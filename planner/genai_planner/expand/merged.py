"""Adapters as part of Snapdragon graphs: binaries of their own for each adapter and use case.

The base's tasks are those of a build without adapters, so they stay cached when adapters come. Use
cases share one set of static graphs, with a branch at every linear, which depends on the model
alone. `convert` lays a use case's matrices in and takes the other branches off: what changes in one
use case runs its ranges, convert and compile, and the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.lora import Lora, QuantUpdatableMode
from genai_planner.sizing import bytes_text
from genai_planner.targets import Target

__all__ = ["MergedCase", "merged_cases", "merged_note", "of_mode"]

_GIB = 1 << 30


@dataclass(frozen=True)
class MergedCase:
    """What one set of binaries wears.

    Attributes:
        number: In the container's order: adapters, then use cases.
        name: Of the adapter or the use case.
        adapters: Numbers in spec.lora.adapters.
        alphas: Of each, as text.
    """

    number: int
    name: str
    adapters: tuple[int, ...]
    alphas: tuple[str, ...]

    def input_name(self, part: str) -> str:
        """Name of a package's input with a part of it."""
        return f"case_{self.number}_{part}"


def of_mode(lora: Lora | None) -> QuantUpdatableMode | None:
    """How Snapdragon graphs take adapters; None where there are none."""
    return None if lora is None else lora.quant_updatable_mode


def merged_cases(spec: BuildSpec) -> tuple[MergedCase, ...]:
    """Each adapter alone and each use case; none where adapters are inputs of the graphs."""
    lora = spec.lora
    if lora is None or lora.quant_updatable_mode is QuantUpdatableMode.NONE:
        return ()
    numbers = {adapter.name: number for number, adapter in enumerate(lora.adapters)}
    found: list[tuple[str, tuple[int, ...], tuple[str, ...]]] = [
        (name, (number,), ("1.0",)) for name, number in numbers.items()
    ]
    found += [
        (
            case.name,
            tuple(numbers[worn.name] for worn in case.adapters),
            tuple(worn.alpha for worn in case.adapters),
        )
        for case in lora.use_cases
    ]
    return tuple(MergedCase(at, *one) for at, one in enumerate(found))


def merged_note(
    spec: BuildSpec, cases: Sequence[MergedCase], targets: Sequence[Target], sizes: Sequence[int]
) -> str:
    """The sentence of the plan that says what the binaries take.

    Args:
        spec: Bounds them.
        cases: Not empty.
        targets: The htp targets.
        sizes: Predicted bytes of the base's binaries, each split's.

    Raises:
        InvalidSpec: They take more than `lora.maxMergedGiB`.
    """
    assert spec.lora is not None
    one, bound = sum(sizes), spec.lora.max_merged_gi_b
    most = one * len(cases) * len(targets)
    count = f"{len(cases)} {'use case' if len(cases) == 1 else 'use cases'}"
    chips = f"{len(targets)} {'chip' if len(targets) == 1 else 'chips'}"
    product = f"{count} x {chips} x {bytes_text([one])} = {bytes_text([most])}"
    if most > bound * _GIB:
        raise InvalidSpec(
            f"{product} of merged binaries, and {bound} GiB are {bytes_text([bound * _GIB])}",
            where="spec.lora.maxMergedGiB",
            remedy="raise it, list fewer adapters and use cases, or set quantUpdatableMode: None, "
            "whose adapters share the binaries",
        )
    names = ", ".join(case.name for case in cases)
    mode = spec.lora.quant_updatable_mode
    return (
        f"binaries of their own ({mode}) for {names}: {product} beside the base's, at most "
        f"{bound} GiB (lora.maxMergedGiB)"
    )
