"""Where the tokens of a pass lie: the small index arrays that a packed model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.rows import Tree, Want

HIDDEN = np.float32(-1e30)
"""Added to the score of a token that is not seen; far below any score, and finite."""

_TWICE = 2
"""A lone token stands so often; see `packing`."""


@dataclass(frozen=True)
class RowPart:
    """What the slot at one place of a pass does.

    Attributes:
        tokens: [T].
        past: Tokens that the slot holds.
        want: Which of them yield logits.
        tree: As the row's.
        prefix: Places of the trained prefix that stand before the tokens which see it.
    """

    tokens: NDArray[np.int64]
    past: int
    want: Want
    tree: Tree | None = None
    prefix: int = 0

    @property
    def chain(self) -> int:
        """Tokens before those that see the prefix."""
        return self.tokens.size - (0 if self.tree is None else self.tree.prefixed)


@dataclass(frozen=True)
class PassLayout:
    """Inputs of a pass by name, and where its outputs belong.

    Attributes:
        inputs: As `packing` describes them.
        count: W, logits that come out.
        wanted: By place, begin and end of its logits.
    """

    inputs: dict[str, NDArray[np.generic]]
    count: int
    wanted: list[tuple[int, int]]


def lay_out(parts: Sequence[RowPart | None], *, trees: bool, doubled: bool = True) -> PassLayout:
    """Lay the parts of a pass behind one another.

    A place without a part has attention over two tokens of others (any will do), in a filler slot:
    nothing of it is kept, and linears never see it.

    Args:
        parts: By place; at least one is not None.
        trees: The model takes positions and masks by row.
        doubled: A lone token stands twice, so that its bits are those that it has among others.
    """
    least = _TWICE if doubled else 1
    tokens: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.integer]] = []
    wide: list[NDArray[np.int64]] = []
    kept: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    wanted: list[NDArray[np.int64]] = []
    ends: list[tuple[int, int]] = []
    inputs: dict[str, NDArray[np.generic]] = {}
    start = 0
    total = sum(part.tokens.size for part in parts if part is not None)
    for place, part in enumerate(parts):
        past = 0 if part is None else part.past
        if part is None:
            own, width = np.zeros(least, np.int64), least
            chosen = np.zeros(0, np.int64)
        else:
            count = part.tokens.size
            width = max(count, least)
            own = np.minimum(np.arange(start, start + width), start + count - 1)
            places = np.arange(count)
            if part.prefix:  # its keys and values lie behind the tokens of all rows
                own = np.insert(own, part.chain, np.arange(total, total + part.prefix))
                places[part.chain :] += part.prefix
                width += part.prefix
            kept.append(len_of(wide) + places)
            chosen = np.arange(start + count - part.want.count(count), start + count)
            tokens.append(part.tokens)
            positions.append(past + np.arange(count) if part.tree is None else part.tree.positions)
            start += count
        wide.append(own)
        lengths.append(width)
        ends.append((len_of(wanted), len_of(wanted) + chosen.size))
        wanted.append(chosen)
        inputs[f"packed.seqlens_k.{place}"] = np.array([past + width - 1], np.int32)
        inputs[f"packed.total.{place}"] = np.array([past + width], np.int32)
        if trees:
            inputs |= _tree_inputs(place, part, past, width)
    count = len_of(wanted)
    inputs |= {
        "input_ids": np.concatenate(tokens)[None],
        "packed.positions": np.concatenate(positions).astype(np.int64)[None],
        "packed.wide": np.concatenate(wide),
        "packed.kept": np.concatenate(kept),
        "packed.lengths": np.array(lengths, np.int64),
        # A product wants at least one row; nobody is given this one.
        "packed.wanted": np.concatenate(wanted) if count else np.zeros(1, np.int64),
    }
    return PassLayout(inputs, max(count, 1), ends)


def len_of(pieces: Sequence[NDArray[np.int64]]) -> int:
    """Elements of all pieces together."""
    return sum(piece.size for piece in pieces)


def _tree_inputs(
    place: int, part: RowPart | None, past: int, width: int
) -> dict[str, NDArray[np.generic]]:
    bias = np.zeros((1, 1, width, past + width), np.float32)
    positions: NDArray[np.integer] = past + np.arange(width)
    if part is not None and part.tree is not None:
        sees, positions = _with_prefix(part, part.tree)
        count = len(positions)
        bias[0, 0, :count, past : past + count][~sees] = HIDDEN
        positions = positions[np.minimum(np.arange(width), count - 1)]
    return {
        f"packed.positions.{place}": positions.astype(np.int64)[None],
        f"packed.bias.{place}": bias,
    }


def _with_prefix(part: RowPart, tree: Tree) -> tuple[NDArray[np.bool_], NDArray[np.integer]]:
    """Mask and positions of a row with its prefix, which lies before the tokens that see it.

    Its keys are rotated already: at position 0 nothing is turned.
    """
    if not part.prefix:
        return tree.sees, np.asarray(tree.positions)
    at = [part.chain] * part.prefix
    sees = np.insert(np.insert(tree.sees, at, False, axis=0), at, False, axis=1)
    behind = part.chain + part.prefix
    sees[behind:, part.chain : behind] = True
    inside = np.arange(part.chain, behind)
    sees[inside, inside] = True
    return sees, np.insert(np.asarray(tree.positions), at, 0)
