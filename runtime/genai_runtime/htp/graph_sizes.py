"""The static graphs of a container by size, and which of them computes the next pass. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from genai_core.errors import BadInput

__all__ = ["GraphSizes"]


class GraphSizes:
    """(AR, CL) of each graph: tokens of a pass, tokens that cache and pass hold together.

    Args:
        sizes: Of all graphs; at least one.
    """

    def __init__(self, sizes: Iterable[tuple[int, int]]) -> None:
        self._sizes = sorted(sizes)
        self.longest = max(cl for _, cl in self._sizes)
        """The largest CL."""

    def of_tree(self, length: int, count: int) -> tuple[int, int]:
        """(AR, CL) of the smallest graph that verifies a tree of `count` tokens in one pass.

        Args:
            length: Tokens in the cache.
            count: Tokens of the tree.

        Raises:
            BadInput: No graph takes so many.
        """
        fitting = [(cl, ar) for ar, cl in self._sizes if count <= ar and length <= cl - ar]
        if not fitting:
            raise BadInput(
                f"no graph takes a tree of {count} tokens behind {length}",
                remedy="draft fewer tokens, or build a larger AR",
            )
        cl, ar = min(fitting)
        return ar, cl

    def of_chain(self, length: int, wanted: int) -> tuple[int, int]:
        """(AR, CL) for the next piece: smallest CL, then the AR that needs the fewest passes.

        Args:
            length: Tokens in the cache.
            wanted: Tokens to append, in one pass or several.
        """
        for context in sorted({cl for _, cl in self._sizes}):
            fitting = [ar for ar, cl in self._sizes if cl == context and length <= cl - ar]
            if not fitting:
                continue
            whole = [ar for ar in fitting if ar >= wanted]
            best = min(whole) if whole else max(fitting)
            if whole or context == self.longest or length + wanted <= context:
                return best, context
        return min(ar for ar, cl in self._sizes if cl == self.longest), self.longest
