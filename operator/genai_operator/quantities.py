"""Kubernetes' quantities as numbers. Pure."""

from __future__ import annotations

__all__ = ["amount"]

_DECIMAL, _BINARY = "kMGTPE", "KMGTPE"
_UNITS = (
    {"": 1.0, "m": 1e-3, "ki": 1024.0}
    | {unit: 1000.0 ** (n + 1) for n, unit in enumerate(_DECIMAL)}
    | {f"{unit}i": 1024.0 ** (n + 1) for n, unit in enumerate(_BINARY)}
)


def amount(text: str) -> float:
    """A quantity as a number: `250m` is 0.25, `1Ki` is 1024."""
    number = text.rstrip("EPTGMKkim")
    return float(number) * _UNITS[text[len(number) :]]
