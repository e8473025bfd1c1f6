"""`--image`: the pictures that a prompt is asked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genai_core.container.vision_info import VisionInfo
from genai_core.errors import BadInput
from genai_core.files.foreign import boundary
from genai_core.files.regular import read_regular
from genai_runtime.container.backend import open_encoder
from genai_runtime.container.container import Container
from genai_runtime.executor.rows import Tokens
from genai_runtime.tokenizer import TextTokenizer
from genai_runtime.vision.looking import look
from genai_runtime.vision.places import (
    PicturedPrompt,
    Seen,
    marked_text,
    marked_tokens,
    with_pictures,
)

__all__ = ["Images", "looked_at"]

_WHERE = "--image"
_LARGEST_FILE = 256 << 20


@dataclass(frozen=True)
class Images:
    """Pictures as the model reads them.

    Attributes:
        info: Of the container's encoder.
        embeddings: [tokens, hidden size] of each.
    """

    info: VisionInfo
    embeddings: tuple[Seen, ...]

    def introduced(self, text: str, *, listed: bool) -> str | list[dict[str, str]]:
        """A message with the pictures' places before its text, unless it names them itself.

        Args:
            text: Of the message.
            listed: The template takes parts, and writes the places itself.
        """
        if self.info.image_token in text:
            return text
        if listed:
            return [*[{"type": "image"}] * len(self.embeddings), {"type": "text", "text": text}]
        return "\n".join([*[self.info.image_token] * len(self.embeddings), text])

    def within(self, text: str, tokenizer: TextTokenizer, *, special: bool) -> PicturedPrompt:
        """A text with the pictures in their places.

        Raises:
            BadInput: It has more or fewer places.
        """
        marked = marked_text(text, tokenizer, self.info, special=special)
        return with_pictures(marked, self.embeddings, self.info, where=_WHERE)

    def among(self, tokens: Tokens) -> PicturedPrompt:
        """Token ids with the pictures in their places; as `within`."""
        marked = marked_tokens(tokens, self.info)
        return with_pictures(marked, self.embeddings, self.info, where=_WHERE)


def looked_at(opened: Container, files: Sequence[Path], *, threads: int) -> Images | None:
    """Read pictures and let the container's encoder look at them; None without any.

    Raises:
        BadInput: The container reads no pictures, or a file is none that can be read.
    """
    if not files:
        return None
    encoder = open_encoder(opened, threads=threads)
    found = []
    for path in files:
        with boundary(str(path), kind=BadInput, remedy="name a picture's file"):
            data = read_regular(path, _LARGEST_FILE)
        found.append(look(encoder, data, where=str(path)))
    return Images(encoder.info, tuple(found))
