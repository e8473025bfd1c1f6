"""All adapters at once, as a manager of the server declares them: the admin port's `/v1/adapters`.

A declaration is a whole: what it does not name goes. Declared again it changes nothing, so a
manager repeats it whenever it likes, and reads from the answer what is in memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from genai_core.canonical import digest_bytes
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_core.files.json_budgets import ADAPTERS
from genai_core.kinds.deployment_status import AdapterState
from genai_core.kinds.lora import AdapterName
from genai_serving.api.admin_port.admin import AdapterAdmin
from genai_serving.api.bodies import read_body
from genai_serving.api.body import Body

__all__ = [
    "Declarations",
    "DeclareBody",
    "DeclaredStanding",
    "declare",
    "declare_adapters",
    "list_adapters",
]

_MOST_REASON = 500


class DeclaredAdapter(Body):
    """One of a declaration."""

    lora_name: AdapterName
    """What requests call it."""
    lora_path: Annotated[str, Field(min_length=1, max_length=128)]
    """As in `/v1/load_lora_adapter`."""


class DeclaredContainer(Body):
    """Whose adapters a declaration names: a revision of the base that is served."""

    record: Annotated[str, Field(pattern="^package/[0-9a-f]{64}$")]
    """Of its container, in the store."""
    revision: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    """That it must be; everything that is read of it is compared with what this vouches for."""


class DeclareBody(Body):
    """`PUT /v1/adapters`."""

    adapters: Annotated[list[DeclaredAdapter], Field(max_length=64)]
    """All that are to be served."""
    container: DeclaredContainer | None = None
    """Left out: the one that the server was started with."""


@dataclass(frozen=True)
class DeclaredStanding:
    """What came of a declaration.

    Attributes:
        revision: Whose adapters and use cases are served.
        adapters: Name, digest, state and reason of each.
        problem: Why the declared container cannot be had now; empty: it was.
    """

    revision: str
    adapters: list[dict[str, Any]]
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """The answer's members."""
        found: dict[str, Any] = {"adapters": self.adapters, "revision": self.revision}
        return found | ({"problem": self.problem} if self.problem else {})


async def declare(admin: AdapterAdmin, body: DeclareBody) -> DeclaredStanding:
    """Make the declared adapters those that are served; how each stands then.

    One that cannot be had harms no other; where one of that name is served already, that goes on.
    A container that cannot be had leaves everything as it is.
    """
    wanted = {one.lora_name: one.lora_path for one in body.adapters}
    async with admin.declaring:
        problem = ""
        try:
            told = body.container
            to = admin.own if told is None else await admin.revision_of(told.record, told.revision)
            failed = await admin.switch(to, wanted)
        except (BadInput, CorruptBlob) as error:
            failed = dict.fromkeys(wanted, _words(error))
        except (GenAIError, OSError) as error:
            failed, problem = {}, _words(error)
        return DeclaredStanding(admin.revision, _states(admin, failed), problem)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:_MOST_REASON]


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


async def declare_adapters(
    request: HttpRequest, admin: AdapterAdmin, declarations: Declarations | None = None
) -> Response:
    """Take a declaration in; the answer is as of `list_adapters`."""
    body = await read_body(request, admin.bodies, DeclareBody)
    standing = await declare(admin, body)
    if declarations is not None and not standing.problem:
        await asyncio.to_thread(declarations.keep, body)
    return JSONResponse(standing.as_json())


async def list_adapters(_request: HttpRequest, admin: AdapterAdmin) -> Response:
    """Name, digest and state of each adapter that is served, and of which revision they are."""
    return JSONResponse(DeclaredStanding(admin.revision, _states(admin, {})).as_json())


class Declarations:
    """What is to be served from the first request on: a file, or what was declared since.

    The file is a ConfigMap's and reaches a running pod within a minute or two. So a declaration
    that a manager has sent is kept, with what the file was then; it counts until that changes.

    Args:
        file: That lies ready when the server starts; need not exist.
        kept: Where what was declared is kept.
    """

    def __init__(self, file: Path, kept: Path) -> None:
        self._file = file
        self._kept = kept

    def read(self) -> DeclareBody | None:
        """The declaration; None where there is none.

        Raises:
            BadInput: The file is none.
        """
        data = self._lies_ready()
        try:
            kept = _Kept.model_validate(ADAPTERS.read(self._kept.read_bytes()))
        except (OSError, ValueError):
            kept = None
        if kept is not None and kept.beside == digest_bytes(data):
            return kept.declared
        if not data:
            return None
        try:
            return DeclareBody.model_validate(ADAPTERS.read(data))
        except ValueError as error:
            raise BadInput(
                f"is no declaration of adapters: {error}", where=str(self._file)
            ) from error

    def keep(self, body: DeclareBody) -> None:
        """A manager has declared this. In a thread."""
        kept = _Kept(declared=body, beside=digest_bytes(self._lies_ready()))
        draft = self._kept.with_suffix(".new")
        draft.write_text(kept.model_dump_json(), encoding="utf-8")
        draft.replace(self._kept)

    def _lies_ready(self) -> bytes:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return b""


class _Kept(Body):
    declared: DeclareBody
    beside: str
    """SHA-256 of the file that lay ready then."""
