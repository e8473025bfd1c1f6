"""An adapter's matrices in memory, and what they need of an executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput


class AdapterWeights:
    """One adapter in memory.

    Attributes:
        rank: The largest of its branches.
        branches: Linear -> A [in, rank], B [rank, out], float32.
    """

    def __init__(
        self, branches: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> None:
        self.branches = branches
        self.rank = max((int(a.shape[1]) for a, _ in branches.values()), default=0)


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter takes.

    Attributes:
        rank: The largest of its branches.
        sizes: Linear -> what it takes and gives.
        bytes: Of its matrices.
    """

    rank: int
    sizes: Mapping[str, tuple[int, int]]
    bytes: int

    @classmethod
    def of(cls, weights: AdapterWeights) -> AdapterShape:
        """Of an adapter in memory."""
        pairs = weights.branches.items()
        sizes = {name: (int(a.shape[0]), int(b.shape[1])) for name, (a, b) in pairs}
        return cls(weights.rank, sizes, sum(a.nbytes + b.nbytes for _, (a, b) in pairs))


class NoRoom(BadInput):
    """Adapters want more columns or memory than there are."""

    code = "NoRoom"
