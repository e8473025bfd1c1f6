"""Shell completion of values: silent, fast, and without a call to a server."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["gaps", "operations", "precisions", "targets"]


def targets(incomplete: str) -> list[str]:
    """`cpu` and the chips."""
    from genai_core import chips

    return _beginning(incomplete, ["cpu", *(chip.name.lower() for chip in chips.CHIPS)])


def gaps(incomplete: str) -> list[str]:
    """Values of `quantization.gaps`."""
    from genai_core.names import Gaps

    return _beginning(incomplete, list(Gaps))


def precisions(incomplete: str) -> list[str]:
    """Values of `quantization.cpuPrecision`."""
    from genai_core.kinds.build import CpuPrecision

    return _beginning(incomplete, list(CpuPrecision))


def operations(incomplete: str) -> list[str]:
    """The stages."""
    from genai_core.operations import OPERATIONS

    return _beginning(incomplete, dict.fromkeys(row.name for row in OPERATIONS))


def _beginning(incomplete: str, known: Iterable[str]) -> list[str]:
    """In any case, as values are read; what was typed stays as it is, or the shell drops it."""
    return [
        f"{incomplete}{value[len(incomplete) :]}"
        for value in map(str, known)
        if value.lower().startswith(incomplete.lower())
    ]
