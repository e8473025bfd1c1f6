"""Kubernetes' quantities as numbers. Pure."""

from __future__ import annotations

__all__ = ["amount"]

_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "ki": 1024.0} | {
    f"{unit}{i}": base**power
    for power, unit in enumerate("KMGTPE", start=1)
    for i, base in (("i", 1024.0), ("", 1000.0))
}


def amount(text: str) -> float:
    """A quantity as a number: `250m` is 0.25, `1Ki` is 1024.

    Raises:
        ValueError, KeyError: It is none.
    """
    number = text.rstrip("EPTGMKkimun")
    return float(number) * _UNITS[text[len(number) :]]
