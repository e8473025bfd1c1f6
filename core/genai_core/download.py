"""One file over https, with nothing but Python's own library.

Redirects are followed by hand: each must lead to https again, to a host that is allowed, and to an
address that is not refused; credentials go to the first host only. What arrives is hashed on the
way and bounded in size.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import string
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from genai_core.addresses import AddressRefused, check_peer, why_refused
from genai_core.errors import BadModel, InvalidSpec, NoSpace, SourceNotFound, StoreUnavailable
from genai_core.names import Digest
from genai_core.store.files import explain

__all__ = ["Downloaded", "Rules", "download"]

_BUFFER_BYTES = 1 << 20
_SECONDS = 60.0
_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REDIRECTS = 5
_ATTEMPTS = 4
_PASSING = {408, 425, 429}
_OUTSIDE = "name an address outside the cluster"


@dataclass(frozen=True)
class Rules:
    """Where a download may go.

    Attributes:
        hosts: Patterns of hosts; `*` = any.
        checks_addresses: Refuse the machine itself, link-local and metadata addresses: whoever
            wrote the URL is not whoever runs this process.
        most_bytes: Of the file.
    """

    hosts: Sequence[str] = ("*",)
    checks_addresses: bool = True
    most_bytes: int = 512 << 30


@dataclass(frozen=True)
class Downloaded:
    """What came.

    Attributes:
        tag: The server's ETag, or when it was modified; empty where it says neither.
    """

    sha256: Digest
    size: int
    tag: str


class _Stay(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to `download`."""

    def http_error_302(self, *_: Any, **__: Any) -> None:
        """Follow none, and do not even read where it leads."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Checked(ssl.SSLContext):
    """Hangs up before the handshake where a connection led to a refused address."""

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Look where it leads, then go on."""
        check_peer(sock, lambda address, _port: why_refused(address))
        return super().wrap_socket(sock, *arguments, **options)


def _context(rules: Rules, authorities_beside: str) -> ssl.SSLContext:
    kind = _Checked if rules.checks_addresses else ssl.SSLContext
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    authorities = os.environ.get("SSL_CERT_FILE")
    with _certificates(f"SSL_CERT_FILE={authorities}"):
        if authorities:
            context.load_verify_locations(authorities)
        else:
            context.load_default_certs()
    if authorities_beside:
        with _certificates("the store's caBundle"):
            context.load_verify_locations(cadata=authorities_beside)
    return context


