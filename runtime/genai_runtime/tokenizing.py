"""Text to tokens and back, by the model's own tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from genai_core.errors import BadInput, BadModel

TOKENIZER_FILE = "tokenizer.json"


class TextTokenizer:
    """The tokenizer of one model."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadModel(
                f"not a tokenizer that the tokenizers library can read: {error}",
                where=path.name,
                remedy="export it with the tokenizer's save_pretrained",
            ) from error

    @classmethod
    def of_folder(cls, folder: Path) -> TextTokenizer | None:
        """The tokenizer of a model folder or container, None when it has none."""
        path = folder / TOKENIZER_FILE
        return cls(path) if path.is_file() else None

    def encode(self, text: str, *, special: bool = True) -> NDArray[np.int64]:
        """Token ids [T] of a text.

        Args:
            text: What is to be read.
            special: Add the special tokens that this tokenizer adds itself; not where the text has
                them, as a rendered chat template does.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=special).ids
        return np.asarray(ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special tokens."""
        return str(self._tokenizer.decode([int(token) for token in tokens]))


def parse_tokens(text: str) -> NDArray[np.int64]:
    """Token ids [T] from numbers with commas or blanks between them, e.g. `1,2,3`.

    Raises:
        BadInput: Something else stands there, or nothing.
    """
    words = text.replace(",", " ").split()
    try:
        return np.asarray([int(word) for word in words or ["nothing"]], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{text!r} is not a list of token ids", remedy="write numbers, e.g. 1,2,3"
        ) from error
