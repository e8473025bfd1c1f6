"""What a pass reads and yields: a row for each slot, and the row's output."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer]
"""Token ids, [T], any integer dtype."""

Logits = NDArray[np.float32]
"""[W, V]; row i is the model's opinion of the token that follows the i-th wanted one."""


class Want(enum.Enum):
    """The places of a row whose logits (and hidden states) are wanted."""

    NONE = "none"
    LAST = "last"
    ALL = "all"

    def count(self, tokens: int) -> int:
        """W, of a row of so many tokens."""
        return {Want.NONE: 0, Want.LAST: 1, Want.ALL: tokens}[self]


@dataclass(frozen=True)
class AdapterUse:
    """An adapter that a row wears.

    Attributes:
        name: As the executor lists it.
        alpha: What its branch is multiplied by.
    """

    name: str
    alpha: float = 1.0


@dataclass(frozen=True)
class Tree:
    """How the tokens of a row relate where they are no chain: a tree of drafts to verify.

    A node's numbers are those of its chain to rounding, not to the bit: hidden tokens that stand
    between its ancestors change the order of sums. Rows beside a tree keep their bits.

    Attributes:
        positions: [T] places in the text; those of siblings are equal.
        sees: bool [T, T]; token i attends to token j of this row, itself included, never to a
            later one. All of the slot's earlier tokens are seen.
        prefixed: So many of the row's tokens, the last ones, also see the executor's trained
            prefix. Neither they nor the prefix stay in the slot.
    """

    positions: NDArray[np.integer]
    sees: NDArray[np.bool_]
    prefixed: int = 0


@dataclass(frozen=True)
class Embeddings:
    """What stands in places of tokens instead of their rows of the embedding table: pictures.

    Attributes:
        places: [K], ascending.
        values: float32 [K, H].
    """

    places: NDArray[np.int64]
    values: NDArray[np.float32]

    def between(self, start: int, stop: int) -> Embeddings | None:
        """Those of the tokens from `start` to `stop`, counted from there; None without any."""
        first, last = np.searchsorted(self.places, (start, stop))
        if first == last:
            return None
        return Embeddings(self.places[first:last] - start, self.values[first:last])


@dataclass(frozen=True)
class Row:
    """What one slot does in a pass.

    Attributes:
        slot: Whose cache it reads, and appends to.
        tokens: [T], T >= 1.
        want: The places that yield logits.
        hidden: Yield the hidden states of these places too.
        adapters: What the row wears; nothing is the base.
        tree: Only where the tokens are no chain.
        states: Yield the states that the executor names, of every token.
        given: What its model reads beside the tokens, by name, float32 [T, width].
        embeddings: What it reads instead of some tokens' own, places counted in `tokens`.
    """

    slot: int
    tokens: Tokens
    want: Want = Want.LAST
    hidden: bool = False
    adapters: tuple[AdapterUse, ...] = ()
    tree: Tree | None = None
    states: bool = False
    given: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    embeddings: Embeddings | None = None


@dataclass(frozen=True)
class RowOutput:
    """What a row yields. The arrays belong to the caller.

    Attributes:
        logits: float32 [W, V].
        hidden: float32 [W, H], the states that the output layer reads; None unless asked for.
        states: float32 [T, S], the executor's `states` beside one another; likewise.
    """

    logits: Logits
    hidden: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None
