"""Loss of a model on given tokens: how well it predicts text, in nats a token.

Each piece starts from an empty cache and no beginning token is added. The loss is the mean of
-log p(token | earlier tokens of the piece) over the piece's positions 1 to the last; the first
token of a piece is given, not predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_core.files.foreign import boundary, refuse_pointer
from genai_runtime.session import Logits, Session, in_chunks


@dataclass(frozen=True)
class Evaluation:
    """What `genai evaluate` reports.

    Attributes:
        nats_per_token: Mean loss.
        tokens: How many tokens were predicted.
    """

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite where that overflows."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


def losses(logits: Logits, targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """-log p of each target, [T], from logits [T, V]; computed in float64."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    partition = np.log(np.exp(wide - top).sum(axis=-1)) + top[:, 0]
    chosen = np.take_along_axis(wide, np.asarray(targets, dtype=np.int64)[:, None], axis=-1)[:, 0]
    result: NDArray[np.float64] = partition - chosen
    return result


def evaluate(session: Session, pieces: NDArray[np.integer]) -> Evaluation:
    """Mean loss over `pieces` [pieces, length].

    Raises:
        BadInput: The array is not two-dimensional, holds no prediction, holds an id outside the
            vocabulary, or its pieces are longer than the context.
    """
    array = np.asarray(pieces)
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[0] < 1 or array.shape[1] < 2:
        raise BadInput(
            f"expected an integer array [pieces, length >= 2], got {array.dtype} "
            f"{list(array.shape)}",
            where="tokens",
        )
    if int(array.min()) < 0 or int(array.max()) >= session.vocab_size:
        raise BadInput(
            f"token ids reach from {array.min()} to {array.max()}, the vocabulary has "
            f"{session.vocab_size}",
            where="tokens",
            remedy="tokenize the text with this model's tokenizer",
        )
    total, count = 0.0, 0
    for piece in array.astype(np.int64):
        session.reset()
        position = 1
        for logits in in_chunks(session, piece[:-1]):
            targets = piece[position : position + logits.shape[0]]
            total += float(losses(logits, targets).sum())
            position += logits.shape[0]
        count += piece.size - 1
    session.reset()
    return Evaluation(nats_per_token=total / count, tokens=count)


def read_pieces(path: Path, *, pieces: int = 0, length: int = 0) -> NDArray[np.integer]:
    """The integer array of a .npy file, cut to its first `pieces` rows and `length` columns.

    Raises:
        BadInput: The file is missing or holds something else.
    """
    with boundary(
        str(path),
        kind=BadInput,
        what="cannot be read as an array",
        remedy="write it with numpy.save, integers [pieces, length]",
    ):
        refuse_pointer(path, where=str(path))
        # Mapped: a header may name more numbers than the file, or any memory, holds.
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
        raise BadInput(
            "expected an integer array [pieces, length]",
            where=str(path),
            remedy="write it with numpy.save, integers [pieces, length]",
        )
    return np.array(array[: pieces or None, : length or None])
