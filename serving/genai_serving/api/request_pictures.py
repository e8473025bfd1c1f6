"""Pictures of requests: data: URLs -> what the container's encoder makes of them.

The encoder is run outside the event loop, for one request at a time: a picture of 40 megapixels
takes 120 MB while it is decoded. What it made of a picture is kept, since a conversation is sent
again with every turn.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from genai_core.container.vision_info import VisionInfo
from genai_core.errors import BadInput, BadModel
from genai_runtime.vision.encoder import VisionEncoder
from genai_runtime.vision.looking import look
from genai_runtime.vision.places import Seen
from genai_serving.api.errors import RETRY_SECONDS, RequestRefused
from genai_serving.api.messages import ChatMessage

__all__ = ["MOST_PICTURES", "RequestPictures"]

MOST_PICTURES = 16
"""Of a request."""
_MOST_WAITING = 32
_KEPT_BYTES = 64 << 20
"""Of embeddings: 7 pictures of 576 places and 4096 features."""
_CODE = "invalid_image"
_FORM = "send data:image/png;base64,... (or jpeg, webp, gif, bmp)"


class RequestPictures:
    """See the module's docstring. Of one event loop.

    Args:
        encoder: The container's.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        self._encoder = encoder
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0
        self._kept: OrderedDict[str, Seen] = OrderedDict()

    @property
    def info(self) -> VisionInfo:
        """How prompts and pictures go together."""
        return self._encoder.info

    async def seen(self, messages: Sequence[ChatMessage]) -> list[Seen]:
        """What the encoder makes of all pictures of a conversation, in order.

        Raises:
            RequestRefused: 400: there are too many, or one cannot be read; 429: others wait.
        """
        urls = [
            (f"messages.{number}.content.{part}.image_url", url)
            for number, message in enumerate(messages)
            for part, url in message.images
        ]
        if len(urls) > MOST_PICTURES:
            raise RequestRefused(
                400,
                f"it has {len(urls)} pictures, at most {MOST_PICTURES} are read",
                "messages",
                _CODE,
            )
        if not urls:
            return []
        if self._waiting >= _MOST_WAITING:
            raise RequestRefused(
                429,
                "too many requests with pictures wait",
                "messages",
                "queue_full",
                {"Retry-After": str(RETRY_SECONDS)},
            )
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(lambda: [self._one(*url) for url in urls])
        finally:
            self._waiting -= 1

    def _one(self, where: str, url: str) -> Seen:
        data = _data(url, where)
        key = hashlib.sha256(data).hexdigest()
        seen = self._kept.pop(key, None)
        if seen is None:
            try:
                seen = look(self._encoder, data, where=where)
            except BadModel:
                raise
            except BadInput as error:
                told = f"{error.message}; {error.remedy}" if error.remedy else error.message
                raise RequestRefused(400, told, where, _CODE) from None
        self._kept[key] = seen
        while sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return seen


def _data(url: str, where: str) -> bytes:
    """The bytes of a data: URL (RFC 2397) with base64."""
    head, comma, body = url.partition(",")
    scheme, _, kind = head.partition(":")
    if scheme.lower() != "data":
        raise RequestRefused(400, f"pictures are not fetched by this server; {_FORM}", where, _CODE)
    words = kind.lower().split(";")
    if not comma or words[-1] != "base64" or not words[0].startswith("image/"):
        raise RequestRefused(400, f"it is no picture in base64; {_FORM}", where, _CODE)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestRefused(400, "its base64 is broken; send it whole", where, _CODE) from None
