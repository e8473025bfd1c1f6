"""All adapters at once, as a manager of the server declares them: the admin port's `/v1/adapters`.

A declaration is a whole: what it does not name goes. Declared again it changes nothing, so a
manager repeats it whenever it likes, and reads from the answer what is in memory.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from genai_core.errors import BadInput, GenAIError
from genai_core.files.json_budgets import ADAPTERS
from genai_core.kinds.deployment import AdapterState
from genai_core.kinds.lora import AdapterName
from genai_serving.api.admin import AdapterAdmin, LoadBody, UnloadBody
from genai_serving.api.bodies import read_body
from genai_serving.api.body import Body
from genai_serving.api.errors import RequestRefused

__all__ = ["DeclareBody", "declare", "declare_adapters", "list_adapters", "read_declaration"]

_MOST_REASON = 500


class DeclaredAdapter(Body):
    """One of a declaration."""

    lora_name: AdapterName
    """What requests call it."""
    lora_path: Annotated[str, Field(min_length=1, max_length=128)]
    """As in `/v1/load_lora_adapter`."""


class DeclareBody(Body):
    """`PUT /v1/adapters`."""

    adapters: Annotated[list[DeclaredAdapter], Field(max_length=64)]
    """All that are to be served."""


async def declare(admin: AdapterAdmin, body: DeclareBody) -> list[dict[str, Any]]:
    """Make the declared adapters those that are served; how each stands then.

    One that cannot be had harms no other; where one of that name is served already, that goes on.
    """
    wanted = {one.lora_name: one.lora_path for one in body.adapters}
    async with admin.declaring:
        for name in admin.served.keys() - wanted.keys():
            with suppress(RequestRefused):  # somebody unloaded it this moment
                await admin.unload(UnloadBody(lora_name=name))
        failed: dict[str, str] = {}
        for name, path in wanted.items():
            try:
                await admin.ensure(LoadBody(lora_name=name, lora_path=path, load_inplace=True))
            except (GenAIError, OSError) as error:
                failed[name] = " ".join(str(error).split())[:_MOST_REASON]
        return _states(admin, failed)


def _states(admin: AdapterAdmin, failed: dict[str, str]) -> list[dict[str, Any]]:
    """What is served, and what could not be."""
    served = admin.served
    found = [
        {"name": name, "digest": f"sha256:{entry.sha256}", "state": AdapterState.LOADED}
        for name, entry in served.items()
        if name not in failed
    ]
    for name, reason in failed.items():
        entry = {"name": name, "state": AdapterState.FAILED, "reason": reason}
        if name in served:  # an earlier content of that name answers still
            entry["digest"] = f"sha256:{served[name].sha256}"
        found.append(entry)
    return found


async def declare_adapters(request: HttpRequest, admin: AdapterAdmin) -> Response:
    """Take a declaration in; the answer is as of `list_adapters`."""
    body = await read_body(request, admin.bodies, DeclareBody)
    return JSONResponse({"adapters": await declare(admin, body)})


async def list_adapters(_request: HttpRequest, admin: AdapterAdmin) -> Response:
    """Name, digest and state of each adapter that is served."""
    return JSONResponse({"adapters": _states(admin, {})})


def read_declaration(file: Path) -> DeclareBody | None:
    """A declaration that lay ready when the server started; None where there is no such file.

    Raises:
        BadInput: It is none.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return DeclareBody.model_validate(ADAPTERS.read(data))
    except (ValueError, ValidationError) as error:
        raise BadInput(f"is no declaration of adapters: {error}", where=str(file)) from error
