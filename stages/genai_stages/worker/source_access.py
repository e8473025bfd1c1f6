"""The user's model behind an address, with credentials of its own where it has some.

    GENAI_SOURCE_ACCESS_KEY_ID, GENAI_SOURCE_SECRET_ACCESS_KEY, GENAI_SOURCE_SESSION_TOKEN   s3://
    GENAI_SOURCE_TOKEN    https://  sent to the archive's host as a bearer token
    GENAI_SOURCE_HOSTS    https://  comma-separated patterns of the hosts that models come from
    GENAI_SOURCE_ROOT     pvc://    where the claim is mounted

A server of archives may be known by the store's certificates (GENAI_STORE_CA) or by the usual ones.
Without credentials of its own a bucket on the store's endpoint is read with the store's (AWS_*
variables, the pod's service account), and its certificate is checked as the store's is. On any
other endpoint only what is public is read: the store's credentials are sent to the store alone.
Nobody is sent to the pod itself, to link-local addresses or to the apiserver.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from genai_core.errors import BadModel, InvalidSpec, SourceNotFound, StoreUnreadable
from genai_core.files.paths import inside
from genai_core.names import Digest
from genai_core.network.addresses import pod_peers
from genai_core.network.download import download
from genai_core.network.download_rules import Rules
from genai_core.sources.archive import unpack_archive
from genai_core.sources.source_address import HttpsAddress, PvcAddress, is_volume, parse_pvc
from genai_core.store.address import (
    StoreCredentials,
    bucket_of,
    parse_address,
    source_credentials,
)
from genai_core.store.location import SourceFolder, open_source_folder
from genai_core.store.pod_store import certificates_of
from genai_core.tasks.task_file import TaskFileInput
from genai_core.wire import SOURCE_KEYS, Variable
from genai_stages.worker.local_file import TakenFile, take_local

__all__ = ["fetch_archive", "fetch_source_file", "mounted_folder", "open_source"]

_PREFIX = SOURCE_KEYS
_AGAIN = "apply the build again"


def open_source(address: str) -> SourceFolder:
    """Open the folder at an `s3://` address; nothing is read yet.

    Raises:
        InvalidSpec: The address cannot be read.
    """
    key = os.environ.get(f"{_PREFIX}ACCESS_KEY_ID")
    credentials = None
    if key:
        credentials = StoreCredentials(
            key,
            os.environ.get(f"{_PREFIX}SECRET_ACCESS_KEY", ""),
            os.environ.get(f"{_PREFIX}SESSION_TOKEN"),
        )
    # Certificates are named by the store: a file of this pod is not the address's to name.
    where = parse_address(address)
    where = replace(where, ca=certificates_of(where.endpoint))
    store = os.environ.get(Variable.STORE, "")
    credentials = source_credentials(
        where,
        own=credentials,
        store=bucket_of(store),
        of_store=None,
    )
    return open_source_folder(where, credentials, refuse=pod_peers(os.environ))


def fetch_archive(address: HttpsAddress, scratch: Path) -> tuple[Path, Digest]:
    """Download an archive and unpack it.

    Args:
        address: Where it is.
        scratch: A private folder.

    Returns:
        The model's folder, and the archive's digest.

    Raises:
        BadModel: It is not there, not an archive, not the one that is pinned, or does harm.
        InvalidSpec: It leads where it must not.
    """
    hosts = [part.strip() for part in os.environ.get(f"{_PREFIX}HOSTS", "").split(",")]
    rules = Rules(hosts=[part for part in hosts if part] or ["*"], refuse=pod_peers(os.environ))
    file = scratch / "archive"
    token = os.environ.get(f"{_PREFIX}TOKEN") or None
    found = download(
        address.url,
        file,
        rules=rules,
        token=token,
        authorities=os.environ.get(Variable.STORE_CA, ""),
    )
    assert found is not None
    if address.sha256 not in {None, found.sha256}:
        raise BadModel(
            f"its content is {found.sha256}, not the {address.sha256} that the address pins",
            where=address.url,
            remedy="correct spec.model.source, or restore the archive that it stands for",
        )
    folder = scratch / "source"
    folder.mkdir()
    root = unpack_archive(file, folder, where=address.url)
    file.unlink()
    return root, found.sha256


def mounted_folder(address: PvcAddress) -> Path:
    """The folder of a claim, which this pod has mounted.

    Raises:
        StoreUnreadable: Nothing is mounted here.
        SourceNotFound: There is no such folder in it.
    """
    text = os.environ.get(f"{_PREFIX}ROOT")
    if not text:
        raise StoreUnreadable(
            "no volume is mounted here", where=str(address), remedy="build it in a cluster"
        )
    root = Path(text)
    folder = inside(root / address.path, root, str(address), of="volume")
    if not folder.exists():
        raise SourceNotFound(
            f"there is no folder {address.path} in the volume",
            where=str(address),
            remedy="correct spec.model.source",
        )
    return folder


def fetch_source_file(file: TaskFileInput, dest: Path) -> TakenFile | None:
    """Fetch one file of the source and make sure that it is still the one planned with.

    Returns:
        Of a volume, the file where it lies: `dest` is a link to it.

    Raises:
        BadModel: It has other bytes.
    """
    assert file.path is not None
    if is_volume(file.path):
        return _take_mounted(file, dest)
    where = bucket_of(file.path)
    if where is None:
        raise InvalidSpec("it cannot be read file by file", where=file.path, remedy=_AGAIN)
    folder, _, name = where.prefix.rpartition("/")
    source = open_source(str(replace(where, prefix=folder)))
    found = source.fetch(name, dest, size=file.size)
    if found == file.sha256:
        return None
    if source.noted(name) == file.sha256:
        raise BadModel(
            f"its bytes are {found}, not the {file.sha256} that its bucket has noted for it",
            where=file.path,
            remedy="upload it again",
        )
    raise BadModel("it changed while the build was running", where=file.path, remedy=_AGAIN)


def _take_mounted(file: TaskFileInput, dest: Path) -> TakenFile:
    assert file.path is not None
    address = parse_pvc(file.path)
    folder, _, name = address.path.rpartition("/")
    where = PvcAddress(address.claim, folder)
    root = mounted_folder(PvcAddress(address.claim))
    path = inside(mounted_folder(where) / name, root, file.path, of="volume")
    return take_local(path, file, dest, shown=file.path, remedy=_AGAIN)
