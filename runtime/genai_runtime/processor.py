"""What this machine's processor can do, as far as kernels and their rounding depend on it."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instructions that add u8 x s8 products in 32 bits. AVX2 adds pairs of them in 16."""


def features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The processor's features by the kernel's names (avx2, avx512_vnni, asimddp ...).

    Where processors differ, those that all of them have. Empty where the system does not tell:
    another system than Linux, or no /proc.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    pairs = (line.partition(":") for line in lines)
    listed = [
        frozenset(value.split()) for key, _, value in pairs if key.strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*listed) if listed else frozenset()


def saturates(known: frozenset[str]) -> bool:
    """Whether u8 x s8 products may saturate here.

    An unknown processor counts as saturating: exact kernels are slower there and never wrong.
    """
    return not known & _DOT_PRODUCTS
