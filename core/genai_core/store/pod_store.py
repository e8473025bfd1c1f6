"""The store of a pod, and those that it may read beside it, from the environment.

    GENAI_STORE        address of the store; credentials from the AWS_* variables, else whatever
                       the pod's service account gives (boto3's usual places)
    GENAI_STORE_CA     certificates (PEM) that the store's is checked against, if any
    GENAI_READ_FROM    JSON: a list of {"address", "ca"} of stores that are only read
    GENAI_READ_<n>_ACCESS_KEY_ID, ..._SECRET_ACCESS_KEY, ..._SESSION_TOKEN   of the n-th of them;
                       absent = as for the store itself

Whoever wrote the addresses is not whoever runs the pod: each connection is judged by where it
really led, and the pod itself, link-local addresses and the apiserver are hung up on.

Certificates are checked for each store by itself: what one tenant's store trusts says nothing about
another server.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from genai_core.network.addresses import pod_peers
from genai_core.store.address import StoreCredentials, bucket_of
from genai_core.store.layered import LayeredStore
from genai_core.store.location import open_store
from genai_core.store.protocol import Store
from genai_core.store.s3.s3_store import S3Store
from genai_core.wire import Variable, reader_keys

__all__ = ["certificates_of", "open_job_store"]


def open_job_store() -> Store:
    """Open what the environment names; nothing is read or written yet.

    Raises:
        InvalidSpec: An address that cannot be read.
    """
    first = _open(os.environ[Variable.STORE], os.environ.get(Variable.STORE_CA, ""))
    others = [
        _open(entry["address"], entry.get("ca", ""), read_only=number)
        for number, entry in enumerate(json.loads(os.environ.get(Variable.READ_FROM) or "[]"))
    ]
    return LayeredStore(first, others) if others else first


def certificates_of(endpoint: str | None) -> str | None:
    """The file of certificates that a source on this endpoint is checked with; None = the usual."""
    pem = os.environ.get(Variable.STORE_CA)
    address = os.environ.get(Variable.STORE, "")
    store = bucket_of(address) if pem else None
    return _file(pem) if pem and store is not None and store.endpoint == endpoint else None


def _open(address: str, pem: str, read_only: int | None = None) -> Store:
    where = bucket_of(address)
    if where is None:
        return open_store(address)
    if pem:
        where = replace(where, ca=_file(pem))
    credentials = _credentials(reader_keys(read_only)) if read_only is not None else None
    return S3Store(
        where,
        credentials=credentials,
        read_only=read_only is not None,
        refuse=pod_peers(os.environ),
    )


def _credentials(prefix: str) -> StoreCredentials | None:
    key = os.environ.get(f"{prefix}ACCESS_KEY_ID")
    if not key:
        return None
    return StoreCredentials(
        key,
        os.environ.get(f"{prefix}SECRET_ACCESS_KEY", ""),
        os.environ.get(f"{prefix}SESSION_TOKEN") or None,
    )


@cache
def _folder() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="genai-ca-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a fork goes on using it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _file(pem: str) -> str:
    """boto3 reads certificates from files only."""
    file = _folder() / f"{hashlib.sha256(pem.encode()).hexdigest()[:16]}.pem"
    if not file.exists():
        file.write_text(pem, encoding="utf-8")
    return str(file)