@contextmanager
def _certificates(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise InvalidSpec(
            f"it holds no certificates: {error.strerror or error}",
            where=where,
            remedy="name a file of PEM certificates",
        ) from error


def download(
    url: str,
    dest: Path,
    *,
    rules: Rules,
    token: str | None = None,
    tag: str = "",
    authorities: str = "",
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded | None:
    """Fetch a file; tried again where that may help.

    Args:
        url: `https://...`
        dest: Written anew.
        rules: Where it may go.
        token: Sent to the first host as `Authorization: Bearer`.
        tag: Of what the caller has: nothing is fetched where the server's is the same.
        authorities: Certificates (PEM) that count beside the usual ones.
        sleep: Waits between attempts.

    Returns:
        None where `tag` is still the server's.

    Raises:
        BadModel: There is no such file, or the server refuses it.
        InvalidSpec: It leads where it must not.
        StoreUnavailable: The server does not answer.
        NoSpace: There is no room for it.
    """
    tls = urllib.request.HTTPSHandler(context=_context(rules, authorities))
    opener = urllib.request.build_opener(_Stay, tls)
    for attempt in range(_ATTEMPTS):
        try:
            return _fetch(opener, url, dest, rules=rules, token=token, tag=tag)
        except StoreUnavailable:
            if attempt + 1 == _ATTEMPTS:
                raise
            sleep(2.0**attempt)
    raise AssertionError("not reached")


def _fetch(
    opener: urllib.request.OpenerDirector,
    url: str,
    dest: Path,
    *,
    rules: Rules,
    token: str | None,
    tag: str,
) -> Downloaded | None:
    headers = {"User-Agent": "genai-operator"}
    if tag:
        headers["If-Modified-Since" if tag.startswith("at ") else "If-None-Match"] = (
            tag.removeprefix("at ")
        )
    here = url
    for _ in range(_MOST_REDIRECTS + 1):
        check_host(here, url, rules)
        sent = dict(headers)
        if token and urlsplit(here).netloc == urlsplit(url).netloc:
            sent["Authorization"] = f"Bearer {token}"
        try:
            with opener.open(_request(here, sent), timeout=_SECONDS) as answer:
                return _save(answer, dest, url=url, rules=rules)
        except HTTPError as error:
            with error:
                if error.code == 304:
                    return None
                if error.code not in _REDIRECTS or "Location" not in error.headers:
                    raise _refusal(error, url) from error
                here = _led(here, error.headers["Location"])
        except AddressRefused as error:
            raise InvalidSpec(str(error), where=url, remedy=_OUTSIDE) from error
        except URLError as error:
            raise _unreached(error.reason, url) from error
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise StoreUnavailable(f"the download broke off ({error})", where=url) from error
    raise BadModel("it redirects again and again", where=url, remedy="name the file's own address")


def _led(here: str, location: str) -> str:
    """Where a redirect leads; its header holds the address's own bytes."""
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()
    try:
        return urljoin(here, location)
    except ValueError:
        return location  # refused by the look at it


def _request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """A path may hold any character; over the wire go those that URLs know."""
    parts = urlsplit(url)
    path, query = (quote(text, safe=string.punctuation) for text in (parts.path, parts.query))
    sent = urlunsplit((parts.scheme, parts.netloc, path, query, ""))
    return urllib.request.Request(sent, headers=dict(headers))  # noqa: S310 - check_host: https only


def check_host(here: str, url: str, rules: Rules) -> None:
    """Refuse an address, written or redirected to, that is not allowed.

    Raises:
        InvalidSpec: Says which rule.
    """
    try:
        parts = urlsplit(here)
        host = parts.hostname or ""
    except ValueError as error:
        raise InvalidSpec(
            f"it redirects to {here[:200]}, which is no address", where=url, remedy=_OUTSIDE
        ) from error
    led = "" if here == url else f"it redirects to {parts.scheme}://{host}: "
    if parts.scheme != "https" or not host:
        raise InvalidSpec(f"{led}only https is read", where=url, remedy="name an https:// address")
    if not any(fnmatchcase(host, pattern) for pattern in rules.hosts):
        raise InvalidSpec(
            f"{led}{host} is not among the hosts that models may come from "
            f"({', '.join(rules.hosts)})",
            where=url,
            remedy="upload the model to a bucket, or have the host allowed",
        )
    for address in _addresses(host) if rules.checks_addresses else ():
        why = why_refused(address)
        if why is not None:
            raise InvalidSpec(f"{led}{address} {why}", where=url, remedy=_OUTSIDE)


def _addresses(host: str) -> set[str]:
    """Where a name leads just now; what is really connected to is judged again."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()


def _save(answer: Any, dest: Path, *, url: str, rules: Rules) -> Downloaded:
    length = answer.headers.get("Content-Length", "")
    announced = int(length) if length.isdigit() else None
    too_large = BadModel(
        f"it has more than {rules.most_bytes} bytes", where=url, remedy="name a smaller archive"
    )
    if announced is not None and announced > rules.most_bytes:
        raise too_large
    digest, size = hashlib.sha256(), 0
    try:
        with dest.open("wb") as target:
            while data := answer.read(_BUFFER_BYTES):
                size += len(data)
                if size > rules.most_bytes:
                    raise too_large
                digest.update(data)
                target.write(data)
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
            raise
        raise explain(error, dest, need=announced) from error
    if announced is not None and size != announced:
        raise StoreUnavailable(
            f"the download broke off after {size} of {announced} bytes", where=url
        )
    modified = answer.headers.get("Last-Modified")
    tag = answer.headers.get("ETag") or (f"at {modified}" if modified else "")
    return Downloaded(Digest(digest.hexdigest()), size, tag)


def _refusal(error: HTTPError, url: str) -> Exception:
    code = error.code
    if code >= 500 or code in _PASSING:
        return StoreUnavailable(f"the server answers {code} {error.reason}", where=url)
    if code in {401, 403}:
        return BadModel(
            f"the server denies access ({code})",
            where=url,
            remedy="name a Secret with the key token in spec.model.secretRef",
        )
    kind = SourceNotFound if code in {404, 410} else BadModel
    return kind(
        f"the server answers {code} {error.reason}",
        where=url,
        remedy="correct spec.model.source",
    )


def _unreached(reason: object, url: str) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return BadModel(
            f"its certificate is not accepted ({reason.verify_message})",
            where=url,
            remedy="name a server with a certificate that is trusted here",
        )
    if isinstance(reason, OSError) and reason.errno == 28:
        return NoSpace("no room is left", where=url, remedy="free some room")
    return StoreUnavailable(f"the server does not answer ({reason})", where=url)
