"""The core graph while it is being recognized: canonical tensors that refer to source weights.

A draft is one future node of the core graph. Drafts are made freely; only those that the logits
need are written, so a recognizer may try something without cleaning up after itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_stages.ingest.recognition.layouts import TensorLayout
from genai_stages.ingest.source.source_model import Array, Constant

IndexArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class DraftWeight:
    """A source constant as the core graph wants it.

    Attributes:
        constant: Where the values are.
        turned: Whether the first of two axes is the input's: it is transposed when used.
        rows: Output channels that are kept, None = all.
        vector: Values computed here, which take the place of the constant's.
        pair: The two axes of a matrix, where the constant has further ones behind them.
    """

    constant: Constant
    turned: bool = False
    rows: tuple[int, int] | IndexArray | None = None
    vector: Array | None = None
    pair: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The core graph's name: the source's, with the rows where it is a part."""
        if self.rows is None:
            return self.source
        if isinstance(self.rows, tuple):
            return f"{self.source}[{self.rows[0]}:{self.rows[1]}]"
        return f"{self.source}[{self.rows[0]}...{self.rows[-1]}]"

    @property
    def source(self) -> str:
        """The source's name of the whole."""
        return self.constant.origin or self.constant.name

    def matrix(self) -> Array:
        """[out, in], a view of the stored type where possible: the writer widens it in blocks."""
        array = self.constant.load()
        array = array.reshape(self.pair or array.shape[-2:])
        return self._kept(array.T if self.turned else array)

    def values(self) -> Array:
        """A vector with one value for each output channel."""
        array = self.vector if self.vector is not None else self.constant.array().reshape(-1)
        return self._kept(array)

    def _kept(self, array: Array) -> Array:
        if self.rows is None:
            return array
        if isinstance(self.rows, tuple):
            return array[self.rows[0] : self.rows[1]]
        return array[self.rows]

    def cut(self, rows: IndexArray) -> DraftWeight:
        """The same with a selection of the output channels that it has."""
        if isinstance(self.rows, tuple):
            rows = rows + self.rows[0]
        elif self.rows is not None:
            rows = self.rows[rows]
        contiguous = bool(np.all(np.diff(rows) == 1))
        chosen = (int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
        return dataclasses.replace(self, rows=chosen)


@dataclasses.dataclass(eq=False)
class DraftNode:
    """One canonical tensor [1, T, width] and how it is computed.

    Attributes:
        name: The source's name of this tensor, or one made up (then `source` says what it is).
        op_type: Operator of the core graph.
        inputs: Tensors it reads.
        weights: Constants behind them, in the operator's order; None = an optional one left out.
        attributes: Plain values.
        width: Channels.
        source: The source tensor and its rows, where the name is not the source's own.
        made_by: The source node, for messages.
    """

    name: str
    op_type: str
    inputs: tuple[DraftNode, ...]
    width: int
    weights: tuple[DraftWeight | None, ...] = ()
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: tuple[str, IndexArray] | None = None
    made_by: str = ""

    constant_first: bool = False
    """A - x and A / x: the constant is the left operand."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A source tensor that holds channels of a draft.

    Attributes:
        draft: The canonical tensor.
        layout: How the source arranges it.
        name: The source tensor that first had these channels.
    """

    draft: DraftNode
    layout: TensorLayout
    name: str

    @property
    def is_whole(self) -> bool:
        """Whether every channel of the draft is there, in order."""
        return self.layout.is_whole(self.draft.width)
