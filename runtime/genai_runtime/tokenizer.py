"""Text to tokens and back, by the model's own tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from genai_core.errors import BadInput, BadModel
from genai_core.files.foreign import boundary, plain_text, refuse_pointer

TOKENIZER_FILE = "tokenizer.json"
_MANY = 2048
"""Tokens whose text takes a millisecond."""


_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')


def _check_merges(data: bytes, where: str) -> None:
    """Refuse merges whose second token lacks the prefix that the library cuts off unasked.

    Where that cuts a letter of several bytes in two, the library (0.23) ends the whole process.

    Raises:
        BadModel: Names the merge.
    """
    if not _PREFIX.search(data):
        return
    model = json.loads(data)["model"]
    prefix = model["continuing_subword_prefix"]
    for number, merge in enumerate(model.get("merges") or ()):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not str(pair[-1]).startswith(prefix):
            raise BadModel(
                f"model.merges[{number}]: its second token does not begin with "
                f"continuing_subword_prefix {prefix!r}",
                where=where,
                remedy="export it with the tokenizer's save_pretrained",
            )


class TextTokenizer:
    """The tokenizer of one model."""

    def __init__(self, path: Path) -> None:
        refuse_pointer(path)
        self._where = path.name
        with boundary(
            path.name,
            what="not a tokenizer that the tokenizers library can read",
            remedy="export it with the tokenizer's save_pretrained",
        ):
            data = plain_text(path.read_bytes())
            _check_merges(data, path.name)
            self._tokenizer = Tokenizer.from_buffer(data)
        # The file keeps the limits of whoever saved it, a training script's 512 tokens: they would
        # cut or pad every prompt without a word. transformers sets them aside at each call too.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

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

        Raises:
            BadInput: The text holds half of a surrogate pair.
            BadModel: The tokenizer cannot read it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"character {error.start} is half of a surrogate pair, which no text in UTF-8 has",
                where="prompt",
                remedy="send valid Unicode",
            ) from None
        with self._use("it cannot cut the text into tokens"):
            # Of a batch, since `encode` keeps every other thread waiting until it is done.
            (cut,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
            return np.asarray(cut.ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special tokens."""
        with self._use("it cannot turn tokens into text"):
            ids = [int(token) for token in tokens]
            if len(ids) > _MANY:  # `decode` keeps every other thread waiting until it is done
                return str(self._tokenizer.decode_batch([ids])[0])
            return str(self._tokenizer.decode(ids))

    def piece(self, token: int) -> str:
        """The text of one token by itself, special tokens by their names."""
        return str(self._tokenizer.decode([int(token)], skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added ones too."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def token(self, text: str) -> int | None:
        """The token of this very text, special or not; None = there is none."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def source(self) -> str:
        """The tokenizer as tokenizer.json has it."""
        return str(self._tokenizer.to_str())

    def _use(self, what: str) -> AbstractContextManager[None]:
        """Its rules are the model's: one that backtracks without end is ended by the library."""
        return boundary(self._where, what=what, remedy="restore the model's own tokenizer")


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
