"""Known tokens of a sequence, and where they stood before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class History:
    """Tokens in an array that grows.

    Args:
        tokens: The first ones.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._held: NDArray[np.int32] = np.empty(256, np.int32)
        self._size = 0
        self.extend(tokens)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32 [T]; a view, to be read before the next `extend`."""
        return self._held[: self._size]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        size = self._size + len(tokens)
        if size > self._held.size:
            grown = np.empty(max(size, 2 * self._held.size), np.int32)
            grown[: self._size] = self.tokens
            self._held = grown
        self._held[self._size : size] = tokens
        self._size = size

    def forget(self, count: int) -> None:
        """Drop the first `count` tokens."""
        self._held[: self._size - count] = self._held[count : self._size].copy()
        self._size -= count


def longest_match(
    text: NDArray[np.int32], tail: NDArray[np.int32], most: int
) -> tuple[int, NDArray[np.intp]]:
    """Where the end of `tail` stands in `text`, as long a piece of it as there is.

    Args:
        text: [T].
        tail: [S]; may be `text` itself, whose own end does not count.
        most: Tokens that are compared at most.

    Returns:
        Length of the piece, 0 where its last token is not there; and, ascending, the places in
        `text` of what follows it, all below T.
    """
    if tail.size == 0 or text.size < 2:
        return 0, np.zeros(0, np.intp)
    places = np.flatnonzero(text[:-1] == tail[-1]) + 1
    length = int(places.size > 0)
    while length and length < min(most, tail.size):
        longer = places[places > length]
        longer = longer[text[longer - 1 - length] == tail[-1 - length]]
        if longer.size == 0:
            break
        places = longer
        length += 1
    return length, places
