"""HTTP for the page: on 127.0.0.1, for who has the address that the terminal printed, GET alone.

The page shows what the kubeconfig's user may see, so other users of the machine and pages of other
sites must not get at it: a secret in the address opens a session, kept in a cookie that other sites
cannot send, and requests by any other name of this host are refused (DNS rebinding).
"""

from __future__ import annotations

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from genai_cli.dashboard.build_page import build_page
from genai_cli.dashboard.markup import Html, element, raw_page
from genai_cli.dashboard.overview import header, overview
from genai_cli.dashboard.snapshot import Snapshot
from genai_core.errors import GenAIError

__all__ = ["DashboardServer", "SnapshotSource"]

_FILES = {"/dashboard.css": "text/css", "/dashboard.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_LONGEST = 4096
"""Of a path with its query, in characters."""


class SnapshotSource(Protocol):
    """Where pages come from."""

    def get(self, namespace: str) -> Snapshot:
        """A namespace now; empty means all of them."""


class DashboardServer(ThreadingHTTPServer):
    """The server; `serve_forever` runs it.

    Attributes:
        address: What to open, with the session's secret.
    """

    daemon_threads = True

    def __init__(self, snapshots: SnapshotSource, *, namespace: str, port: int) -> None:
        """Listen on 127.0.0.1.

        Args:
            snapshots: What pages show.
            namespace: Of the first page; empty means all of them.
            port: 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        self.snapshots = snapshots
        self.namespace = namespace
        self.secret = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Handler)
        self.cookie = f"genai-dashboard-{self.server_port}"
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.address = f"http://127.0.0.1:{self.server_port}/?session={self.secret}"


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    timeout = 30
    server_version = "genai"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if self.headers.get("Host", "") not in self.server.hosts:
            self._send(403, "this host is 127.0.0.1 or localhost, by no other name")
        elif len(self.path) > _LONGEST:
            self._send(414, "the address is too long")
        elif given := query.get("session", [""])[-1]:
            self._open(given, url.path)
        elif not self._known(self._cookie()):
            self._send(403, "open the address that `genai dashboard` printed in your terminal")
        elif url.path in _FILES:
            text = resources.files("genai_cli.dashboard").joinpath(url.path[1:]).read_text("utf-8")
            self._send(200, text, kind=_FILES[url.path])
        else:
            self._page(url.path, query)

    def _open(self, given: str, path: str) -> None:
        """Change the secret in the address for a cookie, so that it is in no history."""
        if not self._known(given):
            self._send(403, "this session is over: open the address that your terminal shows")
            return
        cookie = f"{self.server.cookie}={self.server.secret}; HttpOnly; SameSite=Strict; Path=/"
        self._send(303, "", extra={"Set-Cookie": cookie, "Location": f"/{path.lstrip('/')}"})

    def _known(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.server.secret.encode())

    def _cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _page(self, path: str, query: dict[str, list[str]]) -> None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        try:
            if path == "/":
                shot = self.server.snapshots.get(
                    query.get("namespace", [self.server.namespace])[-1]
                )
                title, found = f"genai: {shot.namespace or 'all namespaces'}", overview(shot)
            elif len(parts) == 3 and parts[0] == "build" and parts[1]:
                shot = self.server.snapshots.get(parts[1])
                title = f"genai: {parts[2]}"
                found = build_page(shot, parts[2]) or Html(
                    header(shot) + element("p", f"there is no build {parts[2]}", class_="notice")
                )
            else:
                self._send(404, "there is no such page")
                return
        except GenAIError as error:
            self._send(502, str(error))
            return
        if self.headers.get("X-Part") == "main":
            self._send(200, found, kind="text/html")
        else:
            self._send(200, raw_page(title, found), kind="text/html")

    def _send(
        self,
        status: int,
        text: str,
        *,
        kind: str = "text/plain",
        extra: dict[str, str] | None = None,
    ) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            **(extra or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silent: the terminal shows the address alone."""
