"""Adapters that come and go: vLLM's endpoints, on a port and with a token of their own."""

from __future__ import annotations

import asyncio
from typing import Annotated

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from genai_core.container.adapters import AdapterEntry
from genai_core.errors import BadInput
from genai_core.kinds.lora import BASE, AdapterName
from genai_serving.adapters.served import ServedAdapters
from genai_serving.adapters.sources import AdapterSources
from genai_serving.api.bodies import Bodies, read_body
from genai_serving.api.body import Body
from genai_serving.api.errors import not_found
from genai_serving.engine import Engine

__all__ = ["AdapterAdmin", "LoadBody", "UnloadBody", "load_lora_adapter", "unload_lora_adapter"]


class LoadBody(Body):
    """`/v1/load_lora_adapter`."""

    lora_name: AdapterName
    """What requests will call it."""
    lora_path: Annotated[str, Field(min_length=1, max_length=128)]
    """An adapter of the container, or `sha256:` and the digest of one of another container of the
    same base below the server's --adapter-folder; never a path."""
    load_inplace: bool = False
    """Replace the adapter of this name; requests that run finish with the old one."""


class UnloadBody(Body):
    """`/v1/unload_lora_adapter`."""

    lora_name: Annotated[str, Field(min_length=1, max_length=128)]


class AdapterAdmin:
    """Loads and unloads, one after another.

    Args:
        engine: Wears them.
        served: What clients may name.
        sources: Where they come from.
        base: What clients call the model without adapters.
    """

    def __init__(
        self, engine: Engine, served: ServedAdapters, sources: AdapterSources, base: str
    ) -> None:
        self.bodies = Bodies()
        self.declaring = asyncio.Lock()
        """Held by one declaration at a time."""
        self._engine = engine
        self._served = served
        self._sources = sources
        self._taken = {BASE, base, *served.own.use_cases}
        self._one = asyncio.Lock()

    @property
    def served(self) -> dict[str, AdapterEntry]:
        """What clients may name now."""
        return self._served.entries

    async def ensure(self, body: LoadBody) -> None:
        """`load`, unless this very content is served under this name.

        Raises:
            BadInput: As `load`.
            CorruptBlob: Likewise.
        """
        found = await asyncio.to_thread(self._sources.find, body.lora_path)
        there = self._served.entries.get(body.lora_name)
        if there is None or there.sha256 != found.entry.sha256:
            await self.load(body)

    async def load(self, body: LoadBody) -> None:
        """Read it and compare its digest; the first request that wears it has it laid in.

        Raises:
            NoRoom: A pass would never hold it, or memory; before it is read.
            BadInput: The name is taken, there is no such adapter, or it does not fit the model.
            CorruptBlob: The file has other bytes than its index says.
        """
        name = body.lora_name
        async with self._one:
            if name in self._taken:
                raise BadInput(f"{name} is the base or a use case", where="lora_name")
            if name in self._served.entries and not body.load_inplace:
                raise BadInput(
                    f"an adapter {name} is loaded already",
                    where="lora_name",
                    remedy="unload it, or set load_inplace",
                )
            found = await asyncio.to_thread(self._sources.find, body.lora_path)
            source = await asyncio.to_thread(found.source)
            internal = self._served.next_name(name)
            await asyncio.wrap_future(self._engine.load_adapter(internal, source))
            replaced = self._served.put(name, internal, found.entry)
            if replaced is not None:
                self._engine.retire_adapter(replaced)

    async def unload(self, body: UnloadBody) -> None:
        """No new request finds it; it goes when no running one wears it.

        Raises:
            ApiError: 404: no adapter has this name.
        """
        async with self._one:
            internal = self._served.take_out(body.lora_name)
            if internal is None:
                raise not_found(body.lora_name, ", ".join(self._served.entries) or "no adapters")
            self._engine.retire_adapter(internal)


async def load_lora_adapter(request: HttpRequest, admin: AdapterAdmin) -> Response:
    """In vLLM's words."""
    body = await read_body(request, admin.bodies, LoadBody)
    await admin.load(body)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_lora_adapter(request: HttpRequest, admin: AdapterAdmin) -> Response:
    """In vLLM's words."""
    body = await read_body(request, admin.bodies, UnloadBody)
    await admin.unload(body)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
