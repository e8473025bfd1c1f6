"""An adapter in one form, whatever file it came from.

A branch adds `scale * alpha * B (A x)` to what a linear computes from x (Hu et al., LoRA, 2021).
`scale` is the file's own factor, PEFT's lora_alpha / r; `alpha` is the user's, given when the
adapter is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genai_core.container.adapters import LARGEST_WEIGHT
from genai_core.errors import BadAdapter

__all__ = ["Adapter", "AdapterBranch", "Floats"]

Floats = NDArray[np.float32]

_SMALLEST = float(np.finfo(np.float32).smallest_normal)
"""Products below it lose their digits, and then are zero: the adapter would be none."""


@dataclass(frozen=True, eq=False)
class AdapterBranch:
    """What one adapter adds to one linear.

    Attributes:
        a: [rank, in], float32.
        b: [out, rank], float32.
        scale: The file's own factor.
        widths: Largest absolute values of x A and of what is added, where its encodings say.
    """

    a: Floats
    b: Floats
    scale: float = 1.0
    widths: tuple[float, float] | None = None

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class Adapter:
    """Branches by module.

    Attributes:
        name: As users call it.
        branches: Module, as its file names it -> branch.
        base: The model that it was trained on, where the file says.
    """

    name: str
    branches: Mapping[str, AdapterBranch]
    base: str = ""

    @property
    def rank(self) -> int:
        """The largest of its branches."""
        return max((branch.rank for branch in self.branches.values()), default=0)


def branch_of(module: str, a: Floats, b: Floats, *, scale: float, where: str) -> AdapterBranch:
    """Check that A and B belong together.

    Raises:
        BadAdapter: They are no matrices, disagree in rank, or hold what is no number, or what is
            too large for one, alone or times the factor; or the factor leaves nothing of B.
    """
    if a.ndim != 2 or b.ndim != 2:
        raise BadAdapter(
            f"its LoRA weights have the shapes {list(a.shape)} and {list(b.shape)}; two matrices "
            "are expected",
            where=f"{where}: {module}",
            remedy="export the adapter again; convolutions and embeddings cannot carry one here",
        )
    if a.shape[0] != b.shape[1]:
        raise BadAdapter(
            f"lora_A has rank {a.shape[0]}, lora_B has rank {b.shape[1]}",
            where=f"{where}: {module}",
            remedy="export the adapter again",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise BadAdapter(
            "its LoRA weights hold values that are no finite numbers",
            where=f"{where}: {module}",
            remedy="train or export the adapter again",
        )
    if max(np.abs(a).max(initial=0), np.abs(b).max(initial=0)) > LARGEST_WEIGHT:
        raise BadAdapter(
            f"its LoRA weights reach beyond {LARGEST_WEIGHT:g}: a product with them overflows",
            where=f"{where}: {module}",
            remedy="its training diverged; train it again with a smaller learning rate",
        )
    largest = float(np.abs(b).max(initial=0)) * scale
    if np.abs(b).any() and not _SMALLEST <= largest <= LARGEST_WEIGHT:
        raise BadAdapter(
            f"its factor {scale:g} (lora_alpha / r) makes {largest:g} of the largest weight of "
            f"lora_B: float32 multiplies from {_SMALLEST:g} to {LARGEST_WEIGHT:g}",
            where=f"{where}: {module}",
            remedy="look at lora_alpha, alpha_pattern and r of the adapter's configuration",
        )
    return AdapterBranch(a, b, scale)
