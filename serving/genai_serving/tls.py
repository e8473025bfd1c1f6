"""TLS with a certificate that may be another tomorrow: a folder with `tls.crt` and `tls.key`.

A Secret of type kubernetes.io/tls is mounted as such a folder, and the kubelet replaces the files
while the server runs. Connections that are made from then on get the new certificate; those that
stand keep the old one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genai_core.canonical import digest_bytes
from genai_core.errors import BadInput

__all__ = ["Certificate", "bound_handshakes"]

_FILES = ("tls.crt", "tls.key")
_SECONDS = 2.0
_HANDSHAKE_SECONDS = 10.0


class Certificate:
    """See the module's docstring.

    Args:
        folder: With both files, PEM: the certificate and those between it and its root; the key.

    Raises:
        BadInput: They are not there, or no pair.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.context = self._loaded()
        self.context.set_alpn_protocols(["http/1.1"])
        self._known = self._digest()

    def renew(self) -> bool:
        """Take over what the folder holds now; whether it was another.

        Raises:
            BadInput: What it holds is no pair; the one before goes on.
        """
        now = self._digest()
        if now == self._known:
            return False
        self._loaded()  # apart: half a pair must not touch the context that answers
        self.context.load_cert_chain(*self._paths(), password="")
        self._known = now
        return True

    async def follow(self, say: Callable[[str], None], seconds: float = _SECONDS) -> None:
        """Renew it for ever; each certificate that cannot be used is told once."""
        told = ""
        while True:
            await asyncio.sleep(seconds)
            try:
                if await asyncio.to_thread(self.renew):
                    say("the certificate was renewed")
                    told = ""
            except (BadInput, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    say(f"the certificate stays as it was: {told}")

    def _paths(self) -> tuple[Path, Path]:
        return self._folder / _FILES[0], self._folder / _FILES[1]

    def _digest(self) -> str:
        return digest_bytes(b"\0".join(path.read_bytes() for path in self._paths()))

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without a password: OpenSSL would ask a terminal for the one of an encrypted key.
            context.load_cert_chain(*self._paths(), password="")
        except (OSError, ssl.SSLError) as error:
            raise BadInput(
                f"no certificate with its key: {error}",
                where=f"{self._folder}/{_FILES[0]}, {_FILES[1]}",
                remedy="both PEM, the key without a password",
            ) from error
        return context


def bound_handshakes(loop: asyncio.AbstractEventLoop, seconds: float = _HANDSHAKE_SECONDS) -> None:
    """Servers of a loop close a connection whose handshake takes longer.

    uvicorn leaves asyncio's minute, in which whoever opens connections and sends nothing holds a
    file each.
    """
    create: Any = loop.create_server

    async def create_server(*given: Any, **options: Any) -> Any:
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", seconds)
        return await create(*given, **options)

    setattr(loop, "create_server", create_server)  # noqa: B010 - mypy lets nobody assign a method
