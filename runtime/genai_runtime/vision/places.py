"""Where pictures stand in a prompt: a token for each becomes as many as it has embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from genai_core.container.vision_info import VisionInfo
from genai_core.errors import BadInput
from genai_runtime.executor.rows import Embeddings, Tokens
from genai_runtime.prefixes.cache import Pictures
from genai_runtime.tokenizer import TextTokenizer

__all__ = [
    "NOTHING",
    "MarkedTokens",
    "PicturedPrompt",
    "Seen",
    "marked_text",
    "marked_tokens",
    "with_pictures",
]


Seen: TypeAlias = NDArray[np.float32]
"""What an encoder makes of a picture: embeddings [tokens, hidden size]."""


@dataclass(frozen=True)
class MarkedTokens:
    """A prompt's tokens with one for each picture.

    Attributes:
        tokens: [T].
        marks: Where in them pictures belong, ascending.
    """

    tokens: NDArray[np.int64]
    marks: tuple[int, ...]


@dataclass(frozen=True)
class PicturedPrompt:
    """A prompt as the model reads it.

    Attributes:
        tokens: [T], the picture's token in each place of a picture.
        embeddings: What stands in these places; None without pictures.
        pictures: Of each picture its first place and the digest of its embeddings: with the tokens
            all that the model's numbers depend on.
    """

    tokens: NDArray[np.int64]
    embeddings: Embeddings | None = None
    pictures: Pictures = ()

    def followed_by(self, tokens: Sequence[int], *, most: int) -> PicturedPrompt:
        """What a cache holds behind an answer: at most so many tokens of both."""
        whole = np.concatenate([self.tokens, np.asarray(tokens, np.int64)])
        return PicturedPrompt(whole[:most], None, self.pictures)


NOTHING = PicturedPrompt(np.zeros(0, np.int64))
"""Read yet."""


def marked_text(
    text: str, tokenizer: TextTokenizer, info: VisionInfo, *, special: bool = True
) -> MarkedTokens:
    """Token ids of a text in which `info.image_token` stands for pictures.

    Args:
        text: The prompt.
        tokenizer: The model's.
        info: Of the encoder.
        special: See `TextTokenizer.encode`; at the beginning of the text alone.
    """
    if info.in_vocabulary:
        return marked_tokens(tokenizer.encode(text, special=special), info)
    pieces = [
        tokenizer.encode(piece, special=special and not number) if piece or not number else None
        for number, piece in enumerate(text.split(info.image_token))
    ]
    tokens: list[NDArray[np.int64]] = []
    marks: list[int] = []
    for number, piece in enumerate(pieces):
        if number:
            marks.append(sum(part.size for part in tokens))
            tokens.append(np.array([info.image_token_id], np.int64))
        if piece is not None:
            tokens.append(piece)
    return MarkedTokens(np.concatenate(tokens), tuple(marks))


def marked_tokens(tokens: Tokens, info: VisionInfo) -> MarkedTokens:
    """Token ids in which `info.image_token_id` stands for pictures."""
    array = np.asarray(tokens, np.int64)
    return MarkedTokens(array, tuple(np.flatnonzero(array == info.image_token_id).tolist()))


def with_pictures(
    prompt: MarkedTokens, encoded: Sequence[Seen], info: VisionInfo, *, where: str
) -> PicturedPrompt:
    """Put pictures into their places, in order.

    Args:
        prompt: Has one token for each.
        encoded: Embeddings [tokens, hidden size] of each.
        info: Of the encoder.
        where: What an error names.

    Raises:
        BadInput: There are more or fewer pictures than tokens for them.
    """
    if len(encoded) != len(prompt.marks):
        raise BadInput(
            f"{len(encoded)} {'picture' if len(encoded) == 1 else 'pictures'} for "
            f"{len(prompt.marks)} {info.image_token} in the prompt",
            where=where,
            remedy=f"write {info.image_token} once where each picture belongs",
        )
    if not encoded:
        return PicturedPrompt(prompt.tokens)
    tokens: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    pictures: list[tuple[int, str]] = []
    done = length = 0
    for mark, values in zip(prompt.marks, encoded, strict=True):
        tokens.append(prompt.tokens[done:mark])
        length += mark - done
        tokens.append(np.full(len(values), info.image_token_id, np.int64))
        places.append(np.arange(length, length + len(values)))
        digest = hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()
        pictures.append((length, digest))
        length, done = length + len(values), mark + 1
    tokens.append(prompt.tokens[done:])
    embeddings = Embeddings(np.concatenate(places), np.concatenate(list(encoded)))
    return PicturedPrompt(np.concatenate(tokens), embeddings, tuple(pictures))
