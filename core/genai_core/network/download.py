"""One file over https, with nothing but Python's own library.

Redirects are followed by hand: each must lead to https again, to a host that is allowed, and to an
address that is not refused; credentials go to the first host only. What arrives is hashed on the
way and bounded in size.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import string
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from genai_core.errors import BadModel, InvalidSpec, NoSpace, SourceNotFound, StoreUnavailable
from genai_core.files.whole_files import explain, room_in
from genai_core.names import Digest
from genai_core.network.addresses import AddressRefused
from genai_core.network.deadlines import hung_up_after
from genai_core.network.download_rules import OUTSIDE, Rules, check_host
from genai_core.network.watched_tls import (
    CONNECT_SECONDS,
    HttpsHandler,
    NoRedirects,
    WatchedTls,
    watched_context,
)
from genai_core.redaction import hidden_queries

__all__ = ["Downloaded", "download"]

_BUFFER_BYTES = 1 << 20
_ANSWER_SECONDS = 120.0
"""For a connection and an answer's headers."""
_PIECE_SECONDS = 60.0
"""For a MiB; a connection that is slower is of no use for models."""
_CHECK_BYTES = 64 << 20
"""Between looks at the disk."""
_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REDIRECTS = 5
_ATTEMPTS = 4
_PASSING = {408, 425, 429}


@dataclass(frozen=True)
class Downloaded:
    """What came.

    Attributes:
        tag: The server's ETag, or when it was modified; empty where it says neither.
    """

    sha256: Digest
    size: int
    tag: str


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
    context = watched_context(rules, authorities)
    opener = urllib.request.build_opener(NoRedirects, HttpsHandler(context=context))
    asked = _Asked(url, hidden_queries(url), rules, context)
    try:
        for attempt in range(_ATTEMPTS):
            try:
                return _fetch(opener, asked, dest, token=token, tag=tag)
            except StoreUnavailable:
                if attempt + 1 == _ATTEMPTS:
                    raise
                sleep(2.0**attempt)
    finally:
        context.forget()
    raise AssertionError("not reached")


@dataclass(frozen=True)
class _Asked:
    """A download: its address, the same as it is shown, and under which rules."""

    url: str
    shown: str
    rules: Rules
    context: WatchedTls

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Hang up where the block takes longer."""
        with hung_up_after(seconds, self.context.hang_up) as deadline:
            try:
                yield
            except Exception as error:
                if deadline.expired:
                    raise self._too_slow(seconds) from error
                raise
        if deadline.expired:
            raise self._too_slow(seconds)

    def _too_slow(self, seconds: float) -> StoreUnavailable:
        return StoreUnavailable(
            f"the server sends too slowly, and was given {seconds:.0f} s", where=self.shown
        )


def _fetch(
    opener: urllib.request.OpenerDirector,
    asked: _Asked,
    dest: Path,
    *,
    token: str | None,
    tag: str,
) -> Downloaded | None:
    headers = {"User-Agent": "genai-operator"}
    if tag:
        headers["If-Modified-Since" if tag.startswith("at ") else "If-None-Match"] = (
            tag.removeprefix("at ")
        )
    url, shown = asked.url, asked.shown
    here = url
    for _ in range(_MOST_REDIRECTS + 1):
        check_host(here, url, asked.rules)
        sent = dict(headers)
        if token and urlsplit(here).netloc == urlsplit(url).netloc:
            sent["Authorization"] = f"Bearer {token}"
        try:
            with asked.within(_ANSWER_SECONDS):
                answer = opener.open(_request(here, sent), timeout=CONNECT_SECONDS)
            with answer:
                return _save(answer, dest, asked)
        except HTTPError as error:
            with error:
                if error.code == 304:
                    return None
                if error.code not in _REDIRECTS or "Location" not in error.headers:
                    raise _refusal(error, shown) from error
                here = _led(here, error.headers["Location"])
        except AddressRefused as error:
            raise InvalidSpec(str(error), where=shown, remedy=OUTSIDE) from error
        except URLError as error:
            raise _unreached(error.reason, shown) from error
        except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise StoreUnavailable(f"the download broke off ({error})", where=shown) from error
    raise BadModel(
        "it redirects again and again", where=shown, remedy="name the file's own address"
    )


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


def _save(answer: Any, dest: Path, asked: _Asked) -> Downloaded:
    rules, url = asked.rules, asked.shown
    length = answer.headers.get("Content-Length", "")
    announced = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    too_large = BadModel(
        f"it has more than {rules.most_bytes} bytes", where=url, remedy="name a smaller archive"
    )
    if announced is not None and announced > rules.most_bytes:
        raise too_large
    digest, size, checked = hashlib.sha256(), 0, _CHECK_BYTES
    until = time.monotonic() + rules.seconds
    try:
        with dest.open("wb") as target:
            while data := _next(answer, asked):
                size += len(data)
                if time.monotonic() > until:
                    raise StoreUnavailable(f"it takes longer than {rules.seconds:.0f} s", where=url)
                if size > rules.most_bytes:
                    raise too_large
                if size >= checked:
                    checked = size + _CHECK_BYTES
                    if room_in(dest.parent) < _CHECK_BYTES:
                        raise NoSpace(
                            f"the disk is nearly full after {size} bytes",
                            where=str(dest.parent),
                            remedy="make room",
                        )
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


def _next(answer: Any, asked: _Asked) -> bytes:
    with asked.within(_PIECE_SECONDS):
        return bytes(answer.read(_BUFFER_BYTES))


def _refusal(error: HTTPError, url: str) -> Exception:
    code, reason = error.code, str(error.reason)[:100]
    if code >= 500 or code in _PASSING:
        return StoreUnavailable(f"the server answers {code} {reason}", where=url)
    if code in {401, 403}:
        return BadModel(
            f"the server denies access ({code})",
            where=url,
            remedy="name a Secret with the key token in spec.model.secretRef",
        )
    kind = SourceNotFound if code in {404, 410} else BadModel
    return kind(
        f"the server answers {code} {reason}",
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
