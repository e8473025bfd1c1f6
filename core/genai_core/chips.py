"""Snapdragon chips: the vendor's SoC numbers and Hexagon versions.

A target is written `sm8750`, `chipset:SM8750` or `dsp_arch:v79;soc_model:69`. The library compiles
silently for SoC 0 when it does not know a name, so names are resolved here, only numbers are handed
over, and the number in the finished binary is compared with the one asked for.

Numbers: those that the vendor's library itself resolved (read back from the binaries). Hexagon
versions: LiteRT's SoC table (Apache-2.0) and the vendor's public list of supported devices.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from genai_core.errors import UnknownTarget


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: Upper case, e.g. `SM8750`.
        soc_model: The vendor's number, e.g. 69.
        dsp_arch: Hexagon version, e.g. 79.
    """

    name: str
    soc_model: int
    dsp_arch: int


CHIPS: tuple[Chip, ...] = (
    Chip("SM8350", 30, 68),
    Chip("SM8450", 36, 69),
    Chip("SM8475", 42, 69),
    Chip("SM8550", 43, 73),
    Chip("SM8635", 68, 73),
    Chip("SM7675", 70, 73),
    Chip("SM8650", 57, 75),
    Chip("SM8750", 69, 79),
    Chip("SM8850", 87, 81),
    Chip("SC8380XP", 60, 73),
    Chip("SC8480XP", 88, 81),
)

REFERENCE = CHIPS[7]
"""SM8750: the chip whose rules a DLC is checked against. The DLC itself is the same for all."""

_FORMS = "write a chip's name, chipset:NAME, or dsp_arch:vNN;soc_model:NN"


def by_name(name: str) -> Chip:
    """The chip of that name, in any case.

    Raises:
        UnknownTarget: There is none; the remedy lists the nearest names.
    """
    names = {chip.name: chip for chip in CHIPS}
    found = names.get(name.strip().upper())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.strip().upper(), names, n=3, cutoff=0.4) or sorted(names)
    raise UnknownTarget(
        f"no chip named {name!r} is known", where=name, remedy=f"use {', '.join(near)}"
    )


def by_number(soc_model: int, dsp_arch: int | None = None) -> Chip:
    """The chip of that SoC number.

    Raises:
        UnknownTarget: No such number, or its Hexagon version is another one.
    """
    where = f"soc_model:{soc_model}"
    for chip in CHIPS:
        if chip.soc_model != soc_model:
            continue
        if dsp_arch is not None and dsp_arch != chip.dsp_arch:
            raise UnknownTarget(
                f"soc_model {soc_model} is {chip.name}, which has Hexagon v{chip.dsp_arch}, "
                f"not v{dsp_arch}",
                where=f"dsp_arch:v{dsp_arch};{where}",
                remedy=f"write dsp_arch:v{chip.dsp_arch};soc_model:{soc_model}",
            )
        return chip
    nearest = sorted(CHIPS, key=lambda chip: abs(chip.soc_model - soc_model))[:3]
    listed = ", ".join(f"{chip.soc_model} ({chip.name})" for chip in nearest)
    raise UnknownTarget(
        f"no chip with soc_model {soc_model} is known", where=where, remedy=f"use {listed}"
    )


def parse(text: str) -> Chip:
    """A chip from any of the three forms.

    Raises:
        UnknownTarget: Not a form, not a known chip, or a chip and a Hexagon version at odds.
    """
    compact = re.sub(r"\s+", "", text)
    if ":" not in compact:
        return by_name(compact)
    fields: dict[str, str] = {}
    for part in filter(None, compact.split(";")):
        key, _, value = part.partition(":")
        if key.lower() in fields or not value:
            raise UnknownTarget(f"cannot read {part!r}", where=text, remedy=_FORMS)
        fields[key.lower()] = value
    if set(fields) == {"chipset"}:
        return by_name(fields["chipset"])
    if "soc_model" in fields and set(fields) <= {"soc_model", "dsp_arch"}:
        arch = (
            re.fullmatch(r"[vV]?(\d+)", fields.get("dsp_arch", ""))
            if "dsp_arch" in fields
            else None
        )
        number = re.fullmatch(r"\d+", fields["soc_model"])
        if number and (arch or "dsp_arch" not in fields):
            return by_number(int(number[0]), int(arch[1]) if arch else None)
    raise UnknownTarget(f"cannot read the chip {text!r}", where=text, remedy=_FORMS)
