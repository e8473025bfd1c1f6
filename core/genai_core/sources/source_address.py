"""Addresses of models that are neither folders nor buckets.

https://host/path/model.tar.gz               an archive; what it holds is resolved when it is read
https://host/path/model.zip#sha256=<64 hex>  exactly these bytes
pvc://claim/path/in/the/volume               a folder of a PersistentVolumeClaim, in a cluster
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from genai_core.canonical import is_digest
from genai_core.errors import InvalidSpec
from genai_core.files.paths import check_relative_path
from genai_core.names import Digest

__all__ = [
    "HttpsAddress",
    "PvcAddress",
    "is_archive",
    "is_volume",
    "parse_https",
    "parse_pvc",
    "readable_name",
]

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class HttpsAddress:
    """An archive.

    Attributes:
        url: Without a fragment.
        sha256: Of the archive's bytes, where the address pins them.
    """

    url: str
    sha256: Digest | None = None

    def __str__(self) -> str:
        """As users write it."""
        return f"{self.url}#sha256={self.sha256}" if self.sha256 else self.url

    @property
    def name(self) -> str:
        """The last part of the path, without what archives end with."""
        last = PurePosixPath(urlsplit(self.url).path).name
        return re.sub(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|zip)$", "", last)


@dataclass(frozen=True)
class PvcAddress:
    """A folder of a PersistentVolumeClaim.

    Attributes:
        path: In the volume, without slashes at its ends; empty = the volume's root.
    """

    claim: str
    path: str = ""

    def __str__(self) -> str:
        """As users write it."""
        return f"pvc://{self.claim}" + (f"/{self.path}" if self.path else "")

    @property
    def name(self) -> str:
        """The folder's name."""
        return PurePosixPath(self.path).name or self.claim

    def file(self, name: str) -> str:
        """The address of one file in it."""
        return str(PvcAddress(self.claim, f"{self.path}/{name}".strip("/")))


def is_archive(address: str) -> bool:
    """Whether it is meant as the address of an archive on a web server."""
    return address.startswith("https://")


def is_volume(address: str) -> bool:
    """Whether it is meant as a folder of a PersistentVolumeClaim."""
    return address.startswith("pvc://")


def parse_https(address: str) -> HttpsAddress:
    """Read an `https://` address.

    Raises:
        InvalidSpec: It names no host, holds credentials, or its fragment is no digest.
    """
    try:
        parts = urlsplit(address)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise _wrong_https(address, str(error)) from error
    if parts.scheme != "https" or not host:
        raise _wrong_https(address, "it names no host")
    if parts.username or parts.password:
        shown = f"https://{host}{parts.path}"
        raise InvalidSpec(
            "credentials must not stand in an address",
            where=shown,
            remedy="put them into a Secret, and name it with spec.model.secretRef",
        )
    if any(ord(c) <= 32 for c in address):
        raise _wrong_https(address, "it holds a space or a control character")
    url, _, fragment = address.partition("#")
    if not fragment:
        return HttpsAddress(url)
    name, _, digest = fragment.partition("=")
    if name != "sha256" or not is_digest(digest):
        raise _wrong_https(address, "what follows # is not sha256= and 64 lower-case hex digits")
    return HttpsAddress(url, Digest(digest))


def _wrong_https(address: str, why: str) -> InvalidSpec:
    return InvalidSpec(
        why,
        where=address,
        remedy="write https://host/model.tar.gz, with #sha256=... to pin it",
    )


def parse_pvc(address: str) -> PvcAddress:
    """Read a `pvc://` address.

    Raises:
        InvalidSpec: The claim is no name, or the path leaves the volume.
    """
    remedy = "write pvc://claim/path/of/the/folder"
    claim, _, path = address.removeprefix("pvc://").partition("/")
    if not is_volume(address) or not _CLAIM.fullmatch(claim):
        raise InvalidSpec("it names no claim", where=address, remedy=remedy)
    path = path.strip("/")
    if path:
        try:
            check_relative_path(path)
        except ValueError as error:
            raise InvalidSpec(str(error), where=address, remedy=remedy) from error
    return PvcAddress(claim, path)


def readable_name(address: str) -> str:
    """What people would call the model behind an address: its folder's or archive's name.

    Empty where the folder is named by its content, as `genai build --remote` uploads it.

    Raises:
        InvalidSpec: It cannot be read.
    """
    if is_archive(address):
        return parse_https(address).name
    if is_volume(address):
        return parse_pvc(address).name
    name = unquote(address.partition("?")[0]).rstrip("/").rpartition("/")[2]
    return "" if name.startswith("sha256-") else name
