"""Adapters that come and go: vLLM's endpoints, on a port and with a token of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from genai_core.container.adapters import AdapterEntry
from genai_core.errors import BadInput, GenAIError
from genai_core.kinds.lora import BASE, AdapterName
from genai_serving.adapters.served import ServedAdapters
from genai_serving.adapters.sources import AdapterSources, FollowedRevision, Found
from genai_serving.api.bodies import Bodies, read_body
from genai_serving.api.body import Body
from genai_serving.api.errors import not_found
from genai_serving.engine import Engine

__all__ = ["AdapterAdmin", "LoadBody", "UnloadBody", "load_lora_adapter", "unload_lora_adapter"]


_MOST_REASON = 500


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
        self._base = {BASE, base}
        self._one = asyncio.Lock()

    @property
    def served(self) -> dict[str, AdapterEntry]:
        """What clients may name now."""
        return self._served.entries

    @property
    def revision(self) -> str:
        """Whose adapters and use cases are served."""
        return self._sources.followed.revision

    async def revision_of(self, record: str, revision: str) -> FollowedRevision:
        """A revision of the base that is served, fetched where it is not at hand.

        Raises:
            GenAIError: As `AdapterSources.revision`.
        """
        return await asyncio.to_thread(self._sources.revision, record, revision)

    @property
    def own(self) -> FollowedRevision:
        """What the server was started with."""
        return self._sources.own

    async def switch(self, to: FollowedRevision, wanted: Mapping[str, str]) -> dict[str, str]:
        """Serve a revision's use cases, and these adapters alone; why some of them are not.

        All contents change at one moment: no request meets some of one revision and some of
        another, or misses a use case between two. One that cannot be had harms no other; where an
        adapter of that name is served already, that goes on.

        Args:
            to: The revision.
            wanted: Name -> as `LoadBody.lora_path`, in that revision.
        """
        failed: dict[str, str] = {}
        async with self._one:
            self._settle(to, wanted, await self._staged(to, wanted, failed))
            if failed:  # what went may have left the room that was lacking
                rest = {name: wanted[name] for name in failed}
                failed.clear()
                self._settle(to, wanted, await self._staged(to, rest, failed))
        return failed

    async def _staged(
        self, to: FollowedRevision, wanted: Mapping[str, str], failed: dict[str, str]
    ) -> dict[str, tuple[str, AdapterEntry]]:
        """Those whose content is not served yet under their name, read and ready to be worn."""
        found = {}
        for name, path in wanted.items():
            try:
                if name in self._base or name in to.index.use_cases:
                    raise BadInput(f"{name} is the base or a use case", where="lora_name")
                source = await asyncio.to_thread(self._sources.find, path, of=to)
                there = self._served.entries.get(name)
                if there is None or there.sha256 != source.entry.sha256:
                    found[name] = (await self._read(name, source), source.entry)
            except (GenAIError, OSError) as error:
                failed[name] = " ".join(str(error).split())[:_MOST_REASON]
        return found

    def _settle(
        self,
        to: FollowedRevision,
        wanted: Mapping[str, str],
        contents: Mapping[str, tuple[str, AdapterEntry]],
    ) -> None:
        self._sources.followed = to
        self._served.follow(to.revision, to.index)
        retired = [self._served.put(name, *content) for name, content in contents.items()]
        gone = [name for name in self._served.entries if name not in wanted]
        for internal in (*retired, *map(self._served.take_out, gone)):
            if internal is not None:
                self._engine.retire_adapter(internal)

    async def _read(self, name: str, found: Found) -> str:
        """Have the engine take it in; the name by which it is worn."""
        source = await asyncio.to_thread(found.source)
        internal = self._served.next_name(name)
        await asyncio.wrap_future(self._engine.load_adapter(internal, source))
        return internal

    async def load(self, body: LoadBody) -> None:
        """Read it and compare its digest; the first request that wears it has it laid in.

        Raises:
            NoRoom: A pass would never hold it, or memory; before it is read.
            BadInput: The name is taken, there is no such adapter, or it does not fit the model.
            CorruptBlob: The file has other bytes than its index says.
        """
        name = body.lora_name
        async with self._one:
            if name in self._base or name in self._served.own.use_cases:
                raise BadInput(f"{name} is the base or a use case", where="lora_name")
            if name in self._served.entries and not body.load_inplace:
                raise BadInput(
                    f"an adapter {name} is loaded already",
                    where="lora_name",
                    remedy="unload it, or set load_inplace",
                )
            found = await asyncio.to_thread(self._sources.find, body.lora_path)
            internal = await self._read(name, found)
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
