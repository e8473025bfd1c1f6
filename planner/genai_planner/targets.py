"""Targets of a build: what a user wrote -> a backend and a chip.

On the command line a target is `cpu` or a chip in any of the forms of `genai_core.chips`; in a
cluster it is a GenAITarget, which the operator resolves to the same value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from genai_core import chips
from genai_core.errors import InvalidSpec, UnknownTarget
from genai_core.names import Backend
from genai_core.operations import ChipConfig

__all__ = ["Target", "parse_target", "parse_targets"]

_CPU = "cpu"


@dataclass(frozen=True)
class Target:
    """A backend and, for htp, a chip.

    Attributes:
        name: Normalised: `sm8750`, `cpu`, or the GenAITarget's name.
        options: Defaults of compile options; a build's own win.
    """

    name: str
    backend: Backend
    chip: ChipConfig | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def parse_target(text: str) -> Target:
    """A target from what a user wrote.

    Raises:
        UnknownTarget: Names the nearest ones.
    """
    name = text.strip().lower()
    if name == _CPU:
        return Target(_CPU, Backend.CPU)
    if ":" not in name:
        known = [_CPU, *(chip.name.lower() for chip in chips.CHIPS)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}? Known" if near else "known"
            raise UnknownTarget(
                f"no target named {text!r} is known",
                where="spec.targets",
                remedy=f"{meant} are {', '.join(known)}, and dsp_arch:vNN;soc_model:NN",
            )
    chip = chips.parse(text)
    return Target(
        chip.name.lower(),
        Backend.HTP,
        ChipConfig(soc_model=chip.soc_model, dsp_arch=chip.dsp_arch),
    )


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """All targets of a build, in order.

    Raises:
        UnknownTarget: One that is not known.
        InvalidSpec: Two that mean the same.
    """
    found: dict[str, tuple[str, Target]] = {}
    for text in texts:
        target = parse_target(text)
        if target.name in found:
            other = found[target.name][0]
            both = f"{other} twice" if other == text else f"{other} and {text}, which mean the same"
            raise InvalidSpec(f"it holds {both}", where="spec.targets", remedy="keep one of them")
        found[target.name] = (text, target)
    return tuple(target for _, target in found.values())
